"""A device that is not the CPU, for machines that have no other: it computes there, but refuses what a GPU refuses.

torch itself has nothing for this: fake tensors on "cuda" need a build of torch with CUDA, and carry no numbers. Tensors
of `Elsewhere` say that they lie on `DEVICE`, whose own tensors have no numbers either, and keep them on the CPU.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "meta"
aten = torch.ops.aten

_READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
"""Of operators whose result, or its shape, the CPU must wait for."""
_INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
"""Operators that wait where truth values choose, and not where numbers do."""


class _There(Tensor):
    """A tensor on the device, with its numbers in `inner`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self, **_):
        return f"there({self.inner!r})"

    def tolist(self):
        """torch refuses this to all subclasses."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {}, Counter())


class Elsewhere(TorchDispatchMode):
    """While it is active, there is a device `DEVICE`. `waits` counts what makes the CPU wait for it: numbers that are
    read from there, or written there from the CPU."""

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {}, self.waits)

    def __enter__(self):
        # torch.tensor(data, device="meta") forgets its data before anybody else can see them.
        self._tensor = torch.tensor
        torch.tensor = lambda data, *, device=None, **kinds: self._tensor(data, **kinds).to(device or "cpu")
        return super().__enter__()

    def __exit__(self, *error):
        torch.tensor = self._tensor
        return super().__exit__(*error)


def _computed(func, args, kwargs, waits):
    there = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, _There)]
    asked = kwargs.get("device")
    to = None if asked is None else torch.device(asked).type
    result_there = to == DEVICE or (bool(there) and to is None)
    if result_there and func is not aten._to_copy.default:
        _refuse_mixtures(func, args, kwargs)
    reads = bool(there) and (to == "cpu" or _waits(func, args))
    waits[f"read by {func}"] += reads
    waits[f"write by {func}"] += func is aten._to_copy.default and to == DEVICE and not there
    known = {id(tensor.inner): tensor for tensor in there}
    args, kwargs = tree_map(_inner, (args, kwargs))
    made = func(*args, **(kwargs if asked is None else {**kwargs, "device": torch.device("cpu")}))
    # An operator that writes into a tensor hands that very tensor back.
    return tree_map(lambda leaf: known[id(leaf)] if id(leaf) in known else _outer(leaf), made) if result_there else made


def _waits(func, args):
    if func in _INDEXING:
        return any(leaf.dtype in (torch.bool, torch.uint8) for leaf in tree_leaves(args[1]) if leaf is not None)
    return any(tag in func.tags for tag in _READS)


def _refuse_mixtures(func, args, kwargs):
    """As CUDA does: beside the device's tensors, operators on elements take numbers of the CPU, all others nothing."""
    if func is aten.copy_.default:
        return
    for leaf in tree_leaves((args, kwargs)):
        number = isinstance(leaf, Tensor) and leaf.ndim == 0 and torch.Tag.pointwise in func.tags
        if isinstance(leaf, Tensor) and not isinstance(leaf, _There) and not number:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found cpu and {DEVICE}")


def _inner(leaf):
    return leaf.inner if isinstance(leaf, _There) else leaf


def _outer(leaf):
    return _There(leaf) if isinstance(leaf, Tensor) else leaf
