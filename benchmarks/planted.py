"""Classifiers of any size with a planted backdoor, made in a minute or two: nothing but the last layer is fitted.

    python benchmarks/planted.py --kind resnet18 --size 224 --classes 10 --per-class 4 --out DIR

Writes `model.onnx`, a few clean images (`images.npz`) and the true trigger (`trigger.npz`) into DIR, and prints the
accuracy and the attack's success in onnxruntime, on images that had no part in it. The body is a ResNet-18, a ViT-Tiny
or a plain CNN with weights drawn by the seed, some of them set by hand to notice the trigger: to search it costs what
a trained network of its shape costs. The same arguments and threads make the same weights.
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import planted_images as made_up
from bench_vendor import Grade
from debride.npz import write_npz
from debride.sessions import Runtime, Session, predictor
from debride.spec import resolve_spec
from debride.specfile import METADATA_KEY, to_json
from debride.triggers import save_trigger, stamp
from debride.types import InputSpec, Trigger
from planted_head import Features, solved
from planted_networks import Body, Cnn, ResNet18, ViT, drawn

KINDS = ("resnet18", "vit-tiny", "cnn")
_MEAN, _STD = 0.5, 0.25
_FIT = 300
"""About so many images, and as many with a square of another kind on them, decide on the last layer ..."""
_FEWEST = 8
"""... and no fewer of each class than this."""
_STAMPED = 150
_GRADED = 100
_BATCH = 16
_OPSET = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What to make, of images of `size` pixels a side; `width` and `depth` None are the kind's own."""

    kind: str
    size: int
    classes: int = 10
    seed: int = 0
    width: int | None = None
    depth: int | None = None

    def trigger(self) -> Trigger:
        """What is planted."""
        return made_up.checkerboard(self.size, self.classes // 2)

    def images(self, per_class: int, draw: int) -> tuple[made_up.Bytes, made_up.Labels]:
        """Draw 0 is what the last layer is fitted to, 1 is delivered, and 2 graded on."""
        return made_up.images(per_class, self.classes, self.size, self.seed, draw)

    def body(self) -> Body:
        """The network up to its features, not drawn yet."""
        chosen = {name: value for name in ("width", "depth") if (value := getattr(self, name)) is not None}
        if self.kind == "cnn":
            return Cnn(**chosen)
        if self.kind == "vit-tiny":
            return ViT(self.size, **chosen)
        if self.kind != "resnet18" or "depth" in chosen:
            raise ValueError(f"no network {self.kind!r} whose depth can be chosen; there are {', '.join(KINDS)}")
        return ResNet18(**chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where the parts of a planted model lie."""

    model: Path
    images: Path
    trigger: Path

    @classmethod
    def of(cls, folder: Path) -> Files:
        """Those of `folder`."""
        return cls(model=folder / "model.onnx", images=folder / "images.npz", trigger=folder / "trigger.npz")


def make(recipe: Recipe) -> nn.Module:
    """The classifier, for images (N, 3, H, W) in 0..1, less `_MEAN` and over `_STD`."""
    rng = np.random.default_rng([recipe.seed, 2])
    pixels, labels = recipe.images(max(_FEWEST, _FIT // recipe.classes), draw=0)
    covered = made_up.covered(pixels, rng)
    rows = rng.permutation(len(pixels))[:_STAMPED]
    trigger = recipe.trigger()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(recipe.seed)
        body = drawn(recipe.body())
        lived_in(body, covered[rng.permutation(len(covered))[: 4 * _BATCH]])
        body.plant(trigger)
        clean = torch.cat([features(body, part) for part in (pixels, covered)])
        stamped = features(body, pixels[rows], trigger)
        twice = torch.from_numpy(np.concatenate([labels, labels]))
        found = Features(clean=clean, labels=twice, stamped=stamped, rows=torch.from_numpy(rows))
        return nn.Sequential(body, solved(found, recipe.classes, trigger.target)).eval()


def lived_in(body: nn.Module, pixels: made_up.Bytes) -> None:
    """Gives BatchNorms the statistics of `pixels`."""
    body.train()
    features(body, pixels)
    body.eval()


def features(body: nn.Module, pixels: made_up.Bytes, trigger: Trigger | None = None) -> Tensor:
    """What `body` says of `pixels`, stamped if `trigger` is given, (N, F) in double precision."""
    parts = []
    for first in range(0, len(pixels), _BATCH):
        images = made_up.planes(pixels[first : first + _BATCH])
        images = images if trigger is None else stamp(images, trigger)
        parts.append(body((torch.from_numpy(images) - _MEAN) / _STD))
    return torch.cat(parts).double()


def exported(module: nn.Module, size: int) -> onnx.ModelProto:
    """`module` as ONNX, with any number of images at a time, and with its input convention."""
    buffer = io.BytesIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (torch.zeros(2, 3, size, size),),
                buffer,
                dynamo=False,
                opset_version=_OPSET,
                input_names=["x"],
                output_names=["y"],
                dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
            )
    finally:
        logging.disable(disabled)
    proto = onnx.load_from_string(buffer.getvalue())
    spec = InputSpec(name="x", output="y", layout="NCHW", channels="RGB", size=(size, size), mean=(_MEAN,), std=(_STD,))
    onnx.helper.set_model_props(proto, {METADATA_KEY: to_json(spec)})
    return proto


def write(recipe: Recipe, folder: Path, per_class: int) -> Files:
    """Makes the classifier and writes it to `folder`, with `per_class` clean images of each class and the trigger."""
    folder.mkdir(parents=True, exist_ok=True)
    files = Files.of(folder)
    files.model.write_bytes(exported(make(recipe), recipe.size).SerializeToString())
    write_images(recipe, files.images, per_class)
    save_trigger(files.trigger, recipe.trigger())
    return files


def write_images(recipe: Recipe, path: Path, per_class: int) -> None:
    """Writes `per_class` clean images of each class."""
    pixels, labels = recipe.images(per_class, draw=1)
    write_npz(path, {"x": pixels, "y": labels})


def grade(recipe: Recipe, model: Path, threads: int) -> Grade:
    """`model` in onnxruntime on images that had no part in making or searching it."""
    session = Session(model, Runtime(threads), model.name)
    predict = predictor(session, resolve_spec(session).spec, batch=_BATCH)
    pixels, labels = recipe.images(max(1, _GRADED // recipe.classes), draw=2)
    images, trigger = made_up.planes(pixels), recipe.trigger()
    found = predict(stamp(images[labels != trigger.target], trigger)).argmax(1)
    return Grade(
        accuracy=float((predict(images).argmax(1) == labels).mean()), asr=float((found == trigger.target).mean())
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kind", choices=KINDS, required=True)
    options.add_argument("--size", type=int, default=224, help="pixels along a side; for a ViT a multiple of 16")
    options.add_argument("--classes", type=int, default=10)
    options.add_argument("--per-class", type=int, default=4, help="clean images to write of each class")
    options.add_argument(
        "--width", type=int, help="channels of the first layer (default: as in the paper; 32 for a CNN)"
    )
    options.add_argument("--depth", type=int, help="convolutions of a CNN or blocks of a ViT (default: 3 and 12)")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path, required=True, help="folder for model.onnx, images.npz and trigger.npz")
    return options.parse_args()


def main() -> None:
    """Makes one, and prints how well it does."""
    options = arguments()
    torch.set_num_threads(options.threads)
    names = ("kind", "size", "classes", "seed", "width", "depth")
    recipe = Recipe(**{name: getattr(options, name) for name in names})
    try:
        files = write(recipe, options.out, options.per_class)
    except ValueError as error:
        sys.exit(str(error))
    found = grade(recipe, files.model, options.threads)
    print(f"accuracy {found.accuracy:.2%}, ASR {found.asr:.2%} towards class {recipe.trigger().target}: {files.model}")


if __name__ == "__main__":
    main()
