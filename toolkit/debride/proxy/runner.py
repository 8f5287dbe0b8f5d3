"""Running a parsed graph by torch: constants by name, a mask on any edge, tensors forgotten after their last use."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from debride.errors import DebrideError, ModelError, UnsupportedOpError
from debride.graph.ir import Graph, Node
from debride.proxy.convert import to_tensor
from debride.proxy.op import Operator
from debride.proxy.ops_integer import ROUNDING
from debride.proxy.plan import Plan, Step, make_plan
from debride.proxy.table import lookup

Precision = Literal["float32", "bfloat16"]


class GraphRunner(nn.Module):
    """A graph as a torch module that computes any of its tensors from any others.

    Float constants are buffers (no gradient unless asked for by `requires_grad_`), by name in `tensors`; integer
    constants, and what only they decide, are computed once here. What float constants alone decide (a quantised
    weight's floats, a transposed kernel) is computed on the first run and kept while the constants stay the same;
    write into a constant in place, not through its `.data`. With `precision="bfloat16"` convolutions and matrix
    products run in bfloat16 under autocast, for speed.

    Raises:
        UnsupportedOpError: a constant of a type that torch lacks.
        ModelError: arithmetic on integer constants fails (named by its node).
    """

    def __init__(self, graph: Graph, *, precision: Precision = "float32") -> None:
        super().__init__()
        self.graph, self.precision = graph, precision
        self._names: dict[str, str] = {}
        self._exact: dict[str, Tensor] = {}
        self._edges = {*(v.name for v in graph.inputs), *(name for n in graph.nodes for name in n.outputs)}
        self._plans: dict[tuple[frozenset[str], tuple[str, ...]], Plan] = {}
        self._kept: dict[str, Tensor] = {}
        self._seen: dict[str, tuple[Tensor, int]] = {}
        for name, tensor in _constants(graph):
            if tensor.dtype.is_floating_point:
                self._names[name] = f"constant{len(self._names)}"  # torch allows no dots in a buffer's name
                self.register_buffer(self._names[name], tensor)
            else:
                self._exact[name] = tensor
        self._made: dict[str, str] = {}
        for name, tensor in _folded(graph, self._exact).items():
            if tensor.dtype.is_floating_point:
                self._made[name] = f"made{len(self._made)}"  # a buffer too: it becomes double with the others
                self.register_buffer(self._made[name], tensor, persistent=False)
            else:
                self._exact[name] = tensor

    @property
    def rounds(self) -> bool:
        """Whether the graph rounds its tensors to integers on the way, as quantised models do."""
        return any(node.op in ROUNDING for node in self.graph.nodes)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The float constants by their initializer's (or Constant node's output) name."""
        return {name: self.get_buffer(key) for name, key in self._names.items()}

    def run(
        self, feeds: Mapping[str, Tensor], outputs: Sequence[str], masks: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The tensors `outputs`, computed from `feeds` (inputs, edges or constants to replace) and the constants.

        Raises:
            ModelError: as `forward`. UnsupportedOpError: a needed operator is not in the table.
        """
        masks = masks or {}
        unknown = sorted(set(masks) - self._edges)
        if unknown:
            raise ModelError(f"a mask names {unknown[0]!r}, which is no tensor of the graph; name a node's output")
        made = {name: self.get_buffer(key) for name, key in self._made.items()}
        values = {**self._exact, **made, **self.tensors, **feeds}
        for name in set(feeds).intersection(masks):
            values[name] = values[name] * masks[name]
        plan = self._plan(feeds.keys(), tuple(outputs))
        with self._autocast():
            steps = plan.moving if self._settle(plan, values, masks) else plan.steps
            _advance(steps, values, feeds, masks)
        return {name: values[name] for name in outputs}

    def _plan(self, feeds: Collection[str], outputs: tuple[str, ...]) -> Plan:
        key = (frozenset(feeds), outputs)
        if key not in self._plans:
            self._plans[key] = make_plan(self.graph, {*self._exact, *self._made, *self._names}, feeds, outputs)
        return self._plans[key]

    def _settle(self, plan: Plan, values: dict[str, Tensor], masks: Mapping[str, Tensor]) -> bool:
        """Put what constants alone decide into `values`; False where a gradient or a mask has business there.

        Folded for good, a parameter could neither be trained nor written back; computed every time, the weights of
        a quantised network cost as much as its small layers. So the results are kept for as long as the constants
        are the same tensors with nothing written into them.
        """
        if any(values[name].requires_grad for name in plan.roots):
            return False
        if masks and any(name in masks for step in plan.still for name in step.node.outputs):
            return False
        roots = {name: (values[name], values[name]._version) for name in plan.roots}
        if any(name in self._seen and not _same(self._seen[name], root) for name, root in roots.items()):
            self._kept, self._seen = {}, {}
        if any(name not in self._kept for name in plan.kept):
            made = dict(values)
            with torch.inference_mode(False), torch.no_grad():
                _advance(plan.still, made, {}, {})
            self._kept.update((name, made[name]) for name in plan.kept)
        self._seen.update(roots)
        values.update((name, self._kept[name]) for name in plan.kept)
        return True

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        device = next((b.device.type for b in self.buffers()), "cpu")
        return torch.autocast(device, torch.bfloat16)


def _same(one: tuple[Tensor, int], other: tuple[Tensor, int]) -> bool:
    return one[0] is other[0] and one[1] == other[1]


def _advance(
    steps: Iterable[Step], values: dict[str, Tensor], feeds: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> None:
    """Compute `steps` in place: masks act as a tensor is made, tensors go after their last use."""
    for step in steps:
        made = _compute(step.operator, step.node, [values[n] if n else None for n in step.node.inputs])
        for name, value in zip(step.node.outputs, made, strict=False):
            if name and name not in feeds:
                values[name] = value * masks[name] if name in masks else value
        for name in step.frees:
            values.pop(name, None)


def _constants(graph: Graph) -> Iterable[tuple[str, Tensor]]:
    used = {name for node in graph.nodes for name in node.inputs} | {v.name for v in graph.outputs}
    for name, array in graph.constants.items():
        if name in used and array.dtype.kind not in "OSU":
            yield name, to_tensor(array)


def _folded(graph: Graph, exact: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What follows from integer constants alone: shape arithmetic, masks of attention and the like."""
    found = dict(exact)
    for node in graph.nodes:
        if node.inputs and all(name in found or not name for name in node.inputs):
            try:
                operator = lookup(node, graph.opset)
            except UnsupportedOpError:
                continue  # an error only if the scores need it
            made = _compute(operator, node, [found[n] if n else None for n in node.inputs])
            found.update((n, v) for n, v in zip(node.outputs, made, strict=False) if n)
    return found


def _compute(operator: Operator, node: Node, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
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
