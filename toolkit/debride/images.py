"""Clean images from folders and `.npz` files to `Samples`, drawn and split by a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import ImagesError
from .framing import fitted
from .npz import read_npz
from .pixels import decode, encode, read_file, read_pixels
from .types import FloatArray, IntArray, Samples, frozen_array

if TYPE_CHECKING:
    from .spec import Declared

__all__ = ["LoadedImages", "check_labels", "decode", "draw_per_class", "encode", "load_for", "load_images", "split"]

MAX_VALUES = 1 << 28
# Wider than what is decoded: a file in another image format is an error, not a file to skip in silence.
_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in "png jpg jpeg jpe bmp dib webp ppm pgm pbm pnm tif tiff gif jp2 avif exr hdr".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedImages:
    """What `load_images` read: `images` float32 (N, C, H, W) in 0..1 and `labels` int64 (N,), or None.

    `files` names each image (empty for an `.npz`); `classes` holds the folder names, and `numbered` says whether the
    labels are class indices by name or number (True) or only by the folders' sorted order (False).
    """

    images: FloatArray
    labels: IntArray | None = None
    files: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    numbered: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", frozen_array(self.images))

    def samples(self) -> Samples:
        """The same images and labels as `Samples`."""
        return Samples(images=self.images, labels=self.labels)


def load_for(declared: Declared, path: Path, *, resize: bool = False) -> LoadedImages:
    """`load_images` of `path` as the model that was `declared` takes them."""
    return load_images(
        path,
        depth=declared.depth,
        size=declared.size,
        class_names=declared.class_names,
        resize=resize,
        short_side=declared.fields.short_side,
    )


def load_images(
    path: Path,
    *,
    depth: int | None = None,
    size: tuple[int, int] | None = None,
    class_names: tuple[str, ...] = (),
    resize: bool = False,
    short_side: int | None = None,
    limit: int = MAX_VALUES,
) -> LoadedImages:
    """Clean images from a folder of class folders, a folder of images (no labels), or an `.npz` with `x` and `y`.

    Labels of class folders: the number where all names are integers; the index in `class_names` where all are
    there; else the place in sorted order. Files of another depth are converted; another size is an error unless
    `resize`, and then fitted as when serving, by `short_side` too (see `InputSpec`). Hidden files are ignored.
    `limit` bounds the number of values (N*C*H*W).

    Raises `ImagesError` naming the file and the mend.
    """
    wanted = _Wanted(depth=depth, size=size, resize=resize, short_side=short_side, limit=limit)
    if path.is_dir():
        return _load_folder(path, wanted, class_names)
    if not path.exists():
        raise ImagesError(f"{path}: no such file or folder; give a folder of images or an .npz with x and y")
    if path.suffix != ".npz":
        raise ImagesError(f"{path}: neither a folder nor an .npz; give a folder of images or an .npz with x and y")
    return _load_npz(path, wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What `load_images` is asked for; None: as the first image is."""

    depth: int | None
    size: tuple[int, int] | None
    resize: bool
    short_side: int | None
    limit: int


def _load_folder(root: Path, wanted: _Wanted, class_names: tuple[str, ...]) -> LoadedImages:
    folders, files = _entries(root, root)
    if folders and files:
        raise ImagesError(f"{files[0]}: lies beside class folders; move every image into a folder of its class")
    labels, numbered = _folder_labels(folders, class_names)
    listed: list[tuple[Path, int]] = [(file, 0) for file in files]
    for folder, label in zip(folders, labels, strict=True):
        nested, inside = _entries(folder, root)
        if nested:
            raise ImagesError(f"{nested[0]}: a folder inside a class folder; keep one level of class folders")
        listed += [(file, label) for file in inside]
    if not listed:
        raise ImagesError(f"{root}: holds no image file ({', '.join(sorted(_SUFFIXES))}); give a folder with images")
    images = _stack([file for file, _ in listed], wanted)
    return LoadedImages(
        images=images,
        labels=np.array([label for _, label in listed], np.int64) if folders else None,
        files=tuple(str(file.relative_to(root)) for file, _ in listed),
        classes=tuple(folder.name for folder in folders),
        numbered=numbered,
    )


def _entries(folder: Path, root: Path) -> tuple[list[Path], list[Path]]:
    """Subfolders and image files of `folder`, sorted by name; hidden ones and other files are left out."""
    inside = root.resolve()
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if entry.is_symlink() and not entry.resolve().is_relative_to(inside):
            raise ImagesError(f"{entry}: a link that leads out of {root}; copy the file into the folder")
    folders = [entry for entry in entries if entry.is_dir()]
    return folders, [entry for entry in entries if entry.suffix.lower() in _SUFFIXES and not entry.is_dir()]


def _folder_labels(folders: list[Path], class_names: tuple[str, ...]) -> tuple[list[int], bool]:
    names = [folder.name for folder in folders]
    if all(name.isascii() and name.isdecimal() and len(name) < 10 for name in names):
        return [int(name) for name in names], True
    if all(name in class_names for name in names):
        return [class_names.index(name) for name in names], True
    known = [name for name in names if name in class_names]
    if known:
        stray = next(folder for folder in folders if folder.name not in class_names)
        raise ImagesError(f"{stray}: is none of the model's class names (as {known[0]!r} is); rename the folder")
    return list(range(len(names))), False


def _stack(files: list[Path], wanted: _Wanted) -> FloatArray:
    """All images in one array; depth and size, where None, are those of the first image."""
    stacked: FloatArray | None = None
    for row, file in enumerate(files):
        pixels = read_pixels(read_file(file), str(file))
        if stacked is None:
            stacked = _allocate(len(files), pixels, wanted, file.parent)
        stacked[row] = _fitted(pixels, str(file), stacked, wanted)
    assert stacked is not None  # `files` is never empty
    return stacked


