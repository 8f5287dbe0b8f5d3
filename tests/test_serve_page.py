"""The page at /, in headless Chromium, against `debride serve` as a process of its own."""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from selenium.webdriver.support.ui import Select

import served_pages
from browser import Page
from debride.report import write_report
from reports_retrained import large, retrained, retraining
from served_pages import CLASSES, EVIL, answers, facts
from serving import BAG, BOOT, MODEL, NAMES, Served, colour_png, first, serving, write_models
from test_report import detection, report

hostile, page, server = served_pages.hostile, served_pages.page, served_pages.server
pytestmark = pytest.mark.browser
ASCII = str.maketrans({"\u00d7": "x", "\u2212": "-", "\u2013": "-", "\u2192": "->"})
"""The page's signs as a keyboard has them."""
SCORE = re.compile(r"(?:[<>] )?\d+\.\d %")


def choose(page: Page, text: str) -> None:
    page.wait(lambda: page.one("#chooser").is_displayed(), "the chooser")
    Select(page.one("#chooser")).select_by_visible_text(text)


def by_api(served: Served, path: Path, model: str = "fashion") -> dict:
    return served.post(f"/v2/models/{model}/classify", path.read_bytes()).json()


def test_an_uploaded_image_is_classified_and_shown_and_nothing_leaves_the_origin(page, server):
    page.open(f"{server.url}/")
    path = first(BOOT)
    page.upload(path)
    ((best, *others),) = answers(page)
    assert best == "class 9"
    assert len(others) == 4
    expected = by_api(server, path)["predictions"]
    assert [best, *others] == [f"class {p['index']}" for p in expected]
    shares = [e.text for e in page.all(f"{CLASSES} .share")]
    assert all(SCORE.fullmatch(text) for text in shares)
    assert shares[0] == f"{100 * expected[0]['probability']:.1f} %"
    widths = page.run("return [...document.querySelectorAll('.classes .fill')].map(e => parseFloat(e.style.width))")
    assert widths == pytest.approx([100 * p["probability"] for p in expected], abs=1e-3)
    assert page.text(".result .by") == "fashion, version 1"
    assert page.text(".result h3") == path.name
    page.wait(lambda: page.run("return document.querySelector('.preview img').naturalWidth") == 28, "the preview")
    page.wait(lambda: len(page.run("return freed")) == len(page.run("return made")), "blobs are let go")
    assert set(page.run("return freed")) == set(page.run("return made"))
    assert page.text("#status") == "" or "class 9" in page.run("return document.getElementById('status').textContent")
    assert page.complaints() == []
    assert page.stays_at(server.url) == []


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_several_images_dropped_or_pasted_are_answered_one_after_another_in_order(page, server, kind):
    page.open(f"{server.url}/")
    files = [first(BOOT), first(BAG), first(BOOT, 1)]
    page.give(kind, *((path.name, "image/png", path.read_bytes()) for path in files))
    found = answers(page, 3)
    expected = [by_api(server, path)["predictions"][0]["index"] for path in files]
    assert [names[0] for names in found] == [f"class {index}" for index in expected]
    assert len(set(expected)) == 3  # else the order would not show
    assert [e.text for e in page.all(".result h3")] == [path.name for path in files]
    page.give(kind, ("later.png", "image/png", files[1].read_bytes()))
    page.wait(lambda: page.text(".result h3") == "later.png", "the later one on top")
    answers(page, 4)
    page.one("#clear").click()
    assert page.all(".result") == []
    assert page.complaints() == []


def test_a_drop_without_files_and_one_beside_the_frame_leave_the_page_in_place(page, server):
    page.open(f"{server.url}/")
    page.give("drop")
    assert page.all(".result") == []
    stopped = page.run(
        "const e = new DragEvent('drop', {dataTransfer: new DataTransfer(), bubbles: true, cancelable: true});"
        "document.querySelector('h1').dispatchEvent(e); return e.defaultPrevented"
    )
    assert stopped is True


