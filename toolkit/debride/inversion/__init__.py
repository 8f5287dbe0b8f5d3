"""Reverse-engineering triggers on the proxy: restarts x classes as one batched optimisation."""