def _allocate(n: int, first: npt.NDArray[Any], wanted: _Wanted, source: Path) -> FloatArray:
    """Room for `n` images, of depth and size as `wanted`, else as the `first` has them."""
    height, width = wanted.size or first.shape[:2]
    depth = wanted.depth or (1 if first.ndim == 2 else first.shape[2])
    if n * depth * height * width > wanted.limit:
        raise ImagesError(
            f"{source}: {n} images of {height}x{width} exceed the limit of {wanted.limit} values; give fewer"
        )
    return np.empty((n, depth, height, width), np.float32)


def _fitted(pixels: npt.NDArray[Any], name: str, stacked: FloatArray, wanted: _Wanted) -> FloatArray:
    depth, height, width = stacked.shape[1:]
    found = pixels.shape[:2]
    if found != (height, width) and not wanted.resize:
        raise ImagesError(
            f"{name}: is {found[0]}x{found[1]} (height x width) and {height}x{width} is wanted; "
            "pass --resize to have images scaled"
        )
    return fitted(pixels, depth, (height, width), wanted.short_side, name)


def _load_npz(path: Path, wanted: _Wanted) -> LoadedImages:
    # One byte a value in x, and labels that never weigh more than that again, headers aside.
    arrays = read_npz(path, ("x", "y"), ImagesError, 2 * wanted.limit + 4096)
    x, y = arrays.get("x"), arrays.get("y")
    if x is None:
        raise ImagesError(f"{path}: holds no array 'x'; save images as x, uint8 (N, H, W) or (N, H, W, 3)")
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
        raise ImagesError(f"{path}: x is {x.dtype} {x.shape}; want uint8 (N, H, W) or (N, H, W, 3), RGB")
    if not x.size:
        raise ImagesError(f"{path}: x is empty ({x.shape}); give at least two images")
    x = x[..., None] if x.ndim == 3 else x
    if wanted.depth is not None and x.shape[3] != wanted.depth:
        shape = "(N, H, W), grey" if wanted.depth == 1 else "(N, H, W, 3), RGB"
        raise ImagesError(f"{path}: x has {x.shape[3]} channels and the model wants {wanted.depth}; save x as {shape}")
    if y is not None and (y.dtype.kind not in "iu" or y.shape != x.shape[:1]):
        raise ImagesError(f"{path}: y is {y.dtype} {y.shape}; want one integer per image, ({len(x)},)")
    images = _allocate(len(x), x[0], wanted, path)
    for row, image in enumerate(x):
        images[row] = _fitted(image, f"{path}: x", images, wanted)
    return LoadedImages(images=images, labels=None if y is None else y.astype(np.int64))


def check_labels(loaded: LoadedImages, n_classes: int, source: Path) -> None:
    """Raises `ImagesError` where labels are out of 0..n_classes-1, only guessed, or of fewer than two classes."""
    if loaded.labels is None:
        return
    wrong = (loaded.labels < 0) | (loaded.labels >= n_classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        where = loaded.files[row] if loaded.files else f"y[{row}]"
        raise ImagesError(
            f"{source}: {where} has label {loaded.labels[row]} and the model has {n_classes} classes; "
            f"labels go from 0 to {n_classes - 1}"
        )
    if len(np.unique(loaded.labels)) < 2:
        raise ImagesError(f"{source}: images of one class only; give images of two classes or more")
    if not loaded.numbered and len(loaded.classes) != n_classes:
        raise ImagesError(
            f"{source}: {len(loaded.classes)} class folders for {n_classes} classes, and their names tell not which; "
            "name the folders by class index, or list class_names in the side-car file"
        )


def draw_per_class(samples: Samples, n: int, seed: int, n_classes: int | None = None) -> Samples:
    """`n` images of every class (all where a class has fewer), in their order; without labels n * n_classes images.

    The draw depends on `seed` alone. `n_classes` is needed, and used, only where there are no labels.
    """
    rng = np.random.default_rng(seed)
    if samples.labels is None:
        count = min(n * (n_classes or 1), len(samples))
        return samples.take(np.sort(rng.permutation(len(samples))[:count]))
    chosen = [rows[:n] for rows in _shuffled_classes(samples.labels, rng)]
    return samples.take(np.sort(np.concatenate(chosen)))


def split(samples: Samples, seed: int, fraction: float = 0.5) -> tuple[Samples, Samples]:
    """`(fit, held_out)`: disjoint, together all samples, about `fraction` of every class in `fit`.

    A class of two images or more has one on both sides at least; a class of one image goes to `fit`. Where every
    class has one image, whole classes are held out instead, so that both sides have images. Without labels all
    images count as one class. Raises `ImagesError` where there are fewer than two images.
    """
    if len(samples) < 2:
        raise ImagesError("fewer than two images: one to search on and one to check on are needed; give more")
    rng = np.random.default_rng(seed)
    labels = np.zeros(len(samples), np.int64) if samples.labels is None else samples.labels
    classes = list(_shuffled_classes(labels, rng))
    if all(len(rows) == 1 for rows in classes):
        classes = [rng.permutation(np.concatenate(classes))]
    parts = [rows[: _share(len(rows), fraction)] for rows in classes]
    fit = np.zeros(len(samples), np.bool_)
    fit[np.concatenate(parts)] = True
    return samples.take(fit), samples.take(~fit)


def _share(count: int, fraction: float) -> int:
    # Half is rounded up: with an odd count the side that learns gets the larger part.
    return 1 if count == 1 else min(max(int(count * fraction + 0.5), 1), count - 1)


def _shuffled_classes(labels: IntArray, rng: np.random.Generator) -> Iterator[IntArray]:
    for label in np.unique(labels):
        yield rng.permutation(np.flatnonzero(labels == label))
