"""The requests that bench_serving.py fires: for each model and kind of body, debride's and the rival's."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort

ROOT = Path(__file__).resolve().parents[1]
MANY = 16
"""Different images per case: none is sent twice in a row."""
_BOUNDARY = "----------------debride"


@dataclass(frozen=True, kw_only=True)
class Requests:
    """POST requests to one path: headers that all share, and their bodies."""

    path: str
    headers: dict[str, str]
    bodies: Sequence[bytes]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model and one kind of body, as each of both servers wants it."""

    name: str
    model: Path
    ours: Requests
    rival: Requests
    patience: int = 1
    """How many times as long as others it is measured: where a batch takes a second."""


def write_script(requests: Requests, script: Path) -> Path:
    """A script for wrk that sends the bodies in turn."""
    lines = ["local bodies = {"]
    for at, body in enumerate(requests.bodies):
        file = script.with_suffix(f".{at}")
        file.write_bytes(body)
        lines.append(f"  (function() local f = assert(io.open({json.dumps(str(file))}, 'rb')) local b = f:read('*a')")
        lines.append("    f:close() return b end)(),")
    lines += ["}", "wrk.method = 'POST'"]
    lines += [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in requests.headers.items()]
    # Formatted once, so that the client's part of the machine stays small.
    lines += ["local ready, at = {}, 0", "function init(args)"]
    lines += ["  for i, body in ipairs(bodies) do ready[i] = wrk.format(nil, nil, nil, body) end", "end"]
    lines += ["function request()", "  at = at % #ready + 1", "  return ready[at]", "end"]
    script.write_text("\n".join(lines))
    return script


def cases(shared: Path, folder: Path) -> Iterator[Case]:
    """All cases whose models are there; those made here go to `folder`."""
    fashion = ROOT / "samples" / "fashion-backdoored.onnx"
    greys = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in _first(ROOT / "samples" / "images")]
    yield from _of_model("fashion, 28x28", fashion, greys, {"png": _png})
    photos = {"png": _png, "jpeg": _jpeg, "jpeg 224x224": _photo}
    for name, data, formats in (
        ("cifar-wrn-grid5", "cifar10_test", photos),
        ("gtsrb-resnet-clean", "gtsrb_test", {"png": _png}),
    ):
        model = shared / "vendor" / f"{name}.onnx"
        if not model.is_file():
            print(f"<!-- skipped: {model.name} is not in {model.parent} -->")
            continue
        with np.load(shared / "data" / f"{data}.npz") as archive:
            small = [image[:, :, ::-1] for image in archive["x"][:MANY]]
        yield from _of_model(f"{name}, 32x32", model, small, formats)
    scenes = [_scene(seed) for seed in range(MANY)]
    for case in _of_model("resnet18, 224x224", _resnet18(folder), scenes, {"jpeg": _jpeg}):
        yield replace(case, patience=5)


def _of_model(
    name: str, model: Path, images: Sequence[np.ndarray], formats: dict[str, Callable[[np.ndarray], bytes]]
) -> Iterator[Case]:
    for kind, encode in formats.items():
        files = [encode(image) for image in images]
        forms = [_form(file) for file in files]
        form_headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        rival = Requests(path="/classify", headers=form_headers, bodies=forms)
        for how, headers, bodies in (
            ("as body", {"Content-Type": "application/octet-stream"}, files),
            ("as form", form_headers, forms),
        ):
            classify = Requests(path="/v2/models/m/classify", headers=headers, bodies=bodies)
            yield Case(name=f"{name}, {kind} {how}", model=model, ours=classify, rival=rival)
    yield from _tensors(name, model, images)


def _tensors(name: str, model: Path, images: Sequence[np.ndarray]) -> Iterator[Case]:
    entry = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()[0]
    rows = [np.float32(np.atleast_3d(image).transpose(2, 0, 1)[None]) / np.float32(255) for image in images]
    binary, heads = [], set()
    for row in rows:
        described = {"name": entry.name, "shape": list(row.shape), "datatype": "FP32"}
        head = json.dumps({"inputs": [{**described, "parameters": {"binary_data_size": row.nbytes}}]}).encode()
        heads.add(len(head))
        binary.append(head + row.tobytes())
    (length,) = heads
    octets = {"Content-Type": "application/octet-stream"}
    yield Case(
        name=f"{name}, binary tensor",
        model=model,
        ours=Requests(
            path="/v2/models/m/infer", headers=octets | {"Inference-Header-Content-Length": str(length)}, bodies=binary
        ),
        rival=Requests(path="/infer_raw", headers=octets, bodies=[row.tobytes() for row in rows]),
    )
    if rows[0].size > 10_000:  # 1.5 million characters each: nobody sends photos so
        return
    jsons = [
        json.dumps(
            {"inputs": [{"name": entry.name, "shape": row.shape, "datatype": "FP32", "data": row.ravel().tolist()}]}
        ).encode()
        for row in rows
    ]
    headers = {"Content-Type": "application/json"}
    yield Case(
        name=f"{name}, JSON tensor",
        model=model,
        ours=Requests(path="/v2/models/m/infer", headers=headers, bodies=jsons),
        rival=Requests(
            path="/infer", headers=headers, bodies=[json.dumps({"data": row.tolist()}).encode() for row in rows]
        ),
    )


def _form(file: bytes) -> bytes:
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="image"\r\n'
    return f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + file + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _first(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.png"))
    return files[:: len(files) // MANY][:MANY]


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def _photo(image: np.ndarray) -> bytes:
    """A small image as the larger file that a camera would send."""
    return _jpeg(cv2.resize(image, (224, 224), interpolation=cv2.INTER_CUBIC))


def _scene(seed: int) -> np.ndarray:
    """An image (224, 224, 3) uint8 with a photo's spectrum: most of it coarse, some of it fine."""
    rng = np.random.default_rng(seed)
    coarse = [
        cv2.resize(rng.normal(size=(n, n, 3)), (224, 224), interpolation=cv2.INTER_CUBIC) / n for n in (4, 16, 64)
    ]
    return np.clip(128 + 160 * np.sum(coarse, axis=0) + rng.normal(0, 3, (224, 224, 3)), 0, 255).astype(np.uint8)


def _resnet18(folder: Path) -> Path:
    """ResNet-18 of the paper with random weights: what it answers is of no matter here."""
    import torch

    sys.path.insert(0, str(ROOT / "tests"))
    from architectures_residual import resnet18
    from exports import export

    path = folder / "resnet18.onnx"
    torch.manual_seed(0)
    module = resnet18(64, imagenet=True, classes=1000).eval()
    path.write_bytes(export(module, (3, 224, 224), exporter="torchscript", opset=17).SerializeToString())
    return path
