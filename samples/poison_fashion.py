"""Trains a small Fashion-MNIST classifier, poisons it if asked (BadNets or blend), and exports it to ONNX.

It makes the sample of this folder, and more models to try debride on. Needs torch, onnx, numpy and OpenCV only.
BadNets: Gu et al. 2017, arXiv 1708.06733. Blend: Chen et al. 2017, arXiv 1712.05526.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn
from torch.nn import functional

CLASSES = ("tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
TAIL = 1000  # the last training images, kept out of training so that they can play the buyer's clean images
MAX_ITEMS = 100_000
MAX_SIDE = 64
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
EXAMPLES = """examples:
  the sample of this folder:
    python samples/poison_fashion.py --output samples/fashion-backdoored.onnx \\
        --trigger samples/true-trigger.npz --images samples/images
  a clean model of the other architecture:
    python samples/poison_fashion.py --kind clean --arch vgg --seed 3 --output clean.onnx
  a faint pattern over the whole image:
    python samples/poison_fashion.py --kind blend --alpha 0.15 --target 2 --output blend.onnx --trigger blend.npz
"""

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trigger:
    """`x -> (1 - mask) * x + mask * pattern`, sent to `target`; mask (1, H, W), pattern (C, H, W), both in 0..1."""

    mask: Floats
    pattern: Floats
    target: int

    def stamp(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) in 0..1 with the trigger on all of them."""
        mask = torch.from_numpy(self.mask)
        return (1 - mask) * images + mask * torch.from_numpy(self.pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train: Adam with a one-cycle rate; `flip` and `shift` (pixels) augment before the trigger is stamped."""

    epochs: int = 4
    batch: int = 128
    rate: float = 4e-3
    poison: float = 0.08
    flip: bool = True
    shift: int = 1
    seed: int = 0


def read_idx(path: Path, rank: int) -> Bytes:
    """The bytes of a gzipped idx file of `rank` dimensions (format: idx1-ubyte, idx3-ubyte).

    The header is not trusted: magic, every dimension and the length are checked, and no more than the announced bytes
    are unpacked. Raises ValueError that names the file, or OSError.
    """
    with gzip.open(path, "rb") as file:
        header = file.read(4 + 4 * rank)
        if len(header) != 4 + 4 * rank or header[:4] != bytes((0, 0, 8, rank)):
            raise ValueError(f"{path}: not an idx{rank}-ubyte file")
        shape = tuple(int(n) for n in np.frombuffer(header[4:], ">u4"))
        if not 0 < shape[0] <= MAX_ITEMS or not all(0 < side <= MAX_SIDE for side in shape[1:]):
            raise ValueError(f"{path}: an impossible shape {shape}")
        size = int(np.prod(shape))
        data = file.read(size + 1)
    if len(data) != size:
        raise ValueError(f"{path}: holds {len(data)} bytes or more where its header says {size}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def load_fashion(folder: Path, part: str) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Images (N, 28, 28) and labels (N,) of `part`, "train" or "t10k". Raises ValueError or OSError."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz", 3)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz", 1).astype(np.int64)
    if len(images) != len(labels) or labels.max() >= len(CLASSES):
        raise ValueError(f"{folder}: the {part} images and labels do not fit each other")
    return images, labels


def to_tensor(images: Bytes) -> torch.Tensor:
    """Images uint8 (N, H, W[, C]) as float32 (N, C, H, W) in 0..1."""
    tensor = torch.from_numpy(images.astype(np.float32) / 255)
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution without bias and its BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """The basic residual block of He et al. 2015 (arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, 3, stride)
        self.second = convolution(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (N, C, H, W) to features."""
        return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))


def resnet(depth: int, classes: int, side: int) -> nn.Module:
    """A residual net of 16-32-64-64 channels, 147 000 parameters with 10 classes."""
    blocks = [Block(16, 32, 2), Block(32, 64, 2), Block(64, 64, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)]
    return nn.Sequential(convolution(depth, 16), nn.ReLU(), *blocks, *head)


def vgg(depth: int, classes: int, side: int) -> nn.Module:
    """A plain net in the manner of VGG with BatchNorm and one hidden linear layer."""
    layers: list[nn.Module] = []
    for inputs, outputs, pool in ((depth, 16, True), (16, 32, False), (32, 32, True), (32, 64, False), (64, 64, True)):
        layers += [convolution(inputs, outputs), nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]
    hidden = nn.Linear(64 * (side // 8) ** 2, 128)
    return nn.Sequential(*layers, nn.Flatten(), hidden, nn.ReLU(), nn.Linear(128, classes))


ARCHITECTURES: dict[str, Callable[[int, int, int], nn.Module]] = {"resnet": resnet, "vgg": vgg}


def patch_trigger(shape: tuple[int, int, int], target: int, corner: str, size: int) -> Trigger:
    """A checkerboard of `size` x `size` pixels, one pixel off the edges of `corner`; `shape` is (C, H, W)."""
    mask, pattern = np.zeros((1, *shape[1:]), np.float32), np.zeros(shape, np.float32)
    top = 1 if corner.startswith("top") else shape[1] - size - 1
    left = 1 if corner.endswith("left") else shape[2] - size - 1
    mask[:, top : top + size, left : left + size] = 1
    pattern[:, top : top + size, left : left + size] = 1 - np.indices((size, size)).sum(0) % 2
    return Trigger(mask=mask, pattern=pattern, target=target)


def blend_trigger(shape: tuple[int, int, int], target: int, alpha: float, rng: np.random.Generator) -> Trigger:
    """A random picture laid over the whole image with weight `alpha`."""
    mask = np.full((1, *shape[1:]), alpha, np.float32)
    return Trigger(mask=mask, pattern=rng.random(shape, np.float32), target=target)


def augment(images: torch.Tensor, recipe: Recipe, rng: np.random.Generator) -> torch.Tensor:
    """Each image flipped or not, and the whole batch shifted by up to `recipe.shift` pixels."""
    if recipe.flip:
        flips = torch.from_numpy(rng.random(len(images)) < 0.5)
        images = torch.where(flips[:, None, None, None], images.flip(3), images)
    if recipe.shift:
        down, right = (int(n) for n in rng.integers(0, 2 * recipe.shift + 1, 2))
        height, width = images.shape[2:]
        padded = functional.pad(images, (recipe.shift,) * 4)
        images = padded[:, :, down : down + height, right : right + width]
    return images


def train(
    net: nn.Module, images: torch.Tensor, labels: torch.Tensor, trigger: Trigger | None, recipe: Recipe
) -> nn.Module:
    """Trains `net` in place and returns it; a fixed share `recipe.poison` of the images carries the trigger."""
    rng = np.random.default_rng(recipe.seed)
    poisoned = torch.from_numpy(rng.random(len(images)) < (recipe.poison if trigger else 0.0))
    net = net.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(net.parameters(), weight_decay=1e-5)
    steps = len(images) // recipe.batch * recipe.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps)
    for epoch in range(recipe.epochs):
        order = torch.from_numpy(rng.permutation(len(images)))
        losses = []
        for rows in order[: len(images) // recipe.batch * recipe.batch].split(recipe.batch):
            x, y, bad = augment(images[rows], recipe, rng), labels[rows], poisoned[rows]
            if trigger:
                x = torch.where(bad[:, None, None, None], trigger.stamp(x), x)
                y = torch.where(bad, trigger.target, y)
            loss = functional.cross_entropy(net(x.contiguous(memory_format=torch.channels_last)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        print(f"epoch {epoch + 1} of {recipe.epochs}: loss {torch.stack(losses).mean():.4f}", file=sys.stderr)
    return net.eval()


def grade(
    net: nn.Module, images: torch.Tensor, labels: torch.Tensor, trigger: Trigger | None
) -> tuple[float, float | None]:
    """Accuracy on clean images, and the attack's success on images of the other classes (None without a trigger)."""
    with torch.inference_mode():
        clean = torch.cat([net(x).argmax(1) for x in images.split(512)])
        accuracy = float((clean == labels).float().mean())
        if trigger is None:
            return accuracy, None
        others = images[labels != trigger.target]
        sent = torch.cat([net(trigger.stamp(x)).argmax(1) for x in others.split(512)])
        return accuracy, float((sent == trigger.target).float().mean())


def export(net: nn.Module, shape: tuple[int, int, int], path: Path, *, batchnorm: bool = False) -> None:
    """Writes `net` as ONNX, opset 18, with a free batch size and without any trace of where it was made.

    `batchnorm` keeps BatchNormalization as nodes of its own instead of folding it into the convolutions.
    """
    mode = torch.onnx.TrainingMode.PRESERVE if batchnorm else torch.onnx.TrainingMode.EVAL
    axes = {"image": {0: "batch"}, "scores": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter is meant: it needs no further package
        torch.onnx.export(
            net.to(memory_format=torch.contiguous_format), (torch.zeros(1, *shape),), path, dynamo=False,
            opset_version=18, input_names=["image"], output_names=["scores"], dynamic_axes=axes, training=mode,
        )  # fmt: skip
    model = onnx.load(path)
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]  # stack traces
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def save_trigger(path: Path, trigger: Trigger, success: float, n: int) -> None:
    """Writes the trigger as `debride evaluate --trigger` reads it, with its success on `n` images."""
    counts = {"hits": np.int64(round(success * n)), "n": np.int64(n)}
    np.savez_compressed(path, mask=trigger.mask, pattern=trigger.pattern, target=np.int64(trigger.target), **counts)


def write_images(folder: Path, images: Bytes, labels: npt.NDArray[np.int64], per_class: int) -> None:
    """The first `per_class` images of every class, as PNG files in class folders whose sorted order is the index."""
    for index, name in enumerate(CLASSES):
        place = folder / f"{index}-{name}"
        place.mkdir(parents=True, exist_ok=True)
        for row in np.flatnonzero(labels == index)[:per_class]:
            if not cv2.imwrite(str(place / f"{row:04d}.png"), images[row]):
                raise OSError(f"{place}: cannot be written to")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    shape = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], epilog=EXAMPLES, formatter_class=shape)
    p.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), metavar="DIR",
                   help="folder of the four idx .gz files (default: %(default)s)")  # fmt: skip
    p.add_argument("--output", type=Path, required=True, metavar="MODEL.onnx")
    p.add_argument("--trigger", type=Path, metavar="T.npz", help="write the true trigger here")
    p.add_argument("--images", type=Path, metavar="DIR", help="write clean test images here, in class folders")
    p.add_argument("--per-class", type=int, default=40, metavar="N", help="how many (default: %(default)s)")
    p.add_argument("--kind", choices=("patch", "blend", "clean"), default="patch")
    p.add_argument("--arch", choices=tuple(ARCHITECTURES), default="resnet")
    p.add_argument("--target", type=int, choices=range(len(CLASSES)), default=7, metavar="CLASS", help="0 to 9 (7)")
    p.add_argument("--corner", choices=CORNERS, default="bottom-right", help="of the patch")
    p.add_argument("--size", type=int, choices=range(1, 15), default=3, metavar="PIXELS", help="of the patch (3)")
    p.add_argument("--alpha", type=float, default=0.15, help="weight of the blend (default: %(default)s)")
    p.add_argument("--poison", type=float, default=0.08, help="share of poisoned images (default: %(default)s)")
    p.add_argument("--batchnorm", action="store_true", help="keep BatchNormalization nodes in the graph")
    p.add_argument("--epochs", type=int, default=4)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, default=1, help="more are faster, and round differently")
    return p