def test_a_corrupt_image_shows_the_servers_own_words(page, server, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(first(BOOT).read_bytes()[:40])  # of a longer piece browsers show what there is
    page.open(f"{server.url}/")
    page.upload(broken)
    said = server.post("/v2/models/fashion/classify", broken.read_bytes())
    assert said.status == 400
    assert page.text(".result .problem") == said.error
    page.wait(lambda: page.text(".preview") == "no preview", "no preview of a broken image")
    page.upload(first(BAG))  # and the page goes on
    assert answers(page)[0][0] == "class 8"
    assert page.complaints(network=False) == []
    assert set(page.run("return freed")) == set(page.run("return made"))


def test_the_report_beside_the_model_is_shown_in_full(page, server):
    page.open(f"{server.url}/")
    choose(page, "fashion, version 1")
    said = page.wait(lambda: page.text("#report") if page.all("#report figure img") else None, "the report")
    digest = sha256(MODEL.read_bytes()).hexdigest()
    for words in (
        "What was cut, and why", "sanitized", "Target met.",
        "The file served is the one audited.", digest, "Made from m.onnx", "ab" * 32,
        "Target class of a backdoor dog", "Why 1.", "L1 norm 4 pixels",
        "Accuracy 75.0 %", "74.0 %", "Attack success to dog 98.9 %", "1.1 %",
        "Channels cut: 3 of 560", "/conv/Conv 4 0.5 0.01", "5 0.25 \u2013", "/stem/Conv 9 0.1 0",
        "no class stands out", "few images",
    ):  # fmt: skip
        assert words in re.sub(r"\s+", " ", said), words
    pictures = page.wait(lambda: found if len(found := page.all("#report figure img")) == 2 else None, "the pictures")
    page.wait(lambda: all(page.run("return arguments[0].naturalWidth", i) for i in pictures), "drawn")
    assert all("rigger found for" in i.get_attribute("alt") for i in pictures)
    page.wait(lambda: set(page.run("return freed")) == set(page.run("return made")), "blobs are let go")
    assert page.complaints() == []
    assert page.stays_at(server.url) == []


def test_of_two_models_the_chosen_one_answers_and_a_report_of_another_file_is_not_shown(page, server, tmp_path):
    page.open(f"{server.url}/")
    options = page.wait(lambda: [o.text for o in page.all("#chooser option")], "models")
    assert options == ["fashion, version 1", "tiny, version 1", "tiny, version 2"]
    page.wait(lambda: page.one("#report").is_displayed(), "the first one's report")
    choose(page, "tiny, version 2")
    page.wait(lambda: not page.one("#report").is_displayed(), "no report")
    assert page.text("#unreported") == "No report of an audit lies beside this model."
    assert "of another file" not in page.text("body")
    green = tmp_path / "green.png"
    green.write_bytes(colour_png(1))
    page.upload(green)
    assert answers(page)[0][0] == NAMES[1]
    assert page.text(".result .by") == "tiny, version 2"
    choose(page, "fashion, version 1")
    page.upload(first(BAG))
    assert answers(page)[0][0] == "class 8"
    assert page.all(".result .by")[1].text == "tiny, version 2"
    page.wait(lambda: page.one("#report").is_displayed(), "its report again")
    assert not page.one("#unreported").is_displayed()


def test_hostile_class_names_files_and_reports_stay_text(page, hostile, tmp_path):
    page.open(f"{hostile.url}/")
    page.give("drop", (f"{EVIL}.png", "image/png", colour_png(2)), (EVIL, f"{EVIL}", b"no image"))
    (names,) = answers(page)
    assert names[0].startswith(f"2{EVIL}")
    page.wait(lambda: len(page.all(".result .problem")) == 1, "the second file is refused")
    report_text = page.wait(lambda: page.text("#report") if page.all("#report figure img") else None, "the report")
    assert report_text.count(EVIL) > 11
    assert page.run("return window.pwned") is None
    assert page.all("img[src='x'], script:not([src]), [onerror]") == []
    assert page.run("return document.querySelectorAll('script').length") == 1
    assert page.complaints(network=False) == []
    assert page.stays_at(hostile.url) == []


def test_a_report_of_a_clean_scan_and_a_bad_verdict_say_what_they_are(page, tmp_path):
    models = write_models(tmp_path)
    tiny = [tmp_path / f"tiny{v}.onnx" for v in (1, 2)]
    bare = {"command": "scan", "output": None, "pruned": (), "after": None, "recheck": None, "rounds": ()}
    clean = report(
        **bare, verdict="clean", model=facts(tiny[0]), before=None, detection=detection((40.0, 44.0, 50.0, 60.0), ())
    )
    write_report(clean, tmp_path / "tiny1.report", force=False)
    write_report(report(**bare, verdict="backdoored", model=facts(tiny[1])), tmp_path / "tiny2.report", force=False)
    with serving(tmp_path, *models[1:], "--threads", 1) as served:
        page.open(f"{served.url}/")
        choose(page, "tiny, version 1")
        said = page.wait(lambda: page.text("#report") if page.all(".verdict.good") else None, "clean")
        assert "None of 4 classes has an abnormally small trigger." in said
        assert "Channels cut" not in said
        choose(page, "tiny, version 2")
        said = page.wait(lambda: page.text("#report") if page.all(".verdict.bad") else None, "backdoored")
        assert said.startswith("What was found\nbackdoored")
        assert "Measured" in said
        assert "After" not in said
        page.wait(lambda: len(page.all("#report figure img")) == 2, "pictures")
        assert page.complaints() == []


def test_what_retraining_did_stands_below_what_was_cut(page, tmp_path):
    models = write_models(tmp_path)
    files = [facts(tmp_path / f"{name}.onnx") for name in ("fashion", "tiny1", "tiny2")]
    write_report(replace(large(), output=files[0]), tmp_path / "fashion.onnx.report", force=False)
    write_report(retrained(output=files[1]), tmp_path / "tiny1.report", force=False)
    unkept = retraining(kept=False, reason="it is worse.", labels="delivered", images=1, best=0, changes=())
    write_report(report(output=files[2], retraining=unkept), tmp_path / "tiny2.report", force=False)
    with serving(tmp_path, *models, "--threads", 1) as served:
        page.open(f"{served.url}/")
        choose(page, "fashion, version 1")
        said = page.wait(lambda: page.text("#report") if len(page.all(".changes tbody tr")) == 12 else None, "rows")
        assert said.index("Channels cut: 3 of 560") < said.index("\nRetrained\n") < said.index("All classes")
        assert "60 initializers differ; the 12 that changed most." in said
        assert "for again after the cut and retraining: no class" in said
        row = page.text(".changes tbody tr").translate(ASCII)
        assert row == "/features/features.59/Conv/weight_of_a_rather_long_name\n512 x 512 x 3 x 3\n2359237 0.059 0.0295"
        choose(page, "tiny, version 1")
        said = page.wait(lambda: page.text("#report") if len(page.all(".changes tbody tr")) == 4 else None, "four rows")
        said = said.translate(ASCII)
        assert said.startswith("What was retrained, and why\nsanitized")
        assert (
            "The retrained network is delivered. Method: unlearning, on 100 clean images, labelled; 160 of at "
            "most 200 steps, best after step 120. On held-out images: accuracy 74.0 % -> 73.0 %, attack success 26.7 % "
            "-> 1.1 %."
        ) in said
        assert [e.text.translate(ASCII).split("\n") for e in page.all(".changes tbody tr")] == [
            ["bn1.bias", "16", "15 0.5 from zero"],
            ["scale", "scalar", "1 - from zero"],
            ["conv1.weight", "16 x 3 x 3 x 3", "405 0.0213 0.0345"],
            ["fc.weight", "10 x 16", "160 3.0e-7 1.3e-6"],
        ]
        assert "Channels cut" not in said
        assert "for again after retraining: no class" in said
        choose(page, "tiny, version 2")
        said = page.wait(lambda: page.text("#report") if "not delivered" in page.text("#report") else None, "unkept")
        assert (
            "The pruned network is delivered, not the retrained one: it is worse. Method: unlearning, on 1 clean"
            in said
        )
        assert "1 clean image, labelled by the delivered model; 160 of at most 200 steps, best before any." in said
        assert "No initializer differs in the retrained network." in said
        assert "for again after the cut: no class" in said
        assert page.all(".changes") == []
        assert page.complaints() == []
        assert page.stays_at(served.url) == []


BUSY = """
const real = window.fetch; let left = %d; window.asked = [];
window.fetch = (path, options) => {
  if (!String(path).includes("/classify")) return real(path, options);
  asked.push(performance.now());
  if (left-- <= 0) return real(path, options);
  const headers = { "Retry-After": "2" };
  return Promise.resolve(new Response('{"error": "the queue is full"}', { status: 429, headers }));
};
"""


def test_a_busy_server_is_waited_for_as_long_as_it_says_and_asked_once_more(page, server):
    page.open(f"{server.url}/", script=BUSY % 1)
    page.upload(first(BOOT))
    page.wait(lambda: page.text(".result .note") == "busy, trying again in 2 s", "the wait is told")
    page.wait(lambda: page.text(".result .note") == "busy, trying again in 1 s", "and counted down")
    assert answers(page)[0][0] == "class 9"
    one, two = page.run("return asked")
    assert 1900 < two - one < 4000
    page.open(f"{server.url}/", script=BUSY % 2)
    page.upload(first(BOOT))
    assert page.text(".result .problem") == "Still busy: the queue is full"
    assert len(page.run("return asked")) == 2


def test_a_server_that_is_gone_is_told_in_words(page, tmp_path):
    models = write_models(tmp_path)
    with serving(tmp_path, models[0], "--threads", 1) as served:
        page.open(f"{served.url}/")
        page.upload(first(BOOT))
        answers(page)
    page.upload(first(BAG))
    assert "The server does not answer" in page.text(".result .problem")
