from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from unicode.report.page import Figure, Section, build_page, missing, number, table
from unicode.report.picture import data_uri, image_tag
from unicode.run.report import main

VOID = {"meta", "link", "img", "br", "line", "polyline"}


class Reader(HTMLParser):
    """Checks that every element is closed in its place, and collects what is looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values["id"]} & set(values.values()) if "id" in values else set()
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            self.images.append(values)
        if tag == "a":
            self.links.append(values["href"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"{self.getpos()}: </{tag}>"


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def arguments(runs) -> list[str]:
    words = ["--reconstruction", runs.reconstruction, "--tokenizer", runs.tokenizer, "--llm", runs.llm, f"second={runs.llm}"]
    words += ["--questions", runs.questions, "--answers", runs.answers, f"blind={runs.blind}", "--images", runs.questions.parent]
    words += ["--generation", runs.generation, "--decompression", runs.decompression, "--steps", runs.steps]
    words += ["--benchmarks", runs.benchmarks]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["--out", str(out), *arguments(runs)]) == 0
    return out


def test_the_page_stands_alone_and_every_picture_is_described(page):
    text = page.read_text(encoding="utf-8")
    reader = read(text)
    assert len(reader.images) > 40
    assert all(image["alt"].strip() and image["src"].startswith("data:image/") for image in reader.images)
    assert all(address.startswith(("data:", "#")) for address in reader.addresses)
    assert {link.removeprefix("#") for link in reader.links} <= reader.anchors
    assert "<script" not in text and "http://" not in text.replace("http://www.w3.org", "") and "@import" not in text
    assert "<b>mauve</b>" not in text and "&lt;b&gt;mauve&lt;/b&gt;" in text


def test_the_page_says_what_the_runs_reached(page):
    text = page.read_text(encoding="utf-8")
    assert "from a prompt, greedily, with guidance 2, 0.25 s each" in text
    figures = ("35.5 dB", "75.0 %", "blind 33.3 %", "95.0 %", "83 %", "shuffled prompts 4.5 %", "15 min 31 s")
    for said in (*figures, "adversarial.f1", "blind, grey", "second", "give --inception FILE"):
        assert said in text, said


def test_a_page_of_nothing_says_what_is_missing(tmp_path):
    assert main(["--out", str(tmp_path / "empty.html")]) == 0
    text = (tmp_path / "empty.html").read_text(encoding="utf-8")
    read(text)
    for name in ("eval_tokenizer", "encode_images", "unicode.run.answer", "generate_images", "unicode.run.benchmark", "quickstart.sh"):
        assert name in text, name


def test_dry_run_writes_nothing(runs, tmp_path):
    assert main(["--out", str(tmp_path / "none.html"), "--dry-run", *arguments(runs)]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "page.pdf"], "no .html file"),
        (["--out", "page.html", "--images", "nowhere"], "no folder nowhere"),
        (["--out", "page.html", "--answers", "a=x", "a=y"], "two things are called a"),
        (["--out", "page.html", "--ids", "nowhere"], "nowhere is no store of ids"),
        (["--out", "page.html", "--world", "colors=8"], "colours"),
    ],
)
def test_a_user_is_told(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_parts_are_escaped():
    body = table(["<h>", "", ""], [["<c>", 1.5, None]]) + missing("<m>", "<r>")
    page = build_page("<t>", "a & b", [Figure("<n>", "1")], [Section("x > y", body)])
    read(page)
    for part in ("<t>", "<n>", "<h>", "<c>", "<m>", "<r>"):
        assert part not in page


NUMBERS = [(3, "3"), (12345, "12,345"), (0.123456, "0.1235"), (35.5, "35.5"), (0.0, "0"), (1234.56, "1,235")]


@pytest.mark.parametrize(("value", "shown"), NUMBERS)
def test_numbers(value, shown):
    assert number(value) == shown


def test_pictures_are_small_and_described():
    noise = np.random.default_rng(0).integers(0, 255, (900, 600, 3), dtype=np.uint8)
    assert data_uri(Image.fromarray(noise)).startswith("data:image/jpeg")
    assert data_uri(Image.fromarray(noise[:32, :32])).startswith("data:image/png")
    assert data_uri(Image.new("RGBA", (300, 300))).startswith("data:image/png")
    assert "pixels" in image_tag(noise[:32, :32], "a <noise>") and "a &lt;noise&gt;" in image_tag(noise, "a <noise>")
    with pytest.raises(ValueError, match="no text"):
        image_tag(noise, " ")


@pytest.mark.browser
def test_a_browser_shows_the_page(page, browser, tmp_path):
    backgrounds = set()
    for width in (1280, 390):
        for dark in (False, True):
            seen = browser.look(page, width=width, dark=dark)
            assert seen.messages == []
            facts = seen.facts
            assert facts["overflow"] <= 0, f"{facts['overflow']} px too wide at {width}"
            assert facts["images"] > 40 and facts["without_alt"] == facts["broken"] == facts["drawings_without_label"] == 0
            assert facts["requests"] == []
            backgrounds.add(facts["background"])
            (tmp_path / "page.png").write_bytes(seen.png)
            with Image.open(tmp_path / "page.png") as picture:
                assert picture.width == (width if width > 500 else 2 * width)
    assert len(backgrounds) == 2


@pytest.mark.browser
def test_the_browser_sees_faults(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<body><img src='data:,x'><div style='width:3000px'>x</div><script>console.error('oh'); throw Error('no')</script>")
    seen = browser.look(page, width=390)
    assert seen.facts["overflow"] > 0 and seen.facts["without_alt"] == seen.facts["broken"] == 1 and len(seen.messages) >= 2
