import json
import shutil
import time
from html.parser import HTMLParser

import pytest
from PIL import Image

from unicode.images.lookup import ImageLookup
from unicode.report.sections import Asked, answer_card
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
    words = ["--reconstruction", runs.reconstruction, f"before={runs.reconstruction}"]
    words += ["--tokenizer", runs.tokenizer, "--llm", runs.llm, f"second={runs.llm}"]
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
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert "<script" not in text and "http://" not in text.replace("http://www.w3.org", "") and "@import" not in text
    assert "<b>mauve</b>" not in text and "&lt;b&gt;mauve&lt;/b&gt;" in text


def test_the_page_says_what_the_runs_reached(page):
    text = page.read_text(encoding="utf-8")
    assert "from a prompt, at temperature 0.5, with guidance 2, the most typical of 16, 0.25 s each" in text
    figures = ("35.5 dB", "75.0 %", "blind 33.3 %", "95.0 %", "83 %", "shuffled prompts 4.5 %", "15.5 min")
    words = ("nearest words after: red, crimson", "nearest words before: red, crimson")
    for shown in (*figures, *words, "adversarial.f1", "blind, grey", "second", "give --inception FILE"):
        assert shown in text, shown


def test_a_second_tokenizer_without_nearest_words_is_named(runs, tmp_path):
    words = ["--out", tmp_path / "page.html", "--reconstruction", runs.reconstruction, f"before={tmp_path / 'empty'}"]
    assert main([*map(str, words)]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"There are no nearest words in {tmp_path / 'empty'}" in text and "--probe --base BASE" in text


def test_the_page_opens_with_a_wall_and_shows_drawings_one_by_one(runs, tmp_path):
    drawn, pictures = tmp_path / "drawn", tmp_path / "anno" / "images"
    shutil.copytree(runs.generation, drawn)
    pictures.mkdir(parents=True)
    for number, colour in enumerate(("red", "green")):
        shutil.copy(drawn / f"{number}.png", pictures / f"{colour}.png")
        (pictures / f"{colour}.txt").write_text(f"the {colour} one\n")
    (tmp_path / "anno" / "ATTRIBUTION.txt").write_text("Graphics: someone, CC-BY 4.0")
    lines = [{"id": str(number), "right": "red.png", "nearest_pixels": f"{colour}.png"} for number, colour in enumerate(("red", "green"))]
    (drawn / "nearest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--generation", drawn, "--one-by-one", drawn, "--images", pictures, "--note", "unseen", "pairs"]
    assert main(["--out", str(tmp_path / "page.html"), *map(str, words)]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    read(text)
    opening = text[text.index("<header>") : text.index("</header>")]
    assert opening.count("a red square</figcaption>") == 3 and "--side: 160px" in opening
    assert "from the words below: unseen pairs. The first 9 of 9, right or wrong." in opening and "Graphics: someone, CC-BY 4.0" in opening
    assert "✓ the red one" in text and "✗ the green one</span>, right: the red one" in text and text.count("nearest to it: ") == 2


def test_a_page_of_almost_nothing_says_what_is_missing(tmp_path):
    (tmp_path / "steps.jsonl").write_text("")
    assert main(["--out", str(tmp_path / "empty.html"), "--steps", str(tmp_path / "steps.jsonl")]) == 0
    text = (tmp_path / "empty.html").read_text(encoding="utf-8")
    read(text)
    for name in ("eval_tokenizer", "encode_images", "unicode.run.answer", "generate_images", "unicode.run.benchmark", "quickstart.sh"):
        assert name in text, name


def test_dry_run_writes_nothing(runs, tmp_path):
    assert main(["--out", str(tmp_path / "none.html"), "--dry-run", *arguments(runs)]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "page.pdf"], "no .html file"),
        (["--out", "page.html"], "error: nothing to report on; name at least one of --tokenizer, --reconstruction, --ids, "),
        (["--out", "page.html", "--steps", "steps.jsonl", "--images", "nowhere"], "no pictures at 'nowhere'"),
        (["--out", "page.html", "--answers", "a=x", "a=y"], "two things are called a"),
        (["--out", "page.html", "--ids", "nowhere"], "nowhere is no store of ids"),
        (["--out", "page.html", "--steps", "steps.jsonl", "--world", "colors=8"], "colours"),
    ],
)
def test_a_mistake_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


HOSTILE = "<script>alert(1)</script>"


def test_names_captions_and_answers_are_escaped(runs, tmp_path):
    questions, answers, drawn = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl", tmp_path / "drawn"
    question = {"question_id": 1, "image": "0.png", "text": f"What is {HOSTILE}?", "kind": HOSTILE, "answer": f"{HOSTILE}2"}
    questions.write_text(json.dumps(question) + "\n")
    answers.write_text(json.dumps({"question_id": 1, "text": f"'\">{HOSTILE}"}) + "\n")
    shutil.copytree(runs.generation, drawn)
    (drawn / "results.jsonl").write_text(json.dumps({"id": "0", "prompt": f"'\">{HOSTILE}", "file": "0.png"}) + "\n")
    words = ["--title", HOSTILE, "--llm", f"{HOSTILE}={runs.llm}".replace("</script>", ""), "--generation", str(drawn)]
    words += ["--questions", str(questions), "--answers", str(answers), "--images", str(runs.questions.parent)]
    assert main(["--out", str(tmp_path / "page.html"), *words]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    reader = read(text)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
    assert "<script" not in text and text.count("&lt;script&gt;alert(1)") >= 8
    assert any(image["alt"] == f"drawn from: '\">{HOSTILE}" for image in reader.images)


def test_a_question_of_many_spaces_takes_no_time(tmp_path):
    asked = Asked("", "Answer" + " " * 200_000 + "x", "", (), "yes", None)
    start = time.monotonic()
    assert answer_card(asked, ImageLookup([])).title == asked.text
    assert time.monotonic() - start < 1


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
