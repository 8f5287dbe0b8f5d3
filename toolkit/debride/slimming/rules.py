"""What each operator needs of its inputs and outputs to say the same without what leaves.

A rule is called whenever something changes around its node, and only ever takes back what may leave.
"""

from __future__ import annotations

from collections.abc import Callable

from debride.graph.ir import Node
from debride.slimming import rules_layers, rules_moves, rules_pointwise
from debride.slimming.heads import hold_heads
from debride.slimming.problem import Problem

Rule = Callable[[Problem, Node], None]

RULES: dict[str, Rule] = {**rules_pointwise.RULES, **rules_layers.RULES, **rules_moves.RULES}


def apply(problem: Problem, node: Node) -> None:
    """Take back what `node` needs; an operator without a rule needs all that it touches."""
    tensors = [t for t in (*node.inputs, *node.outputs) if t]
    rule = None if node.domain else RULES.get(node.op)
    if node.name in problem.heads:
        hold_heads(problem.axes, problem.heads[node.name])
    elif rule is None:
        name = f"{node.domain}.{node.op}" if node.domain else node.op
        problem.pin(node, f"bound by {name}, which is not taken apart")
    elif not problem.axes.knows(*tensors) or not problem.observed.usual(node):
        problem.pin(node, "in a shape that is not known")
    else:
        rule(problem, node)
