"""Which models of which framework become ONNX, how equal, and what the rest of debride makes of the graphs.

Run `make bench-adapters`. Small networks of five architectures (and a few special ones) are made with random weights
and saved in every format that the adapters read; each is converted by `debride convert` in a process of its own. With
`--shared`, the vendor models of other frameworks too. "Difference" is that of onnxruntime from the framework, as a
share of the scores' spread, "proxy" that of debride's differentiable proxy from onnxruntime, as a share of their size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np

from debride.errors import DebrideError
from debride.graph.channels import find_groups
from debride.graph.read import read_model
from debride.proxy.interpreter import Proxy
from debride.proxy.parity import check_parity
from debride.sessions import Runtime, Session, predictor
from debride.spec import SpecFlags, declare, resolve_spec
from vendor import ARCHITECTURES, ROOT, manifest, parser

TESTS = ROOT / "tests"
FAMILIES = ("resnet", "mobilenet", "densenet", "vit", "convnext")
HEAD = ("saved as", "model", "difference", "same class", "groups", "layers refused", "proxy", "seconds")
PACKAGES = ("torch", "onnxscript", "keras", "h5py", "tensorflow-cpu", "tf2onnx", "onnx", "onnxruntime")
MAKE_TORCH = """
import sys, torch, safetensors.torch, torch_zoo
folder, name = sys.argv[1:]
net, x = torch_zoo.network(name), torch.rand(2, *torch_zoo.SHAPE)
torch.export.save(torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)), f"{folder}/{name}.pt2")
torch.jit.script(net).save(f"{folder}/{name}-scripted.pt")
torch.jit.trace(net, x, check_trace=False).save(f"{folder}/{name}-traced.pt")
torch.save(net.state_dict(), f"{folder}/{name}.pth")
safetensors.torch.save_file(net.state_dict(), f"{folder}/{name}.safetensors")
"""
MAKE_KERAS = """
import sys, keras_zoo
folder, name = sys.argv[1:]
model = keras_zoo.build(name)
model.save(f"{folder}/{name}.keras")
model.save(f"{folder}/{name}.h5")
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file to convert: what it is saved as, the flags, and the environment (which backend)."""

    kind: str
    name: str
    path: Path
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def made(code: str, folder: Path, name: str, **environment: str) -> None:
    """Runs `code`, which saves the model `name` into `folder`, in a process of its own."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", code, str(folder), name]
    subprocess.run(command, check=True, env=around(environment), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def around(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child that can import the zoo."""
    return {**os.environ, **environment, "PYTHONPATH": str(TESTS), "TF_CPP_MIN_LOG_LEVEL": "3"}


def torch_cases(work: Path) -> Iterator[Case]:
    """Both of PyTorch's exporters: `.pt2` and weights go through torch.export, TorchScript through the other."""
    for name in FAMILIES:
        made(MAKE_TORCH, work / "torch", name)
        build = work / "torch" / f"{name}.py"
        build.write_text(f"import torch_zoo\n\ndef build():\n    return torch_zoo.network({name!r}, seed=1)\n")
        weights = ("--architecture", f"{build}:build", "--input-shape", "3,32,32")
        shape = ("--input-shape", "3,32,32")
        for kind, ending, flags in (
            ("torch.export", ".pt2", ()),
            ("TorchScript, scripted", "-scripted.pt", shape),
            ("TorchScript, traced", "-traced.pt", shape),
            ("state dict", ".pth", weights),
            ("safetensors", ".safetensors", weights),
        ):
            yield Case(kind=kind, name=name, path=work / "torch" / f"{name}{ending}", flags=flags)


def keras_cases(work: Path) -> Iterator[Case]:
    """Whole models of Keras 3, with the TensorFlow and with the PyTorch backend."""
    for backend in ("tensorflow", "torch"):
        names = [*FAMILIES, "sequential", "nested", "efficientnet", *(["channels_first"] if backend == "torch" else [])]
        for name in names:
            made(MAKE_KERAS, work / backend, name, KERAS_BACKEND=backend)
            for suffix in ("keras", "h5") if name in ("resnet", "mobilenet") else ("keras",):
                yield Case(
                    kind=f".{suffix}, {backend} backend",
                    name=name,
                    path=work / backend / f"{name}.{suffix}",
                    environment={"KERAS_BACKEND": backend},
                )


def tensorflow_cases(work: Path) -> Iterator[Case]:
    """SavedModels of TensorFlow 1 and 2, frozen graphs and TFLite."""
    root = work / "tf"
    root.mkdir()
    subprocess.run(
        [sys.executable, str(TESTS / "tf_zoo.py"), str(root)], check=True, env=around({}), capture_output=True
    )
    for path in sorted(root.iterdir()):
        kind = {".pb": "frozen .pb", ".tflite": "TFLite", "": "SavedModel"}.get(path.suffix)
        if kind:
            flags = ("--input-shape", "8,8,3") if path.name == "open" else ()
            yield Case(kind=kind, name=path.stem, path=path, flags=flags)


def vendor_cases(shared: Path) -> Iterator[Case]:
    """The models of other frameworks that others made."""
    for name, entry in (manifest(shared) or {}).items():
        if entry["file"].endswith(".onnx"):
            continue
        images = shared / "data" / f"{entry['data']}_pool.npz"
        flags = ("--images", str(images)) if images.is_file() else ()
        flags += ("--architecture", ARCHITECTURES[name.split(":")[0]]) if "architecture" in entry else ()
        yield Case(kind="vendor", name=entry["file"], path=shared / "vendor" / entry["file"], flags=flags)


def row(case: Case, output: Path) -> tuple[str, ...]:
    """One line of the table."""
    code = "from debride.cli import main; main()"
    command = [sys.executable, "-c", code, "convert", str(case.path), "-o", str(output), "--json", "--quiet"]
    started = perf_counter()
    ran = subprocess.run(
        [*command, *case.flags], check=False, env=around(case.environment), capture_output=True, text=True
    )
    seconds = f"{perf_counter() - started:.0f}"
    if ran.returncode:
        return (
            case.kind,
            case.name,
            told(ran.stderr),
            *["-"] * 4,
            seconds,
        )
    parity = json.loads(ran.stdout)["conversion"]["parity"][-1]
    same = f"{round(parity['same_class'] * parity['n'])} of {parity['n']}"
    return (case.kind, case.name, f"{parity['difference']:.1e}", same, *understood(output), seconds)


def told(stderr: str) -> str:
    """Why a conversion failed, without the temporary path and what would break the table."""
    last = (stderr.strip().splitlines() or ["?"])[-1].replace("|", "/")
    return last.split(": ", 3)[-1]


def understood(graph: Path) -> tuple[str, str, str]:
    """Channel groups, refused layers, and the proxy's difference from onnxruntime."""
    try:
        model = read_model(graph)
        session = Session(model.working.SerializeToString(), Runtime(2), graph.name)
        declared = declare(session)
        flags = SpecFlags(range=None if declared.source != "measured" else (0.0, 1.0))
        spec = resolve_spec(session, flags=flags).spec
        groups, refused = find_groups(model.graph, spec.output)
        images = np.random.default_rng(0).random((4, spec.depth, *spec.size), np.float32)
        parity = check_parity(Proxy(model.graph, spec), predictor(session, spec), images)
    except DebrideError as error:
        return ("-", "-", str(error).replace("|", "/"))
    # The last layer, which makes the scores themselves, is never a player.
    return (str(len(groups)), str(len({r.layer for r in refused}) - 1), f"{parity:.1e}")


def main() -> None:
    """Prints the table as Markdown, line by line as the conversions end."""
    options = parser(__doc__).parse_args()
    print(", ".join(f"{package} {version(package)}" for package in PACKAGES), end="\n\n")
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
    with tempfile.TemporaryDirectory() as made_here:
        work = Path(made_here)
        cases = (*torch_cases(work), *keras_cases(work), *tensorflow_cases(work), *vendor_cases(options.shared))
        for number, case in enumerate(cases):
            print("| " + " | ".join(row(case, work / f"{number}.onnx")) + " |", flush=True)


if __name__ == "__main__":
    main()
