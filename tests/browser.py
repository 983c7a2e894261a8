"""A headless Chromium, driven over a pipe by the DevTools protocol: no driver, no other package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --enable-unsafe-swiftshader --disable-dev-shm-usage --no-first-run "
    "--disable-background-networking --disable-sync --disable-extensions --disable-component-update --hide-scrollbars "
    "--remote-debugging-pipe about:blank"
).split()
BUTTONS = {"mouseMoved": "none", "mousePressed": "left", "mouseReleased": "left"}


class Page:
    """One page of the browser.

    Attributes
    ----------
    problems
        What the page complained of: errors and warnings of the console, exceptions, files that are missing.
    requested
        Addresses that the page asked for.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.problems: list[str] = []
        self.requested: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self.call(f"{domain}.enable")
        self.call("Network.setCacheDisabled", cacheDisabled=True)

    def call(self, method: str, timeout: float = 60, **parameters: Any) -> dict[str, Any]:
        """Call the browser and wait for the answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + timeout
        while True:
            answer = self._read(until, method)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self._note(answer)

    def _read(self, until: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._reading], [], [], max(until - time.monotonic(), 0))[0]:
                raise TimeoutError(f"The browser does not answer: {what}")
            data = os.read(self._reading, 1 << 20)
            if not data:
                raise RuntimeError("The browser has ended")
            self._rest += data
        message, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        method, about = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            place = f"{details.get('url')}:{details.get('lineNumber', 0) + 1}"
            self.problems.append(f"{place} {details.get('exception', {}).get('description') or details['text']}")
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            said = " ".join(str(part.get("value", part.get("description"))) for part in about["args"])
            # The viewer says so of a tile that was still on its way when its slide was left: nothing is wrong.
            if "loaded before reset" not in said and not said.endswith("Image load aborted."):
                self.problems.append(said)
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            # Words on the speed of the software renderer, and of reading pixels back, are not the page's fault.
            if not any(word in about["entry"]["text"] for word in ("GL Driver Message", "willReadFrequently")):
                self.problems.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.requested.append(about["request"]["url"])

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait(self, expression: str, timeout: float = 20) -> Any:
        """Wait until an expression is true."""
        until = time.monotonic() + timeout
        while not (value := self.run(expression)):
            if time.monotonic() > until:
                raise TimeoutError(f"never true: {expression}; the page says {self.problems}")
            time.sleep(0.03)
        return value

    def open(self, address: str) -> None:
        """Open an address from anew, without the hash of the page before."""
        self.call("Page.navigate", url="about:blank")
        self.problems.clear()
        self.requested.clear()
        self.call("Page.navigate", url=address)

    def size(self, width: int, height: int) -> None:
        """Set the size of the window, CSS px."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def click(self, x: float, y: float) -> None:
        """Click with the left button."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self._mouse(kind, x, y)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press, move in steps and let go."""
        self._mouse("mousePressed", *start)
        for step in range(1, 6):
            x, y = (a + (b - a) * step / 5 for a, b in zip(start, end, strict=True))
            self._mouse("mouseMoved", x, y, button="left")
        self._mouse("mouseReleased", *end)

    def wheel(self, x: float, y: float, by: float) -> None:
        """Turn the wheel; negative goes nearer."""
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=by)

    def _mouse(self, kind: str, x: float, y: float, button: str | None = None) -> None:
        button = button or BUTTONS[kind]
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def press(self, key: str) -> None:
        """Press a key that makes a letter, or one with a name."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def chromium(profile: Path, *options: str) -> Iterator[Page]:
    """Start Chromium with a profile of its own; it ends with the block."""
    assert CHROMIUM is not None
    to_browser, writing = os.pipe()
    reading, from_browser = os.pipe()

    def ends() -> None:
        # The browser reads on 3 and writes on 4; the pipes may lie on these numbers, so they are moved away first.
        high = os.dup(to_browser), os.dup(from_browser)
        moved = [os.dup2(fd, 60 + i) for i, fd in enumerate(high)]
        os.dup2(moved[0], 3)
        os.dup2(moved[1], 4)

    process = subprocess.Popen(
        [CHROMIUM, f"--user-data-dir={profile}", *options, *OPTIONS],
        preexec_fn=ends,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        page = Page(reading, writing)
        yield page
        page._session = None
        page.call("Browser.close", timeout=10)
    finally:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
        os.close(reading)
        os.close(writing)
