"""What a Keras model says of its images: layout, size, and the range that its own first layer expects. No guesses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from debride_adapters.keras.signature import IMAGE, Signature

_RESCALINGS = {
    (1 / 255, 0.0): (0.0, 255.0),
    (1 / 127.5, -1.0): (0.0, 255.0),
    (1 / 128, -1.0): (0.0, 255.0),
    (2.0, -1.0): (0.0, 1.0),
}
"""(scale, offset) of a first Rescaling -> the range that it brings to 0..1 or -1..1; 128 is EfficientNetV2's."""


def stated_spec(model: Any, signature: Signature) -> dict[str, Any]:
    """The `InputSpec` fields that `model` states.

    A first Rescaling or Normalization stays in the graph, so it gives the range of what comes in, and no mean or std.
    """
    spec: dict[str, Any] = {"name": IMAGE}
    if len(signature.outputs) == 1:
        spec["output"] = signature.outputs[0]
    layout = _layout(model, signature.shape)
    if layout is not None:
        spec["layout"] = layout
        *size, depth = signature.shape if layout == "NHWC" else (*signature.shape[1:], signature.shape[0])
        if depth == 1:
            spec["channels"] = "L"
        if None not in size:
            spec["size"] = tuple(size)
    pixels = (0.0, 255.0) if signature.dtype == "uint8" else _range(first_layer(model))
    if pixels is not None:
        spec["range"] = pixels
    return spec


def _layout(model: Any, shape: tuple[int | None, ...]) -> str | None:
    ends = [name for name, depth in (("NCHW", shape[0]), ("NHWC", shape[-1])) if depth in (1, 3)]
    if len(ends) == 1:
        return ends[0]
    formats = {layer.data_format for layer in _layers(model) if hasattr(layer, "data_format")}
    said = {"channels_first": "NCHW", "channels_last": "NHWC"}.get(formats.pop()) if len(formats) == 1 else None
    return said if said in ends else None


def _layers(model: Any) -> Iterator[Any]:
    for layer in getattr(model, "layers", ()):
        yield from (_layers(layer) if hasattr(layer, "layers") else (layer,))


def first_layer(model: Any) -> Any | None:
    """The one layer that reads the image, within nested models too; None where there is no one such layer."""
    import keras

    if isinstance(model, keras.Sequential):
        first = model.layers[0] if model.layers else None
    else:
        first = _only_reader(model) if getattr(model, "inputs", None) else None
    return first_layer(first) if isinstance(first, keras.Model) else first


def _only_reader(model: Any) -> Any | None:
    import keras

    # The graph between layers is public only as the configuration that is saved.
    config = model.get_config()
    images = [part for part in keras.tree.flatten(config.get("input_layers")) if isinstance(part, str)]
    readers = [part["name"] for part in config.get("layers", ()) if {*images} & {*_sources(part["inbound_nodes"])}]
    by_name = {layer.name: layer for layer in model.layers}
    return by_name.get(readers[0]) if len(readers) == 1 else None


def _sources(node: Any) -> Iterator[str]:
    """The names of all layers whose output is an argument somewhere in `node`, as Keras serialises it."""
    if isinstance(node, dict):
        history = node.get("keras_history")
        if history:
            yield history[0]
        for value in node.values():
            yield from _sources(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _sources(value)


def _range(layer: Any | None) -> tuple[float, float] | None:
    import keras

    if isinstance(layer, keras.layers.Rescaling):
        return _rescaled(layer)
    if isinstance(layer, keras.layers.Normalization) and not layer.invert:
        return _normalised(layer)
    return None


def _rescaled(layer: Any) -> tuple[float, float] | None:
    import numpy as np

    for (scale, offset), pixels in _RESCALINGS.items():
        if np.allclose(layer.scale, scale, rtol=1e-3) and np.allclose(layer.offset, offset, atol=1e-6):
            return pixels
    return None


def _normalised(layer: Any) -> tuple[float, float] | None:
    """The range that the channels' means betray: those of pixels in 0..255 all exceed 1."""
    import keras

    if layer.mean is None or layer.variance is None:
        return None
    mean, variance = (keras.ops.convert_to_numpy(value) for value in (layer.mean, layer.variance))
    if (mean > 1).all():
        return (0.0, 255.0)
    if ((mean > 0) & (mean < 1)).all() and ((variance > 0) & (variance < 1)).all():
        return (0.0, 1.0)
    return None
