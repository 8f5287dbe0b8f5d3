"""Tiny ONNX classifiers whose answers are known: an image belongs to the nearest colour of `PALETTE`."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from debride.types import InputSpec, Samples

PALETTE = np.array([[0.9, 0.2, 0.1], [0.1, 0.8, 0.3], [0.2, 0.1, 0.7], [0.8, 0.8, 0.9]], np.float32)
GREYS = np.array([[0.1], [0.4], [0.7], [0.95]], np.float32)


def tiny_classifier(
    spec: InputSpec,
    *,
    batch: int | str = "batch",
    softmax: bool = False,
    dynamic: bool = False,
    metadata: dict[str, str] | None = None,
    outputs: tuple[str, ...] = ("scores",),
    sharpness: float = 20.0,
) -> bytes:
    """A model that wants its input as `spec` says and gives (N, 4) scores: minus the squared distance to a colour."""
    centres = (GREYS if spec.depth == 1 else PALETTE).astype(np.float32)
    scale, shift = spec.affine()
    constants = {
        "shift": shift[None],
        "scale": scale[None],
        "order": np.arange(spec.depth)[:: -1 if spec.channels == "BGR" else 1].copy(),
        "weight": (2 * sharpness * centres).T.copy(),
        "bias": -sharpness * (centres**2).sum(axis=1),
    }
    nodes = [helper.make_node("Transpose", [spec.name], ["planes"], perm=[0, 3, 1, 2])] if spec.layout == "NHWC" else []
    nodes += [
        helper.make_node("Sub", ["planes" if nodes else spec.name, "shift"], ["shifted"]),
        helper.make_node("Div", ["shifted", "scale"], ["unit"]),
        helper.make_node("Gather", ["unit", "order"], ["rgb"], axis=1),
        helper.make_node("GlobalAveragePool", ["rgb"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits" if softmax else outputs[0]]),
    ]
    nodes += [helper.make_node("Softmax", ["logits"], [outputs[0]], axis=1)] if softmax else []
    nodes += [helper.make_node("Identity", [outputs[0]], [name]) for name in outputs[1:]]
    height, width = ("h", "w") if dynamic else spec.size
    dims = [batch, spec.depth, height, width] if spec.layout == "NCHW" else [batch, height, width, spec.depth]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, len(centres)]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def tiny_spec(**changes: object) -> InputSpec:
    """NCHW RGB 0..1 of 6x5 pixels, with `changes`."""
    fields = {"name": "image", "layout": "NCHW", "channels": "RGB", "size": (6, 5), "output": "scores", **changes}
    return InputSpec(**fields)  # type: ignore[arg-type]


def tiny_samples(per_class: int, depth: int = 3, size: tuple[int, int] = (6, 5), seed: int = 0) -> Samples:
    """Noisy images of random colours, `per_class` of each; the label is the nearest colour, so the truth scores 1."""
    rng = np.random.default_rng(seed)
    centres = GREYS if depth == 1 else PALETTE
    noise = rng.uniform(-0.04, 0.04, (400 * per_class, depth, *size))
    spread = rng.uniform(-0.3, 0.3, (400 * per_class, depth, 1, 1))
    near = centres[rng.integers(len(centres), size=400 * per_class)][:, :, None, None]
    images = np.clip(near + spread + noise, 0, 1).astype(np.float32)
    distance = ((images.mean(axis=(2, 3))[:, None] - centres) ** 2).sum(axis=2)
    # Images between two colours are left out: there the last bit decides.
    two = np.sort(distance, axis=1)[:, :2]
    labels = np.where(two[:, 1] - two[:, 0] > 0.02, distance.argmin(axis=1), -1)
    rows = np.concatenate([np.flatnonzero(labels == k)[:per_class] for k in range(len(centres))])
    return Samples(images=images[rows], labels=labels[rows])
