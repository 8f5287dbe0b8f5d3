"""Training the weights of a graph further, through the proxy, so that what pruning left of a backdoor is unlearnt."""
