"""A headless Chromium without network, driven over the DevTools protocol."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """The one tab of a browser."""

    def __init__(self, address: str) -> None:
        self.socket = websocket.create_connection(address, suppress_origin=True, timeout=30)
        self.number = 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one DevTools command; record the events that arrive before its result."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                assert "error" not in message, message
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        match message["method"], message["params"]:
            case "Runtime.exceptionThrown", facts:
                self.errors.append(str(facts["exceptionDetails"]))
            case "Runtime.consoleAPICalled", facts if facts["type"] in ("error", "warning", "assert"):
                self.errors.append(str(facts["args"]))
            case "Log.entryAdded", facts:
                self.errors.append(facts["entry"]["text"])
            case "Network.requestWillBeSent", facts:
                self.requests.append(facts["request"]["url"])

    def open(self, path: Path, width: int = 1280, dark: bool = False) -> None:
        """Load a file in a window of a width, in the light or dark colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + 20
        ready = "document.readyState === 'complete' && location.protocol === 'file:'"
        while not self.run(ready):
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.05)
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, or of the promise that it returns."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = {"Enter": "\r"}.get(key)
        code = {"Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36}[key]
        facts = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **facts, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(image))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start a browser with an empty profile folder, and yield its page."""
    assert EXECUTABLE is not None, "there is no Chromium"
    command = [
        EXECUTABLE,
        "--headless=new",
        "--no-sandbox",  # the sandbox needs rights that a container does not have
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Page(_address(profile / "DevToolsActivePort"))
    finally:
        process.terminate()
        process.wait(20)


def _address(file: Path) -> str:
    """The DevTools address of the browser's page; waits until there is one."""
    deadline = time.monotonic() + 30
    while not (file.exists() and file.read_text().count("\n")):
        assert time.monotonic() < deadline, "Chromium does not start"
        time.sleep(0.05)
    port = file.read_text().splitlines()[0]
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            pages = [target for target in json.load(answer) if target["type"] == "page"]
        if pages:
            return str(pages[0]["webSocketDebuggerUrl"])
        assert time.monotonic() < deadline, "Chromium opens no page"
        time.sleep(0.05)
