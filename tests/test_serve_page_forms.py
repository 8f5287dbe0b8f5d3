"""Both pages for every reader: by keyboard, read aloud, small, dark, behind a proxy, with a token."""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import served_pages
from debride.serve.http.pages import static_files
from served_pages import TOKEN, answers
from serving import BOOT, colour_png, first

pytestmark = pytest.mark.browser

guarded, hostile, page, server = (served_pages.guarded, served_pages.hostile, served_pages.page, served_pages.server)


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
