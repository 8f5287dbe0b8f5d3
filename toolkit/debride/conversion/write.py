"""Conversions that are kept: a model file, or an object in memory, as an ONNX file of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from debride.conversion.finish import finish
from debride.conversion.request import Request, graph_at
from debride.conversion.run import convert_in
from debride.conversion.source import facts_of
from debride.graph.read import read_model
from debride.graph.write import check_free, write_copy
from debride.types import Conversion, Converted, FileFacts, Progress, no_progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A model converted for good: the facts of the file named, those of the ONNX file made, and how."""

    model: FileFacts
    output: FileFacts
    conversion: Conversion


def convert(request: Request, output: Path, *, force: bool = False, progress: Progress = no_progress) -> Written:
    """The request's model as the ONNX file `output`; an .onnx file too, brought up to the opset and scrubbed.

    Weights beyond 2 GiB go beside it, into `output`.data. Raises `UsageError` where `output` exists (unless `force`),
    before any work, and the errors of `convert_in`; nothing is written then.
    """
    check_free(output, force)
    facts = facts_of(request.model)
    with TemporaryDirectory(prefix="debride-", ignore_cleanup_errors=True) as made:
        folder = Path(made).resolve()
        request = replace(request, name=output.name)
        conversion = convert_in(folder, request, progress)
        graph = graph_at(folder, request)
        read_model(graph, free=False)  # the child has said so, but it has read a stranger's file
        _place(graph, output, force)
    return Written(model=facts, output=facts_of(output), conversion=conversion)


def save(
    converted: Converted, output: Path, *, framework: str, images: Path | None = None, force: bool = False
) -> Conversion:
    """What an adapter made of an object in memory (`from_module`, `from_model`), checked and written to `output`.

    Runs in this process: the object is the caller's own. Parity is measured on random inputs, and on `images` where
    given. Raises as `convert`.
    """
    check_free(output, force)
    with TemporaryDirectory(prefix="debride-", ignore_cleanup_errors=True) as made:
        folder = Path(made).resolve()
        request = Request(model=output, name=output.name, images=images)
        conversion = finish(converted, framework, request, folder)
        graph = graph_at(folder, request)
        _place(graph, output, force)
    return conversion


def _place(graph: Path, output: Path, force: bool) -> None:
    beside = graph.with_name(f"{graph.name}.data")
    write_copy(graph.read_bytes(), graph, [beside] if beside.exists() else [], output, force=force)
