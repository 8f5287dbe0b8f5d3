"""The contract that every adapter keeps, for the tests of your own: `check_adapter(adapter, Path("model.xyz"))`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from debride.conversion.finish import finish
from debride.conversion.request import Request, graph_at, stated
from debride.conversion.source import facts_of
from debride.errors import ModelError
from debride.graph.read import read_model
from debride.plugins import Adapter
from debride.types import Conversion, Converted, ConvertOptions

_GARBAGE = {
    "an empty file": b"",
    "text": b"this is no model\n" * 20,
    "noise": bytes(range(256)) * 64,
}


def check_adapter(adapter: Adapter, model: Path, *, options: ConvertOptions | None = None) -> Conversion:
    """Holds `adapter` to the contract of `debride.plugins.Adapter` on `model`, a small model file (or folder) of yours.

    It names itself and its suffixes; converts `model` to a graph that debride reads, with a free batch dimension and
    the outputs of its own framework; states nothing of the input but fields of `InputSpec`; leaves the file as it was
    and nothing beside it; and raises `ModelError`, beginning with the path, for files that are missing, empty, cut
    short or something else. Returns the conversion as measured.

    Raises:
        AssertionError: says which clause is broken.
        DebrideError: as a user would see it, where the model is refused.
    """
    options = options or ConvertOptions()
    _require(isinstance(adapter, Adapter), "the adapter lacks name, suffixes or convert(path, options)")
    _require(bool(adapter.name), "the adapter's name is empty")
    _require(_claims(adapter, model), f"{model.name} is of none of the adapter's suffixes {adapter.suffixes}")
    facts, beside = facts_of(model), set(model.parent.iterdir())
    converted = adapter.convert(model, options)
    _require(isinstance(converted, Converted), "convert returns no debride.types.Converted")
    stated(converted.spec, "the adapter's spec")
    _require(facts_of(model) == facts, "convert changes the model file")
    _require(set(model.parent.iterdir()) == beside, "convert leaves files beside the model")
    with TemporaryDirectory() as folder:
        request = Request(model=model, options=options)
        conversion = finish(converted, adapter.name, request, Path(folder))
        shape = read_model(graph_at(Path(folder), request), free=False).graph.inputs[0].shape
        _require(shape is not None and shape[0] is None, f"the graph's batch dimension is fixed: its input is {shape}")
        _check_refusals(adapter, model, options, Path(folder))
    return conversion


def _claims(adapter: Adapter, model: Path) -> bool:
    _require(
        all(kind == kind.lower() and "." in kind for kind in adapter.suffixes),
        f"suffixes {adapter.suffixes} are not lower case with a dot",
    )
    if model.is_dir():
        return any((model / kind).is_file() for kind in adapter.suffixes if not kind.startswith("."))
    return model.suffix.lower() in adapter.suffixes


def _check_refusals(adapter: Adapter, model: Path, options: ConvertOptions, folder: Path) -> None:
    suffix = next((kind for kind in adapter.suffixes if kind.startswith(".")), "")
    _check_refused(adapter, folder / f"missing{suffix}", options, "a missing file")
    if model.is_dir() or not suffix:
        return
    whole = model.read_bytes()
    wrong = folder / f"wrong{model.suffix}"
    for what, data in {**_GARBAGE, "half of the model": whole[: len(whole) // 2]}.items():
        wrong.write_bytes(data)
        _check_refused(adapter, wrong, options, what)


def _check_refused(adapter: Adapter, path: Path, options: ConvertOptions, what: str) -> None:
    try:
        with TemporaryDirectory() as folder:
            # An adapter may leave it to the core to judge the graph, right behind it.
            request = Request(model=path, options=options)
            finish(adapter.convert(path, options), adapter.name, request, Path(folder))
    except ModelError as error:
        said = str(error)
        _require(said.startswith(str(path)), f"the error for {what} does not begin with the path: {said}")
        _require("\n" not in said, f"the error for {what} has more than one line: {said}")
    except Exception as error:
        raise AssertionError(f"{what} raises {type(error).__name__}, no ModelError: {error}") from error
    else:
        raise AssertionError(f"{what} is converted without an error")


def _require(kept: bool, clause: str) -> None:
    # No assert statement: the contract holds under python -O too.
    if not kept:
        raise AssertionError(clause)
