"""A headless Chromium for tests, driven by chromedriver through the WebDriver protocol: JSON over HTTP."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = """--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-quic --disable-default-apps --disable-dev-shm-usage
    --use-fake-device-for-media-stream --use-fake-ui-for-media-stream""".split()
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's key for an element
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Browser:
    """A session of chromedriver at an address. Methods raise AssertionError with what the browser says."""

    def __init__(self, address: str, profile: Path, flags: list[str]) -> None:
        self.address = address
        options = {"args": [*FLAGS, f"--user-data-dir={profile}", *flags], "binary": shutil.which("chromium")}
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options,
                                        "goog:loggingPrefs": {"browser": "ALL"}}}  # fmt: skip
        self.session = ""
        self.session = f"/session/{self.ask('POST', '/session', capabilities=capabilities)['sessionId']}"

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """One command of the protocol."""
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(f"{self.address}{self.session}{path}", data, method=method,
                                         headers={"Content-Type": "application/json"})  # fmt: skip
        try:
            with DIRECT.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as e:
            raise AssertionError(json.load(e)["value"]["message"].splitlines()[0]) from None

    def open(self, url: str) -> None:
        self.ask("POST", "/url", url=url)

    def js(self, script: str, *args: Any) -> Any:
        """What a script's `return` gives."""
        return self.ask("POST", "/execute/sync", script=script, args=list(args))

    def wait(self, condition: str, seconds: float = 40) -> Any:
        """Wait until a JavaScript expression is true; returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.js(f"return {condition}")):
            assert time.monotonic() < end, f"{condition} within {seconds} s; the page says: {self.text()}; {self.log()}"
            time.sleep(0.1)
        return value

    def text(self) -> str:
        return self.js("return document.body.innerText")

    def type_into(self, selector: str, text: str) -> None:
        """Type text, or choose a file by its path in a file field."""
        element = self.ask("POST", "/element", using="css selector", value=selector)[ELEMENT]
        self.ask("POST", f"/element/{element}/value", text=text)

    def cdp(self, command: str, **params: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self.ask("POST", "/goog/cdp/execute", cmd=command, params=params)

    def log(self) -> list[str]:
        """What the console said since it was last asked for."""
        return [entry["message"] for entry in self.ask("POST", "/se/log", type="browser")]

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.ask("GET", "/screenshot")))


@contextmanager
def browser(profile: Path, *flags: str) -> Iterator[Browser]:
    """A browser with a profile of its own; the test is skipped where there is none."""
    for program in ("chromium", "chromedriver"):
        if not shutil.which(program):
            pytest.skip(f"needs {program} (Debian: apt-get install chromium chromium-driver)")
    command = ["chromedriver", "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = next(line.split()[-1].strip(".") for line in process.stdout if "started successfully on port" in line)
        made = Browser(f"http://127.0.0.1:{port}", profile, list(flags))
        try:
            yield made
        finally:
            made.ask("DELETE", "")
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()
