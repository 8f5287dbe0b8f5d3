"""Computing a plan's steps one after the other, and what integers alone decide beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from debride.errors import DebrideError, ModelError, UnsupportedOpError
from debride.graph.ir import Graph, Node
from debride.proxy.convert import to_tensor
from debride.proxy.op import Operator
from debride.proxy.plan import Step
from debride.proxy.shapes import Recall
from debride.proxy.table import lookup


def advance(
    steps: Iterable[Step],
    values: dict[str, Tensor],
    feeds: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    recall: Recall | None = None,
) -> dict[str, Tensor]:
    """Compute `steps` into `values` and return it: masks act as a tensor is made, tensors go after their last use.

    With `recall`, nodes that ask a shape only make sure that it is the one known (`OtherShapesError`).
    """
    for step in steps:
        inputs = [values[n] if n else None for n in step.node.inputs]
        if recall is not None and step.asks:
            recall.check(step.node, inputs[0])
        else:
            made = compute(step.operator, step.node, inputs)
            for name, value in zip(step.node.outputs, made, strict=False):
                if name and name not in feeds:
                    values[name] = value * masks[name] if name in masks else value
        for name in step.frees:
            values.pop(name, None)
    return values


def constants_of(graph: Graph) -> Iterable[tuple[str, Tensor]]:
    """The constants that something reads, as tensors; strings aside."""
    used = {name for node in graph.nodes for name in node.inputs} | {v.name for v in graph.outputs}
    for name, array in graph.constants.items():
        if name in used and array.dtype.kind not in "OSU":
            yield name, to_tensor(array)


def folded(graph: Graph, exact: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What follows from integer constants alone: shape arithmetic, masks of attention and the like."""
    found = dict(exact)
    for node in graph.nodes:
        if node.inputs and all(name in found or not name for name in node.inputs):
            try:
                operator = lookup(node, graph.opset)
            except UnsupportedOpError:
                continue  # an error only if the scores need it
            made = compute(operator, node, [found[n] if n else None for n in node.inputs])
            found.update((n, v) for n, v in zip(node.outputs, made, strict=False) if n)
    return found


def compute(operator: Operator, node: Node, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The outputs of one node; whatever goes wrong inside is a `ModelError` that names node, operator and shapes."""
    extra = {"n_outputs": len(node.outputs)} if operator.counts_outputs else {}
    try:
        made = operator(*inputs, **node.attributes, **extra)
    except DebrideError as error:
        raise type(error)(f"node {node.name!r} ({node.op}): {error}") from error
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, OverflowError, NotImplementedError) as error:
        shapes = ", ".join("none" if x is None else f"{tuple(x.shape)} {x.dtype}" for x in inputs)
        message = " ".join(str(error).split())
        raise ModelError(f"node {node.name!r} ({node.op}) fails on inputs {shapes}: {message}") from error
    return made if isinstance(made, tuple) else (made,)
