"""The models of a server: from what the command line names to classifiers that are known to run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from hmac import compare_digest
from math import prod
from pathlib import Path
from types import MappingProxyType

from debride.errors import ModelError, UsageError
from debride.serve.classifier import Classifier
from debride.sessions import Runtime, Session
from debride.spec import resolve_spec, sidecar_of
from debride.specfile import SpecFlags

from .batching import Plan
from .errors import NotFound
from .reports import ServedReport

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"0|[1-9][0-9]{0,8}")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A model as the command line names it."""

    name: str
    version: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that is ready: `classifier` runs the bytes whose SHA-256 is `sha256`.

    Not `whole` is a model whose weights lie in files beside it: the digest does not cover them.
    """

    name: str
    version: str
    path: Path
    sha256: str
    classifier: Classifier
    plan: Plan
    whole: bool = True
    report: ServedReport | None = None

    @property
    def session(self) -> Session:
        """The session that answers."""
        return self.classifier.session


class Models:
    """The served models by name and version; the version asked for by no number is the highest."""

    def __init__(self, served: Iterable[Served]) -> None:
        found: dict[str, dict[str, Served]] = {}
        for model in served:
            found.setdefault(model.name, {})[model.version] = model
        self._models: Mapping[str, Mapping[str, Served]] = MappingProxyType(
            {name: MappingProxyType(dict(sorted(vs.items(), key=lambda v: int(v[0])))) for name, vs in found.items()}
        )

    def __iter__(self) -> Iterator[Served]:
        return (model for versions in self._models.values() for model in versions.values())

    def versions(self, name: str) -> tuple[str, ...]:
        """All versions of the model, lowest first. Raises `NotFound`."""
        return tuple(self._named(name))

    def find(self, name: str, version: str | None = None) -> Served:
        """The model. Raises `NotFound` naming what there is."""
        versions = self._named(name)
        if version is None:
            return versions[self.versions(name)[-1]]
        if version not in versions:
            raise NotFound(f"model {name!r} has no version {version[:100]!r}; it has {', '.join(versions)}")
        return versions[version]

    def _named(self, name: str) -> Mapping[str, Served]:
        if name not in self._models:
            raise NotFound(f"there is no model {name[:100]!r}; there are {', '.join(self._models)}")
        return self._models[name]


def parse_named(text: str) -> Named:
    """`PATH`, `NAME=PATH` or `NAME:VERSION=PATH`; the name is the file's stem and the version 1 where left out.

    Raises `UsageError` where the name or the version cannot stand in an address.
    """
    label, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        label, path = "", text
    name, _, version = label.partition(":")
    name, version = name or re.sub(r"[^A-Za-z0-9._-]", "-", Path(path).stem).lstrip(".-_"), version or "1"
    if not _NAME.fullmatch(name) or not _VERSION.fullmatch(version):
        raise UsageError(
            f"{text}: {name!r} version {version!r} cannot be part of an address; write NAME=PATH or NAME:VERSION=PATH, "
            "the name of letters, digits, dots, dashes and underscores, the version a number"
        )
    return Named(name=name, version=version, path=Path(path))


def parse_all(texts: Sequence[str]) -> list[Named]:
    """All of `texts`. Raises `UsageError` where two have the same name and version."""
    models = [parse_named(text) for text in texts]
    taken: dict[tuple[str, str], Named] = {}
    for model in models:
        other = taken.setdefault((model.name, model.version), model)
        if other is not model:
            raise UsageError(
                f"{other.path} and {model.path} are both {model.name!r} version {model.version}; "
                f"name them apart: {model.name}-2={model.path}, or {model.name}:2={model.path}"
            )
    return models


def assigned(flag: str, texts: Sequence[str], models: Sequence[Named]) -> dict[tuple[str, str], str]:
    """The values of a flag per model, each `VALUE` (of the only model), `NAME=VALUE` or `NAME:VERSION=VALUE`.

    Raises `UsageError` where a value belongs to no model or to several, or where a model gets two.
    """
    found: dict[tuple[str, str], str] = {}
    for text in texts:
        label, equals, value = text.partition("=")
        if not equals:
            label, value = "", text
        name, _, version = label.partition(":")
        fits = [m for m in models if name in ("", m.name) and version in ("", m.version)]
        if len(fits) != 1:
            which = ", ".join(f"{m.name}:{m.version}" for m in models)
            raise UsageError(f"{flag} {text!r} fits {len(fits)} models; write {flag} NAME:VERSION=..., one of {which}")
        key = (fits[0].name, fits[0].version)
        if key in found:
            raise UsageError(f"{flag} is given twice for {key[0]} version {key[1]}; give it once")
        found[key] = value
    return found


def check_pin(flag: str, value: str) -> str:
    """`value` as a SHA-256 in lower-case hex. Raises `UsageError`."""
    pin = value.strip().lower().removeprefix("sha256:")
    if not _HEX.fullmatch(pin):
        raise UsageError(f"{flag} {value!r} is no SHA-256; give its 64 hex digits, as report.json has them")
    return pin


def load(
    named: Named,
    *,
    flags: SpecFlags,
    runtime: Runtime,
    max_batch: int,
    pin: str | None = None,
) -> Served:
    """The model, read once, checked against `pin`, loaded from the very bytes that were hashed, and tried.

    A pinned model is told by its own bytes alone: no side-car, and no external data. Raises `ModelError` where it is
    not the file pinned, cannot be loaded or is no image classifier, `SpecError` where nothing says its input.
    """
    data = _read(named.path)
    digest = sha256(data).hexdigest()
    if pin is not None and not compare_digest(digest, pin):
        raise ModelError(f"{named.path}: its sha256 is {digest}, not {pin}: this is not the file that was audited")
    session, whole = _session(named.path, data, runtime, pinned=pin is not None)
    sidecar = None if pin is not None else sidecar_of(named.path)
    spec = resolve_spec(session, flags=flags, sidecar=sidecar).spec
    classifier = Classifier(session, spec=spec, batch=max_batch)
    session.name = named.name  # what clients are told from here on names no path
    return Served(
        name=named.name,
        version=named.version,
        path=named.path,
        sha256=digest,
        classifier=classifier,
        plan=_plan(classifier, max_batch),
        whole=whole,
    )


def _read(path: Path) -> bytes:
    try:
        if not path.exists() or path.is_file():  # a pipe or a device may never end
            return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); give the path of an ONNX model") from error
    raise ModelError(f"{path}: is no regular file; give the path of an ONNX model")


def _session(path: Path, data: bytes, runtime: Runtime, *, pinned: bool) -> tuple[Session, bool]:
    """The session of `data`, and whether that is all of it; unpinned, weights may lie beside `path`."""
    try:
        return Session(data, runtime, str(path)), True
    except ModelError as error:
        if pinned:
            raise ModelError(
                f"{error}; a pinned model must be whole in one file: a hash does not cover weights beside it"
            ) from error
        if path.suffix.lower() not in (".onnx", ".ort"):
            raise ModelError(f"{error}; only ONNX is served: `debride convert` makes it from other formats") from error
    return Session(data, runtime, str(path), folder=path.parent), False


def _plan(classifier: Classifier, max_batch: int) -> Plan:
    """Which outputs may be stacked: those whose rows stay the same in company, seen on random images."""
    name = classifier.spec.name
    fixed = classifier.session.input_named(name).shape[0] or 0
    plan = Plan(input=name, fixed=fixed, row_values=prod((*classifier.spec.size, classifier.spec.depth)))
    if fixed == 1 or max_batch == 1:
        return plan
    outputs = (output.name for output in classifier.session.outputs)
    return replace(plan, stackable=frozenset(o for o in outputs if classifier.splits_output(o, max_batch)))