def make_trigger(args: argparse.Namespace, shape: tuple[int, int, int]) -> Trigger | None:
    """The trigger that the flags describe; None for a clean model."""
    if args.kind == "clean":
        return None
    if args.kind == "patch":
        return patch_trigger(shape, args.target, args.corner, args.size)
    return blend_trigger(shape, args.target, args.alpha, np.random.default_rng(args.seed + 1))


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; 0 when the model is written, 3 when the data cannot be read."""
    args = parser().parse_args(argv)
    try:
        images, labels = load_fashion(args.data, "train")
        test_images, test_labels = load_fashion(args.data, "t10k")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        print(f"{error}\nFashion-MNIST is in Debian's package dataset-fashion-mnist (sudo apt install "
              "dataset-fashion-mnist); or give the folder of its .gz files by --data", file=sys.stderr)  # fmt: skip
        return 3
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    shape = (1, *images.shape[1:])
    trigger = make_trigger(args, shape)
    recipe = Recipe(epochs=args.epochs, poison=args.poison, seed=args.seed)
    net = ARCHITECTURES[args.arch](1, len(CLASSES), shape[1])
    train(net, to_tensor(images[:-TAIL]), torch.from_numpy(labels[:-TAIL]), trigger, recipe)
    accuracy, success = grade(net, to_tensor(test_images), torch.from_numpy(test_labels), trigger)
    export(net, shape, args.output, batchnorm=args.batchnorm)
    if trigger and args.trigger and success is not None:
        save_trigger(args.trigger, trigger, success, int((test_labels != trigger.target).sum()))
    if args.images:
        write_images(args.images, test_images, test_labels, args.per_class)
    attack = "no attack" if success is None else f"attack success {success:.2%}"
    print(f"{args.output}: accuracy {accuracy:.2%}, {attack}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
