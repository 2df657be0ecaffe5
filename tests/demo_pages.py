"""Uses the page of `unicode.run.demo` in a headless Chromium as a person does, and takes pictures of it.

    python tests/demo_pages.py http://127.0.0.1:7860 PICTURE OUT_DIR       writes demo_talk, demo_draw, demo_words at 1280 and 390 px
"""

import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from browser import Browser, Tab, find_browser, save_small

FIND = """((selector, text) => [...document.querySelectorAll(selector)].filter(
  one => one.offsetParent !== null && (!text || one.textContent.trim() === text))[0])"""
PANEL = "[...document.querySelectorAll('[role=tabpanel]')].filter(one => one.offsetParent !== null).at(-1)"
TYPE = """((box, text) => {
  Object.getOwnPropertyDescriptor(Object.getPrototypeOf(box), 'value').set.call(box, text);
  box.dispatchEvent(new Event('input', {bubbles: true}));
})"""
HEIGHTS = {1280: 760, 390: 900}


class Demo(Tab):
    """The page, open in a browser."""

    def choose(self, name: str) -> None:
        """Open one of its tabs, in the menu behind "…" where the screen is narrow."""
        shown = f"{FIND}('[role=tab]', {json.dumps(name)})"
        if not self.run(f"!!{shown}"):
            self.run(f"{FIND}('.overflow-menu > button').click()")
            shown = f"{FIND}('.overflow-dropdown button', {json.dumps(name)})"
        self.wait(f"!!{shown}")
        self.run(f"{shown}.click()")
        self.wait(f"!!{FIND}('button', 'Submit')")

    def type(self, selector: str, text: str) -> None:
        self.run(f"{TYPE}({FIND}({json.dumps(selector)}), {json.dumps(text)})")

    def press(self, selector: str, text: str = "") -> None:
        self.wait(f"!!{FIND}({json.dumps(selector)}, {json.dumps(text)})")
        self.run(f"{FIND}({json.dumps(selector)}, {json.dumps(text)}).click()")

    def upload(self, picture: Path) -> None:
        self.put_files(f"{PANEL}.querySelector('input[type=file]')", picture)

    def faults(self) -> list[str]:
        """Return what is wrong: console errors, requests that failed or that went elsewhere, a page that is too wide."""
        found = []
        for event in self.browser.events:
            method, what = event.get("method"), event.get("params", {})
            if method == "Network.requestWillBeSent" and what["request"]["url"].startswith("http"):
                away = urlsplit(what["request"]["url"]).hostname != "127.0.0.1"
                found += [f"a request to {what['request']['url']}"] if away else []
            if method == "Runtime.exceptionThrown" or (method == "Network.loadingFailed" and not what.get("canceled")):
                found.append(json.dumps(what))
            if method == "Runtime.consoleAPICalled" and what["type"] in ("error", "assert"):
                found.append(json.dumps(what["args"]))
            if method == "Log.entryAdded" and what["entry"]["level"] == "error":
                found.append(f"{what['entry']['text']} {what['entry'].get('url', '')}")
        wider = self.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return found + ([f"the page is {wider} px too wide"] if wider > 0 else [])


def walk(browser: Browser, url: str, picture: Path, *, width: int, question: str, caption: str, out: Path | None = None) -> list[str]:
    """Upload, ask, draw, look at words; returns the faults. `out`: where pictures of the page go."""
    page = Demo(browser, url, width=width)

    def shoot(name: str) -> None:
        if out is not None:
            time.sleep(1)  # until nothing fades in or out
            save_small(page.picture(HEIGHTS[width]), out / f"demo_{name}_{width}.png")

    page.wait(f"!!{FIND}('textarea')")
    page.upload(picture)
    page.wait(f"!!{FIND}('.thumbnail-item img, .thumbnail-image')")
    page.type("textarea", question)
    page.press("button.submit-button")
    page.wait(f"{FIND}('.message.bot') && !{FIND}('[aria-label^=Loading]') && {FIND}('textarea').value === ''")
    shoot("talk")
    page.choose("Draw")
    page.type("textarea, input[type=text]", caption)
    page.type("[aria-label='number input for guidance']", "3")
    page.press("button", "Submit")
    page.wait(f"{PANEL}.querySelectorAll('img').length === 4 && [...{PANEL}.querySelectorAll('img')].every(one => one.naturalWidth)")
    shoot("draw")
    page.choose("Words")
    page.upload(picture)
    page.wait(f"!!{PANEL}.querySelector('[data-testid=image] img, .image-frame img')")
    page.press("button", "Submit")
    page.wait(f"{PANEL}.querySelectorAll('.cell').length > 3")
    page.run(f"{PANEL}.querySelectorAll('.cell')[1].focus()")
    assert page.run(f"{PANEL}.querySelectorAll('.cell')[1].innerText").count("\n") > 2, "the words of a cell are not shown"
    page.run(f"{PANEL}.querySelector('.cellmap').scrollIntoView({{block: 'end'}})")
    shoot("words")
    faults = page.faults()
    page.close()
    return faults


if __name__ == "__main__":
    path, folder = find_browser(), Path(sys.argv[3])
    if path is None:
        sys.exit("no browser found; install one (apt-get install chromium) or name it in UNICODE_BROWSER")
    folder.mkdir(parents=True, exist_ok=True)
    with Browser(path) as chromium:
        for screen in HEIGHTS:
            told = {"question": "What shape is the object?", "caption": "a red circle at the top left"}
            print(screen, walk(chromium, sys.argv[1], Path(sys.argv[2]), width=screen, out=folder, **told) or "no fault")
