"""Headless Chromium over Selenium, watched: what it requests, what its console says, what its policy forbids."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "disable-dev-shm-usage"),
)
# Runs before the page's own scripts. Of blobs, each address is noted when it is made and when it is let go.
WATCH = """
window.violations = []; window.made = []; window.freed = [];
addEventListener("securitypolicyviolation", (e) => violations.push(`${e.violatedDirective} ${e.blockedURI}`));
const create = URL.createObjectURL, revoke = URL.revokeObjectURL;
URL.createObjectURL = (blob) => { const url = create.call(URL, blob); made.push(url); return url; };
URL.revokeObjectURL = (url) => { freed.push(url); revoke.call(URL, url); };
"""
GIVE = """
const [name, type, bytes, kind] = arguments;
const data = new DataTransfer();
for (let i = 0; i < name.length; i += 1) {
  data.items.add(new File([Uint8Array.from(atob(bytes[i]), (c) => c.charCodeAt(0))], name[i], { type: type[i] }));
}
if (kind === "paste") document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
else for (const step of ["dragover", "drop"]) {
  document.getElementById("drop").dispatchEvent(
    new DragEvent(step, { dataTransfer: data, bubbles: true, cancelable: true }));
}
"""


class Page:
    """A page in the browser."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self._injected: list[str] = []

    def open(self, url: str, *, script: str = "") -> None:
        """Load `url`; `script` runs before the page's own."""
        self.close()
        for source in (WATCH, script):
            made = self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
            self._injected.append(made["identifier"])
        self.driver.get("about:blank")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)  # what was before is gone
        self.driver.get(url)

    def close(self) -> None:
        for identifier in self._injected:
            self.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": identifier})
        self._injected.clear()

    def run(self, script: str, *arguments: object) -> object:
        return self.driver.execute_script(script, *arguments)

    def all(self, css: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str, seconds: float = 15):
        """The first element that matches, waited for."""
        return self.wait(lambda: next(iter(self.all(css)), None), f"an element {css}", seconds)

    def text(self, css: str, seconds: float = 15) -> str:
        return self.one(css, seconds).text

    def wait(self, what, why: str, seconds: float = 15):
        # The page may replace what was just found: it is looked for again, as what is not there yet.
        waiting = WebDriverWait(self.driver, seconds, 0.05, [StaleElementReferenceException])
        return waiting.until(lambda _: what(), f"{why}: {self.all('body')[0].text}")

    def upload(self, *files: Path) -> None:
        """Through the file input, as its dialog does."""
        self.wait(lambda: self.one("#files").is_enabled(), "the file input is enabled")
        self.one("#files").send_keys("\n".join(map(str, files)))

    def give(self, kind: str, *files: tuple[str, str, bytes]) -> None:
        """`kind` drop or paste; `files` are name, type and content."""
        self.wait(lambda: self.one("#files").is_enabled(), "the file input is enabled")
        names, types, contents = zip(*files, strict=True) if files else ((), (), ())
        self.run(GIVE, list(names), list(types), [base64.b64encode(c).decode() for c in contents], kind)

    def requests(self) -> list[str]:
        """Every address that the browser asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if url != "about:blank"]

    def complaints(self, *, network: bool = True) -> list[str]:
        """Errors and warnings in the console, and breaches of the policy; `network`: failed requests count too."""
        entries = self.driver.get_log("browser")
        found = [e["message"] for e in entries if network or e["source"] != "network"]
        return [*found, *self.run("return window.violations")]

    def stays_at(self, url: str) -> list[str]:
        """Requests that went elsewhere than to the origin of `url`."""
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        return [u for u in self.requests() if not u.startswith((f"{origin}/", f"blob:{origin}/"))]


@contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator[Page]:
    """A browser without a window. The test is skipped where Chromium is not installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("Chromium and its driver are not installed: apt install chromium chromium-driver")
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (*FLAGS, f"user-data-dir={profile}", f"window-size={width},{height}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        made = webdriver.Chrome(options=options, service=Service(driver, env={**os.environ, "NO_PROXY": "*"}))
        try:
            yield Page(made)
        finally:
            made.quit()
