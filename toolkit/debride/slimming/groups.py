"""Grouped convolutions that lose the same number of channels in every group, though not the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from debride.graph.ir import Node

if TYPE_CHECKING:
    from debride.slimming.problem import Problem


def cuttable(problem: Problem, node: Node) -> bool:
    """Whether the weight can be cut group by group: it is a constant of this node alone."""
    weight = node.inputs[1]
    return problem.known.constant(weight) and len(problem.index.readers(weight)) == 1


def groups_left(problem: Problem, node: Node) -> int:
    """How many groups of a grouped convolution have any channel left."""
    groups = int(node.attributes.get("group", 1))
    kept = ~problem.axes.leaves(node.inputs[0], 1).reshape(groups, -1)
    return int(kept.any(axis=1).sum())


def loses_unevenly(problem: Problem, node: Node) -> bool:
    """Whether `node` is a grouped convolution whose groups stay and lose some of their inputs."""
    groups = int(node.attributes.get("group", 1))
    if node.op != "Conv" or groups == 1 or not cuttable(problem, node):
        return False
    sizes = (~problem.axes.leaves(node.inputs[0], 1).reshape(groups, -1)).sum(axis=1)
    return not set(sizes.tolist()) <= {0, problem.shape(node.inputs[1])[1]}


def cut_groups(problem: Problem, node: Node) -> npt.NDArray[Any]:
    """The weight of `node`, which loses unevenly, without the inputs that leave: another set in every group.

    The output channels (axis 0) are all there still: they are cut as in any constant.
    """
    groups = int(node.attributes.get("group", 1))
    kept = ~problem.axes.leaves(node.inputs[0], 1).reshape(groups, -1)
    sizes = kept.sum(axis=1)
    weight = problem.graph.constants[node.inputs[1]]
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    # A group that leaves altogether goes with its output channels: what it keeps here does not matter.
    kept = np.where((sizes == 0)[:, None], np.arange(kept.shape[1]) < sizes.max(), kept)
    return np.concatenate([block.compress(own, axis=1) for block, own in zip(blocks, kept, strict=True)])
