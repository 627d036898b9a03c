"""A real browser for tests: Chromium over its DevTools pipe, with real keys, a mouse, screenshots and a list of requests."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
HANGS = 120.0  # seconds
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
KEYS = {
    "Enter": 13, "Escape": 27, "Backspace": 8, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9,
}  # fmt: skip


class Page:
    """An open page."""

    def __init__(self, to_browser: int, from_browser: int, downloads: Path):
        self.to_browser, self.from_browser, self.downloads = to_browser, from_browser, downloads
        self.number, self.waiting, self.session = 0, b"", ""
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A DevTools command and its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            got = self.receive()
            if got.get("id") == self.number:
                assert "error" not in got, got
                return got["result"]
            self.events.append(got)

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.waiting:
            assert select.select([self.from_browser], [], [], HANGS)[0], "the browser hangs"
            part = os.read(self.from_browser, 1 << 20)
            assert part, "the browser has exited"
            self.waiting += part
        first, _, self.waiting = self.waiting.partition(b"\0")
        return json.loads(first)

    def open(self, file: Path) -> None:
        self.send("Page.enable")
        self.send("Network.enable")
        self.send("Runtime.enable")
        self.events.clear()
        self.send("Page.navigate", url=file.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def run(self, script: str) -> Any:
        """The value of an expression; promises are awaited."""
        got = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in got, got["exceptionDetails"]
        return got["result"].get("value")

    def press(self, *keys: str) -> None:
        """Real key presses."""
        for key in keys:
            text = {} if key in KEYS and key != "Enter" else {"text": "\r" if key == "Enter" else key}
            known = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper()))}
            self.send("Input.dispatchKeyEvent", type="keyDown", **known, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", **known)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(self, *points: tuple[float, float], shift: bool = False) -> None:
        more = {"button": "left", "modifiers": 8 if shift else 0}
        self.mouse("mousePressed", *points[0], clickCount=1, **more)
        for point in points[1:]:
            self.mouse("mouseMoved", *point, buttons=1, **more)
        self.mouse("mouseReleased", *points[-1], clickCount=1, **more)

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))
        return path

    def upload(self, selector: str, file: Path) -> None:
        """Choose a file in an input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    @property
    def requests(self) -> list[str]:
        """Addresses that the page asked for, without those in the page itself."""
        seen = [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in seen if not url.startswith(("data:", "blob:"))]

    @property
    def errors(self) -> list[Any]:
        return [e["params"] for e in self.events if e.get("method") == "Runtime.exceptionThrown"]


@contextlib.contextmanager
def browser(folder: Path, width: int = 1200, height: int = 800) -> Iterator[Page]:
    """A page of a new browser, whose profile and downloads are in `folder`; skips the test if there is none."""
    if not CHROMIUM:
        pytest.skip("no Chromium on PATH; set CHROMIUM to its path")
    read_by, write_to = os.pipe()
    read_from, write_by = os.pipe()

    def connect() -> None:  # Chromium reads from file 3 and writes to file 4
        os.dup2(read_by, 98)
        os.dup2(write_by, 99)
        os.dup2(98, 3)
        os.dup2(99, 4)

    profile, downloads = folder / "profile", folder / "downloads"
    command = [
        CHROMIUM,
        *QUIET,
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
    ]
    process = subprocess.Popen(
        [*command, "about:blank"],
        preexec_fn=connect,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_by)
    os.close(write_by)
    page = Page(write_to, read_from, downloads)
    try:
        target = page.send("Target.createTarget", url="about:blank")["targetId"]
        session = page.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        page.session = session
        page.resize(width, height)
        yield page
    finally:
        process.kill()
        process.wait()
        os.close(write_to)
        os.close(read_from)
