"""Fixtures of the page's tests: a browser, and servers that have something to show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from browser import Page, browser
from debride.report import write_report
from debride.spec import to_json
from debride.specfile import METADATA_KEY
from debride.types import FileFacts, InputSpec, Pruned, WeightChange
from reports_retrained import retraining
from serving import Served, serving, write_models
from test_report import group, report
from tiny import tiny_classifier, tiny_spec

TOKEN = "the-token-of-the-tests"
EVIL = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
CLASSES = ".classes li"


def facts(path: Path, name: str = "") -> FileFacts:
    return FileFacts(name=name or path.name, sha256=sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    """`fashion` with its report, and two versions of `tiny` beside a report of another file."""
    folder = tmp_path_factory.mktemp("page")
    models = write_models(folder)
    write_report(report(output=facts(folder / "fashion.onnx")), folder / "fashion.onnx.report", force=False)
    write_report(report(reason="of another file"), folder / "report", force=False)
    with serving(folder, *models, "--threads", 1) as served:
        yield served


@pytest.fixture(scope="module")
def guarded(tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("guarded")
    models = write_models(folder)
    write_report(report(output=facts(folder / "fashion.onnx")), folder / "fashion.onnx.report", force=False)
    with serving(folder, models[0], "--threads", 1, environment={"DEBRIDE_TOKEN": TOKEN}) as served:
        yield served


def answers(page: Page, n: int = 1) -> list[list[str]]:
    """The class names of the first `n` cards, best first, once all are answered."""
    page.wait(lambda: len(page.all(f".result:nth-child(-n+{n}) .classes")) == n, f"{n} answers")
    return [[e.text for e in card.find_elements("css selector", ".name")] for card in page.all(".result")[:n]]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Iterator[Served]:
    """A model whose class names are markup, and a report of it that is nothing else."""
    folder = tmp_path_factory.mktemp("hostile")
    names = tuple(f"{i}{EVIL}\u202e" for i in range(4))
    spec, path = tiny_spec(class_names=names), folder / "evil.onnx"
    path.write_bytes(tiny_classifier(spec, metadata={METADATA_KEY: to_json(spec)}))
    written = report(
        output=facts(path, EVIL),
        model=FileFacts(name=EVIL, sha256=EVIL, size=1),
        reason=EVIL,
        spec=InputSpec(name="x", layout="NCHW", channels="RGB", size=(8, 8), class_names=names),
        pruned=(Pruned(group=group(1, EVIL * 20), attack=0.5, utility=0.1),),
        warnings=(EVIL,),
        retraining=retraining(
            method=EVIL,
            kept=False,
            reason=EVIL,
            changes=(WeightChange(name=EVIL * 20, shape=(9,) * 300, changed=9, largest=0.5, relative=0.5),),
        ),
        environment={"debride": EVIL},
    )
    write_report(written, folder / "report", force=False)
    place = folder / "report" / "report.json"
    content = json.loads(place.read_text())
    for finding in content["triggers"]:
        finding["reason"] = EVIL
    content["triggers"][0] |= {"suspect": True, "picture": f"../{EVIL}.png"}
    content["files"] += [f"../{EVIL}.png", EVIL]
    place.write_text(json.dumps(content))
    with serving(folder, f"evil={path}", "--threads", 1) as served:
        yield served
