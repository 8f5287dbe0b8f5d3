"""The page at / and the one at /docs, in headless Chromium, against `debride serve` as a process of its own."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from browser import Page, browser
from debride.report import write_report
from debride.serve.http.pages import static_files
from debride.spec import to_json
from debride.specfile import METADATA_KEY
from debride.types import FileFacts, InputSpec, Pruned
from serving import BAG, BOOT, MODEL, NAMES, Served, colour_png, first, serving, write_models
from test_report import detection, group, report
from tiny import tiny_classifier, tiny_spec

pytestmark = pytest.mark.browser

TOKEN = "the-token-of-the-tests"
EVIL = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
CLASSES = ".classes li"
SCORE = re.compile(r"(?:[<>] )?\d+\.\d %")


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


def test_hostile_class_names_files_and_reports_stay_text(page, hostile, tmp_path):
    page.open(f"{hostile.url}/")
    page.give("drop", (f"{EVIL}.png", "image/png", colour_png(2)), (EVIL, f"{EVIL}", b"no image"))
    (names,) = answers(page)
    assert names[0].startswith(f"2{EVIL}")
    page.wait(lambda: len(page.all(".result .problem")) == 1, "the second file is refused")
    report_text = page.wait(lambda: page.text("#report") if page.all("#report figure img") else None, "the report")
    assert report_text.count(EVIL) > 8
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


def test_the_token_is_asked_for_kept_in_memory_and_sent_for_pictures_too(page, guarded):
    page.open(f"{guarded.url}/")
    page.wait(lambda: page.one("#token-dialog").is_displayed(), "the dialog")
    assert page.run("return document.activeElement.id") == "token"
    page.one("#token").send_keys("wrong", Keys.ENTER)
    page.wait(lambda: "not accepted" in page.text("#token-why"), "the refusal")
    page.one("#token").send_keys("with blank", Keys.ENTER)
    assert "printable ASCII" in page.text("#token-why")
    page.one("#token").clear()
    page.one("#token").send_keys(TOKEN, Keys.ENTER)
    page.wait(lambda: not page.one("#token-dialog").is_displayed(), "the dialog goes")
    page.upload(first(BOOT))
    assert answers(page)[0][0] == "class 9"
    page.wait(lambda: len(page.all("#report figure img")) == 2, "the report's pictures")
    kept = page.run("return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert TOKEN not in kept
    assert page.complaints(network=False) == []
    assert page.stays_at(guarded.url) == []
    page.driver.refresh()
    page.wait(lambda: page.one("#token-dialog").is_displayed(), "asked again after a reload")


def test_without_a_token_the_page_says_so_and_asks_again_on_demand(page, guarded):
    page.open(f"{guarded.url}/")
    page.wait(lambda: page.one("#token-dialog").is_displayed(), "the dialog")
    page.one("#token").send_keys(Keys.ESCAPE)
    page.wait(lambda: "none was given" in page.text("#problem"), "the message")
    assert not page.one("#files").is_enabled()
    page.one("#problem button").send_keys(Keys.ENTER)
    page.wait(lambda: page.one("#token-dialog").is_displayed(), "the dialog again")
    page.one("#token-cancel").click()
    page.wait(lambda: "none was given" in page.text("#problem"), "the message again")


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


def test_everything_is_reached_and_used_by_keyboard_alone(page, server):
    page.open(f"{server.url}/")
    page.wait(lambda: page.one("#files").is_enabled(), "the page is ready")
    page.wait(lambda: page.all("#report table"), "the report")
    where = []
    for _ in range(4):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        where.append(page.run("const e = document.activeElement; return e.id || e.className || e.getAttribute('href')"))
        outline = page.run(
            "const e = document.activeElement; const s = getComputedStyle(e.id === 'files' ? e.closest('.drop') : e);"
            "return s.outlineStyle + s.outlineWidth"
        )
        assert outline == "solid2px", where
    assert where == ["chooser", "docs", "files", "scroll"]
    page.one("#chooser").send_keys("tiny")
    page.wait(lambda: Select(page.one("#chooser")).first_selected_option.text == "tiny, version 1", "typed choice")
    page.upload(first(BOOT))
    answers(page)
    page.one("#clear").send_keys(Keys.ENTER)
    assert page.all(".result") == []
    assert page.run("return document.activeElement.id") == "files"


def test_screen_readers_find_names_and_roles(page, server):
    page.open(f"{server.url}/")
    page.wait(lambda: page.all("#report table"), "the report")
    page.upload(first(BOOT))
    answers(page)
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if not n["ignored"]}
    roles = {role for role, _ in named}
    assert ("combobox", "Model") in named
    assert ("heading", "Classify images") in named
    assert ("region", "What was cut, and why") in named
    assert any(role == "button" and "choose files" in name for role, name in named)
    assert {"status", "main", "banner", "navigation", "table", "rowheader"} <= roles
    assert not [n for n in named if n[0] in ("button", "textbox", "combobox", "link", "image") and not n[1]]
    assert page.run("return document.getElementById('status').textContent").startswith(f"{first(BOOT).name}: class 9, ")


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("width", [320, 360, 1280])
def test_nothing_is_wider_than_the_screen(page, hostile, path, width):
    view = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", view)
    try:
        page.open(hostile.url + path)
        if path == "/":
            page.give("drop", ("x" * 200 + ".png", "image/png", colour_png(2)))
            answers(page)
            page.wait(lambda: page.all("#report figure img"), "the report")
        else:
            page.one("#schema-Report")
        assert page.run("return document.documentElement.scrollWidth") <= width
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 has it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_is_readable_in_light_and_dark():
    light, dark = re.findall(r":root \{(.*?)\}", static_files()["page.css"].decode(), re.DOTALL)[:2]
    for scheme in (light, dark):
        colours = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for ground in ("paper", "card"):
            for ink in ("ink", "soft", "accent", "good", "bad", "unsure"):
                a, b = sorted((luminance(colours[ink]), luminance(colours[ground])))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (ink, ground)


def test_the_scheme_follows_the_system(page, server):
    page.open(f"{server.url}/")
    grounds = {}
    for scheme in ("light", "dark"):
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        grounds[scheme] = page.run("return getComputedStyle(document.body).backgroundColor")
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert grounds == {"light": "rgb(251, 251, 250)", "dark": "rgb(21, 24, 27)"}


@pytest.fixture
def proxied(server) -> Iterator[str]:
    """The address of a reverse proxy that has the server under a path of its own."""
    prefix = "/some/where"

    class Forward(BaseHTTPRequestHandler):
        def answer(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
            headers = {k: v for k, v in self.headers.items() if k.lower() in ("content-type", "authorization")}
            asked = urllib.request.Request(server.url + self.path[len(prefix) :], body, headers, method=self.command)
            try:
                reply = urllib.request.urlopen(asked, timeout=20)
            except HTTPError as error:
                reply = error
            data = reply.read()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                if name.lower() not in ("date", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{proxy.server_port}{prefix}"
    proxy.shutdown()
    proxy.server_close()
    thread.join()


def test_both_pages_work_behind_a_proxys_path(page, proxied):
    page.open(f"{proxied}/")
    page.upload(first(BOOT))
    assert answers(page)[0][0] == "class 9"
    page.wait(lambda: len(page.all("#report figure img")) == 2, "the report's pictures")
    page.one("nav a").click()
    assert f'"{proxied}/v2/models"' in page.one("#models pre").text
    page.one("nav a").click()
    page.wait(lambda: page.all("#drop"), "back again")
    assert page.complaints() == []
    assert [u for u in page.requests() if not u.startswith((f"{proxied}/", f"blob:{proxied[:16]}"))] == []


def test_the_documents_page_draws_every_operation_and_its_commands_can_be_copied(page, server):
    page.open(f"{server.url}/docs")
    page.one("#schema-Report")
    found = server.get("/openapi.json").json()
    text = page.text("main")
    for path, item in found["paths"].items():
        assert path in text
        for method in ("get", "post"):
            if method in item and "/versions/" not in path:
                assert item[method]["summary"] in text
                assert len(page.all(f"#{item[method]['operationId']} .sample")) == len(
                    item[method].get("x-codeSamples", ())
                )
    for name in found["components"]["schemas"]:
        assert len(page.all(f"#schema-{name}")) == 1
    assert "[object Object]" not in text
    assert "undefined" not in text
    links = page.run(
        "return [...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))"
    )
    assert links
    assert [i for i in links if not page.run("return document.getElementById(arguments[0])", i)] == []
    button = page.one("#live .sample button")
    button.send_keys(Keys.ENTER)
    page.wait(lambda: button.text in ("Copied", "Selected"), "copied")
    assert page.one("#live pre").text == f'curl "{server.url}/v2/health/live"'
    assert page.complaints() == []
    assert page.stays_at(server.url) == []
