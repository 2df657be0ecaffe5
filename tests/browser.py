"""A headless Chromium that looks at pages and uses them, driven over its debugging pipe: no driver to install, only the browser.

    python tests/browser.py PAGE.html OUT_DIR [HEIGHT]       screenshots at 1280 and 390 px, light and dark, of the first HEIGHT px
"""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FACTS = """JSON.stringify({
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  images: document.images.length,
  without_alt: [...document.images].filter(image => !image.alt.trim()).length,
  broken: [...document.images].filter(image => !image.complete || !image.naturalWidth).length,
  drawings_without_label: [...document.querySelectorAll('svg')].filter(drawing => !drawing.getAttribute('aria-label')).length,
  requests: performance.getEntriesByType('resource').map(entry => entry.name).filter(name => !name.startsWith('data:')),
  background: getComputedStyle(document.body).backgroundColor,
  height: document.documentElement.scrollHeight,
})"""


def find_browser() -> str | None:
    """Return the path of a Chromium, None where there is none; UNICODE_BROWSER names another."""
    return os.environ.get("UNICODE_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Look:
    """What a page is like at one width."""

    facts: dict[str, Any]
    messages: list[str]
    png: bytes


class Browser:
    """One Chromium process; a context manager."""

    def __init__(self, path: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        from_us, to_browser = os.pipe()
        from_browser, to_us = os.pipe()

        def take_pipes() -> None:  # the browser reads commands from file 3 and answers on file 4
            first, second = os.dup(from_us), os.dup(to_us)
            os.dup2(first, 3)
            os.dup2(second, 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run"]
        self.process = subprocess.Popen(
            [path, *flags, "--remote-debugging-pipe", f"--user-data-dir={self.folder.name}", "about:blank"],
            preexec_fn=take_pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self.commands, self.replies = os.fdopen(to_browser, "wb", buffering=0), os.fdopen(from_browser, "rb")
        self.number, self.events = 0, []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.send("Browser.close")
            self.process.wait(timeout=20)
        except (OSError, EOFError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.commands.close()
        self.replies.close()
        shutil.rmtree(self.folder.name, ignore_errors=True)

    def receive(self) -> dict[str, Any]:
        """Return the next message of the browser."""
        content = bytearray()
        while (byte := self.replies.read(1)) != b"\0":
            if not byte:
                raise EOFError("the browser ended")
            content += byte
        return json.loads(content)

    def send(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        self.commands.write(json.dumps(message).encode() + b"\0")
        while True:
            reply = self.receive()
            if reply.get("id") == self.number:
                assert "error" not in reply, reply["error"]
                return reply["result"]
            self.events.append(reply)

    def look(self, page: str | Path, *, width: int, dark: bool = False, max_height: int = 16_000) -> Look:
        """Open a page as a screen of this width shows it, a phone below 500 px, and return what it is like."""
        tab = Tab(self, Path(page).resolve().as_uri(), width=width, dark=dark)
        facts = json.loads(tab.run(FACTS))
        png = tab.picture(min(facts["height"], max_height))
        bad = ("Runtime.exceptionThrown", "Network.loadingFailed")
        messages = [json.dumps(event["params"]) for event in self.events if event.get("method") in bad]
        messages += [json.dumps(event["params"]) for event in self.events if event.get("method") == "Runtime.consoleAPICalled"]
        messages += [event["params"]["entry"]["text"] for event in self.events if event.get("method") == "Log.entryAdded"]
        tab.close()
        return Look(facts, messages, png)


class Tab:
    """A page that is open on a screen of some width, a phone below 500 px."""

    def __init__(self, browser: Browser, url: str, *, width: int, dark: bool = False) -> None:
        browser.events.clear()
        self.browser, phone = browser, width < 500
        self.target = browser.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.send("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        self.screen = {"width": width, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.send("Emulation.setDeviceMetricsOverride", height=900, **self.screen)
        self.send("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in browser.events):
            browser.events.append(browser.receive())

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **parameters)

    def run(self, expression: str) -> Any:
        """Return the value of JavaScript; promises are awaited."""
        done = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, expression: str, seconds: float = 120) -> Any:
        """Return the value of JavaScript as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(expression)):
            assert time.monotonic() < deadline, f"not true within {seconds} s: {expression}"
            time.sleep(0.2)
        return value

    def put_files(self, element: str, *files: str | Path) -> None:
        """Choose files for an <input type=file> that JavaScript gives."""
        found = self.send("Runtime.evaluate", expression=element)["result"]
        assert "objectId" in found, f"no such element: {element}"
        self.send("DOM.setFileInputFiles", objectId=found["objectId"], files=[str(Path(file).resolve()) for file in files])

    def picture(self, height: int = 900) -> bytes:
        """Return a PNG of the first `height` px."""
        self.send("Emulation.setDeviceMetricsOverride", height=height, **self.screen)
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        self.browser.send("Target.closeTarget", targetId=self.target)


def save_small(png: bytes, file: Path) -> None:
    """Write a screenshot with 256 colours."""
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").quantize(256).save(file, optimize=True)


if __name__ == "__main__":
    path, out, most = find_browser(), Path(sys.argv[2]), int([*sys.argv, 16_000][3])
    if path is None:
        sys.exit("no browser found; install one (apt-get install chromium) or name it in UNICODE_BROWSER")
    out.mkdir(parents=True, exist_ok=True)
    with Browser(path) as browser:
        for screen_width in (1280, 390):
            for is_dark in (False, True):
                seen = browser.look(sys.argv[1], width=screen_width, dark=is_dark, max_height=most)
                file = out / f"report_{screen_width}{'_dark' if is_dark else ''}.png"
                save_small(seen.png, file)
                print(file, seen.facts, seen.messages or "no message")
