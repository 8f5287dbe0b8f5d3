"""How many images one pass of the proxy may hold, by the memory that a pass keeps for the way back."""

from __future__ import annotations

import torch
from torch import Tensor

from debride.errors import ModelError
from debride.proxy.interpreter import Proxy

_CPU_BYTES = 256 << 20
_CPU_MOST = 64
"""Larger batches are no faster on a processor: their tensors leave its caches."""
_CUDA_SHARE = 0.25
"""Of a GPU's memory; onnxruntime has its own, and the way back holds gradients beside what is kept for it."""
_CUDA_MOST = 4096


def images_per_pass(proxy: Proxy) -> int:
    """The most images that one pass, forward and backward, should hold where `proxy` computes; at least 1.

    The memory of the whole machine or GPU decides, not what is free just now: the same command on the same machine then
    computes in the same batches.
    """
    most = _CUDA_MOST if proxy.device.type == "cuda" else _CPU_MOST
    together = proxy.fixed_batch or 1
    fit = pass_bytes(str(proxy.device)) // max(1, bytes_kept(proxy) // together)
    return max(1, together, min(most, fit) // together * together)


def pass_bytes(device: str) -> int:
    """The bytes that what one pass holds may take on `device` ("cpu", "cuda:N")."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return int(_CUDA_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return _CPU_BYTES  # of a GPU that onnxruntime sees and torch does not, this much at least can be hoped for


def bytes_kept(proxy: Proxy) -> int:
    """Bytes that a pass of one image (or of the graph's fixed batch) keeps until its way back, weights aside.

    Raises:
        ModelError: no gradient reaches the image.
    """
    weights = {tensor.untyped_storage().data_ptr() for tensor in proxy.buffers()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    shape = (1, proxy.spec.depth, *proxy.spec.size)
    image = torch.full(shape, 0.5, device=proxy.device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scores = proxy(image)
    if not scores.requires_grad:
        raise ModelError(
            "no gradient reaches the image: its values are rounded or cast to integers on the way, and no trigger can "
            "be searched for; export the model in float32"
        )
    return sum(kept.values())
