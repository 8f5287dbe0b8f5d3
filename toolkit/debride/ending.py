"""The graph to write: zeroed where it was cut, and with `slim` without what is zero; then the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from debride.conversion.source import facts_of
from debride.errors import DebrideError
from debride.graph.read import model_of
from debride.graph.surgery import check_written, editable, write_model, zero
from debride.graph.write import write_copy
from debride.loading import Loaded
from debride.rounds import answers
from debride.sessions import Session, predictor
from debride.settings import Settings
from debride.slimming import slim
from debride.specfile import METADATA_KEY, to_json
from debride.types import FileFacts, Predict, Progress, Slimming


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class End:
    """The graph to write, what it says of images, and what slimming and its failure left to tell."""

    proto: Any  # an onnx.ModelProto, a type that only graph and slimming may name
    predict: Predict
    slimming: Slimming | None = None
    warnings: tuple[str, ...] = ()

    def warned(self, *warnings: str) -> End:
        """The same with `warnings` after those that it has."""
        return replace(self, warnings=(*self.warnings, *warnings))


def zeroed(loaded: Loaded, gone: Sequence[int]) -> End:
    """The delivered graph with the groups `gone` zeroed, proven to differ in nothing else."""
    groups = [loaded.groups[i] for i in gone]
    cut = zero(loaded.model, groups)
    check_written(editable(loaded.model, groups), cut, groups)
    return End(proto=cut, predict=answers(loaded, gone))


def slimmed(loaded: Loaded, end: End, settings: Settings, progress: Progress) -> End:
    """`end` without the channels that are zero; as it is, with a warning that tells why, where that fails."""
    try:
        return _slimmed(loaded, end, settings, progress)
    except Exception as error:  # a model that is clean is not lost to what would only make it smaller
        return end.warned(f"the cut channels are zeroed, not taken out of the graph: {told(error)}")


def told(error: Exception) -> str:
    """What went wrong, on one line; with the kind of error where it is none of ours."""
    known = isinstance(error, DebrideError)
    return " ".join(f"{'' if known else type(error).__name__ + ': '}{error}".split())


def _slimmed(loaded: Loaded, end: End, settings: Settings, progress: Progress) -> End:
    # By way of its bytes: what is slimmed is then what a reader of the file would get.
    model = model_of(end.proto.SerializeToString(), loaded.model.path, free=False)
    found = slim(
        model,
        spec=loaded.spec,
        images=loaded.held_out.images,
        runtime=loaded.runtime,
        align=settings.align,
        seed=settings.seed,
        progress=progress,
    )
    if found.facts.before == found.facts.after:
        return replace(end, slimming=found.facts)
    # The rates in the report are then those of the graph that is written, not of the one that it equals.
    session = Session(found.proto.SerializeToString(), loaded.runtime, "the slimmed model")
    return replace(end, proto=found.proto, predict=predictor(session, loaded.spec), slimming=found.facts)


def write(loaded: Loaded, end: End, output: Path, force: bool) -> FileFacts:
    """Write the graph of `end` with its input spec; the facts of the file."""
    write_model(end.proto, output, metadata={METADATA_KEY: to_json(loaded.spec)}, force=force)
    return facts_of(output)


def write_unchanged(loaded: Loaded, output: Path, force: bool) -> FileFacts:
    """Write the model as it was delivered (as ONNX), byte for byte; the facts of the file."""
    model = loaded.model
    write_copy(model.data, model.path, model.external, output, force=force)
    return FileFacts(name=output.name, sha256=model.sha256, size=model.size)
