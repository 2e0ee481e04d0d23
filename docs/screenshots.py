"""Write docs/report-wide.png and docs/report-narrow.png from a report, with Debian's chromium.

    python docs/screenshots.py report.html [--dark] [--full] [--out docs]

The browser is driven over a pipe (the DevTools protocol), because its window cannot be made as narrow as a phone.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDE, NARROW = 1280, 390  # px
TOP = {
    WIDE: 1500,
    NARROW: 2000,
}  # px of the page that a picture shows, unless the whole is asked for

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


@dataclass
class Browser:
    """A running chromium: commands are written to one pipe, answers read from another."""

    to: int
    back: int

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._unread = b""

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result.

        Raises:
            RuntimeError: if the browser refuses it, or has gone.
        """
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.to, data) :]
        while (answer := self._read()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def wait_for(self, event: str) -> None:
        """Read until an event comes."""
        while self._read().get("method") != event:
            pass

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            more = os.read(self.back, 1 << 16)
            if not more:
                raise RuntimeError("chromium has stopped")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def open(self, file: Path, width: int, *, dark: bool = False) -> Page:
        """Return a page with `file` in it, `width` px wide."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        phone = width < 600
        self.call("Page.enable", session)
        self.call("Emulation.setEmulatedMedia", session, features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            session,
            width=width,
            height=900,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.call("Page.navigate", session, url=file.resolve().as_uri())
        self.wait_for("Page.loadEventFired")
        return Page(self, session, width)


@dataclass(frozen=True)
class Page:
    """An open page."""

    browser: Browser
    session: str
    width: int

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self.browser.call(
            "Runtime.evaluate", self.session, expression=expression, returnByValue=True
        )
        return found["result"].get("value")

    def screenshot(self, height: int | None = None) -> bytes:
        """Return a PNG of the page from its top: `height` px of it, or all."""
        whole = self.evaluate("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self.width, "height": min(whole, height or whole)}
        found = self.browser.call(
            "Page.captureScreenshot",
            self.session,
            format="png",
            clip={**clip, "scale": 1},
            captureBeyondViewport=True,
        )
        return base64.b64decode(found["data"])


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start chromium, and stop it again.

    Raises:
        FileNotFoundError: if there is none.
    """
    program = shutil.which("chromium")
    if program is None:
        raise FileNotFoundError("chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        child_in, to = os.pipe()
        back, child_out = os.pipe()
        process = os.posix_spawn(
            program,
            [program, *_FLAGS, f"--user-data-dir={profile}"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, child_in, 3),  # where chromium looks for the two pipes
                (os.POSIX_SPAWN_DUP2, child_out, 4),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
        )
        os.close(child_in)
        os.close(child_out)
        try:
            browser = Browser(to, back)
            yield browser
            browser.call("Browser.close")
        except BaseException:
            os.kill(process, signal.SIGKILL)
            raise
        finally:
            os.close(to)
            os.close(back)
            os.waitpid(process, 0)


def main() -> None:
    """Write the two pictures."""
    parser = argparse.ArgumentParser(description="Screenshots of a report.")
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--full", action="store_true", help="the whole page instead of its top")
    given = parser.parse_args()
    if not given.report.is_file():
        sys.exit(f"screenshots: {given.report} does not exist: give the report's HTML file.")
    try:
        with chromium() as browser:
            for name, width in (("wide", WIDE), ("narrow", NARROW)):
                page = browser.open(given.report, width, dark=given.dark)
                picture = page.screenshot(None if given.full else TOP[width])
                (given.out / f"report-{name}.png").write_bytes(picture)
    except (FileNotFoundError, RuntimeError) as error:
        sys.exit(f"screenshots: {error}")


if __name__ == "__main__":
    main()
