"""Running a parsed graph by torch: constants by name, a mask on any edge, tensors forgotten after their last use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from debride.errors import ModelError
from debride.graph.ir import Graph
from debride.proxy.ops_integer import ROUNDING
from debride.proxy.placing import there
from debride.proxy.plan import Plan, Request, make_plan
from debride.proxy.shapes import OtherShapesError, Recall
from debride.proxy.stamps import same_numbers, stamped, unchanged
from debride.proxy.steps import advance, constants_of, folded
from debride.types import Compute

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_SCALES = (2.0**12, 2.0**6, 1.0)
_RECALLS = 32
"""So many shapes of the inputs are remembered at a time."""


class GraphRunner(nn.Module):
    """A graph as a torch module that computes any of its tensors from any others.

    Float constants are buffers (no gradient unless asked for by `requires_grad_`), by name in `tensors`; integer
    constants, and what only they decide, are computed once here. What float constants alone decide (a quantised
    weight's floats, a transposed kernel) is computed on the first run and kept while the constants stay the same;
    write into a constant in place, not through its `.data`. Arithmetic on shapes is done once per shape of the inputs,
    and chains that mean GELU or layer normalisation are computed as one, unless a mask or a gradient has business in
    them. Made double, a cast to another float type keeps float64. What is fed, the float constants and the outputs lie
    on the device of `compute`; convolutions and matrix products run in its precision, under autocast.

    Raises:
        UnsupportedOpError: a constant of a type that torch lacks.
        ModelError: arithmetic on integer constants fails (named by its node).
    """

    def __init__(self, graph: Graph, *, compute: Compute | None = None) -> None:
        super().__init__()
        self.graph, self.compute = graph, compute or Compute()
        self._names: dict[str, str] = {}
        self._exact: dict[str, Tensor] = {}
        self._lent: dict[tuple[str, str], Tensor] = {}
        self._edges = {*(v.name for v in graph.inputs), *(name for n in graph.nodes for name in n.outputs)}
        self._plans: dict[Request, Plan] = {}
        self._recalls: dict[tuple[Request, tuple[torch.Size, ...]], Recall] = {}
        self._sure: dict[Request, dict[str, tuple[Tensor, int]]] = {}
        self._kept: dict[str, Tensor] = {}
        self._seen: dict[str, tuple[Tensor, int]] = {}
        self.register_buffer("_width", torch.zeros(()), persistent=False)  # becomes double with the others
        for name, tensor in constants_of(graph):
            if tensor.dtype.is_floating_point:
                self._names[name] = f"constant{len(self._names)}"  # torch allows no dots in a buffer's name
                self.register_buffer(self._names[name], tensor)
            else:
                self._exact[name] = tensor
        self._made: dict[str, str] = {}
        for name, tensor in folded(graph, self._exact).items():
            if tensor.dtype.is_floating_point:
                self._made[name] = f"made{len(self._made)}"  # a buffer too: it becomes double with the others
                self.register_buffer(self._made[name], tensor, persistent=False)
            else:
                self._exact[name] = tensor
        self.to(self.compute.device)

    @property
    def device(self) -> torch.device:
        """Where the constants lie, and whatever is computed with them."""
        return self._constant("_width").device

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
        values = {**self._known(), **feeds}
        for name in set(feeds).intersection(masks):
            values[name] = values[name] * masks[name]
        width = self._constant("_width")
        request = Request(
            outputs=tuple(outputs),
            feeds=frozenset(feeds),
            masks=frozenset(masks),
            wide=width.dtype == torch.float64,
            device=str(width.device),
        )
        plan = self._plan(request)
        if not self._holds(request, plan, values):
            request = replace(request, fused=False)
            plan = self._plan(request)
        values.update((there(name), self._on_device(name, request.device)) for name in plan.lent)
        with self._autocast():
            if self._settle(plan, values, masks):
                made = self._move(request, plan, values, feeds, masks)
            else:
                made = advance(plan.steps, values, feeds, masks)
        return {name: made[name].to(width.device) for name in outputs}

    def gradients(
        self, loss: Tensor, tensors: Sequence[Tensor], *, allow_unused: bool = False
    ) -> tuple[Tensor | None, ...]:
        """The gradients of the scalar `loss` of what was computed here, by `tensors`; None where it does not use one.

        In float16 the way back is walked with the loss scaled up, since small gradients would round to zero, by less
        where they overflow (Micikevicius et al., ICLR 2018).
        """
        scales = _SCALES if self.compute.precision == "float16" else (1.0,)
        for scale in scales:
            found = torch.autograd.grad(
                loss * scale, tensors, retain_graph=scale != scales[-1], allow_unused=allow_unused
            )
            if scale == scales[-1] or all(g is None or bool(torch.isfinite(g).all()) for g in found):
                break
        return tuple(None if g is None else g / scale for g in found)

    def _constant(self, key: str) -> Tensor:
        found = self._buffers[key]  # get_buffer walks the module's tree, once per constant and run
        if found is None:
            raise ModelError(f"the proxy's buffer {key} was taken away; do not replace a proxy's buffers")
        return found

    def _known(self) -> dict[str, Tensor]:
        floats = {name: self._constant(key) for name, key in (*self._made.items(), *self._names.items())}
        return {**self._exact, **floats}

    def _plan(self, request: Request) -> Plan:
        if request not in self._plans:
            known = {name: tensor.numel() for name, tensor in self._known().items()}
            self._plans[request] = make_plan(self.graph, known, request, self._exact)
        return self._plans[request]

    def _on_device(self, name: str, device: str) -> Tensor:
        """The integer constant `name` where the data lie: nothing writes into these, so one copy serves for good."""
        if (name, device) not in self._lent:
            self._lent[name, device] = self._exact[name].to(device)
        return self._lent[name, device]

    def _holds(self, request: Request, plan: Plan, values: Mapping[str, Tensor]) -> bool:
        """Whether the constants that the plan took for granted are still those of the graph."""
        if request not in self._sure or not unchanged(self._sure[request], values):
            if not all(same_numbers(values[name], self.graph.constants[name]) for name in plan.assumed):
                return False
            stamps = stamped(values, plan.assumed)
            if stamps is None:
                return False
            self._sure[request] = stamps
        return True

    def _move(
        self,
        request: Request,
        plan: Plan,
        values: dict[str, Tensor],
        feeds: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """All tensors still held after the moving steps; without arithmetic on shapes where that was done before.

        The inputs' shapes tell nearly always what all others are. A graph with tensors as long as the data say so is
        noticed, since each shape that is asked is compared, and is run once more, in full.
        """
        if not plan.shaped or torch.is_inference_mode_enabled():
            return advance(plan.moving, values, feeds, masks)
        key = (request, tuple(feeds[name].shape for name in sorted(feeds)))
        recall = self._recalls.get(key)
        if recall is not None and unchanged(recall.constants, values):
            try:
                return advance(plan.lean, {**values, **recall.values}, feeds, masks, recall)
            except OtherShapesError:
                del self._recalls[key]
        stamps = stamped(values, plan.shape_roots)
        if stamps is None:
            return advance(plan.moving, values, feeds, masks)
        made = advance(plan.moving, values, feeds, masks)
        if len(self._recalls) >= _RECALLS:
            self._recalls.clear()
        self._recalls[key] = Recall.of(plan.asking, {name: made[name] for name in plan.shaped}, stamps)
        return made

    def _settle(self, plan: Plan, values: dict[str, Tensor], masks: Mapping[str, Tensor]) -> bool:
        """Put what constants alone decide into `values`; False where a gradient or a mask has business there.

        Folded for good, a parameter could neither be trained nor written back; computed every time, the weights of
        a quantised network cost as much as its small layers. So the results are kept for as long as the constants
        are the same tensors with nothing written into them.
        """
        roots = stamped(values, plan.roots)
        if roots is None or (masks and any(name in masks for step in plan.still for name in step.node.outputs)):
            return False
        if not unchanged({name: self._seen[name] for name in roots if name in self._seen}, values):
            self._kept, self._seen = {}, {}
        if any(name not in self._kept for name in plan.kept):
            with torch.inference_mode(False), torch.no_grad():
                made = advance(plan.still, dict(values), {}, {})
            self._kept.update((name, made[name]) for name in plan.kept)
        self._seen.update(roots)
        values.update((name, self._kept[name]) for name in plan.kept)
        return True

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _AUTOCAST.get(self.compute.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)
