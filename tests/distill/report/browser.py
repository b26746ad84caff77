"""A real Chromium for tests, driven through chromedriver's HTTP interface (the W3C's WebDriver) without any package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key under which WebDriver hands out elements."""


def missing() -> str:
    """Why no browser can be driven here; "" where one can."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    return "" if program and shutil.which("chromedriver") else "no chromium and chromedriver (Debian: chromium-driver)"


class Browser:
    """One session. `width`, `height` [px] are of the page, whatever the window's own minimum."""

    def __init__(self, address: str) -> None:
        self.address = address
        program = shutil.which("chromium") or shutil.which("google-chrome")
        options = {"binary": program, "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{answer['sessionId']}"

    def _ask(self, method: str, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def open(self, page: Path, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        self._ask("POST", f"{self.session}/url", {"url": page.resolve().as_uri()})

    def devtools(self, command: str, **arguments: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._ask("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": arguments})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that the JavaScript returns."""
        return self._ask("POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def click(self, selector: str) -> None:
        """A real click on the first element, which fails where something covers it."""
        found = self._ask("POST", f"{self.session}/element", {"using": "css selector", "value": selector})
        self.run("arguments[0].scrollIntoView({block: 'center'})", {ELEMENT: found[ELEMENT]})
        self._ask("POST", f"{self.session}/element/{found[ELEMENT]}/click", {})

    def picture_of(self, selector: str) -> bytes:
        """A PNG of the first element as it looks now."""
        found = self._ask("POST", f"{self.session}/element", {"using": "css selector", "value": selector})
        return base64.b64decode(self._ask("GET", f"{self.session}/element/{found[ELEMENT]}/screenshot"))

    def screenshot(self) -> bytes:
        """A PNG of the whole page."""
        size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        return base64.b64decode(self.devtools("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"])

    def printed(self) -> bytes:
        """The page as a PDF on A4."""
        made = self.devtools("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=True)
        return base64.b64decode(made["data"])

    def complaints(self) -> list[str]:
        """Warnings and errors on the console since the last call."""
        rows = self._ask("POST", f"{self.session}/se/log", {"type": "browser"})
        return [row["message"] for row in rows if row["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call."""
        logged = self._ask("POST", f"{self.session}/se/log", {"type": "performance"})
        rows = [json.loads(row["message"])["message"] for row in logged]
        return [row["params"]["request"]["url"] for row in rows if row["method"] == "Network.requestWillBeSent"]

    def close(self) -> None:
        self._ask("DELETE", self.session)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser, closed afterwards together with its driver."""
    driver = shutil.which("chromedriver")
    assert driver, missing()
    free = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=free)
    assert process.stdout is not None
    try:
        port = ""
        end = time.monotonic() + 60
        while not port and time.monotonic() < end:
            line = process.stdout.readline()
            port = line.rpartition("on port ")[2].strip(" .\n") if "successfully" in line else ""
        assert port, "chromedriver did not start"
        opened = Browser(f"http://127.0.0.1:{port}")
        try:
            yield opened
        finally:
            opened.close()
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()
