# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, told what to do through its DevTools protocol; enough of it to try one page.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

__all__ = ["PROGRAM", "Browser"]

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One tab.

    Args:
        profile: an empty folder for the browser's files.
    """

    def __init__(self, profile: Path) -> None:
        from websockets.sync.client import connect

        assert PROGRAM is not None
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        flags += ["--disable-background-networking", "--disable-dev-shm-usage", "--force-color-profile=srgb"]
        self._process = subprocess.Popen(
            [PROGRAM, *flags, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        file = profile / "DevToolsActivePort"
        self._until(lambda: file.exists() and len(file.read_text().splitlines()) > 1)
        port = file.read_text().splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            target = next(entry for entry in json.load(answer) if entry["type"] == "page")
        self._socket = connect(target["webSocketDebuggerUrl"], max_size=None)
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.messages: list[str] = []
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command, and its result; events that come meanwhile are noted."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.messages.append(json.dumps(message["params"]["exceptionDetails"])[:2000])
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.messages.append(message["params"]["entry"]["text"])
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result

    def look(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Take a size and a colour scheme."""
        mobile = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        """Go to a page and wait until it is there."""
        self.call("Page.navigate", url=address)
        self._until(
            lambda: self.run("document.readyState") == "complete" and self.run("location.href") != "about:blank"
        )

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 20) -> None:
        """Wait until an expression is true."""
        self._until(lambda: bool(self.run(f"!!({script})")), seconds)

    def type(self, text: str) -> None:
        """Type a text where the caret is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key such as "Enter" or "Escape"."""
        code = {"Enter": 13, "Escape": 27}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.terminate()
        self._process.wait(20)

    def _until(self, condition: Any, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the browser did not get there"
            time.sleep(0.05)
