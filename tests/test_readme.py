"""The Python of README.md runs, on a tiny model with random weights in the folders that it names."""

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from unicode.run.eval_generation import measure_nearest, measure_scenes, read_gallery

ROOT = Path(__file__).parents[1]
FINISHED = os.environ.get("UNICODE_QUICKSTART", "")  # the folder of a quickstart that has run to its end
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
BLOCKS = [block for block in BLOCKS if "import OpenAI" not in block]  # tests/serve runs it with a server


@pytest.fixture(scope="module")
def project(tuned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    outputs = folder / "outputs" / "quickstart"
    shutil.copytree(tuned.image_tokenizer, outputs / "hqvae")
    shutil.copytree(tuned.run, outputs / "both")
    (outputs / "anno" / "images" / "unseen").mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(outputs / "anno" / "images" / "unseen" / "a.png")
    return folder


def test_there_are_examples():
    text = "\n".join(BLOCKS)
    assert BLOCKS and all(word in text for word in ("tokenizer.encode", "tokenizer.decode", ".answer(", ".draw("))


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_example_runs(number, project, monkeypatch):
    monkeypatch.chdir(project)
    exec(compile(BLOCKS[number], f"README.md, example {number + 1}", "exec"), {"__name__": "example"})
    for name in re.findall(r'save\("(\w+\.png)"\)', BLOCKS[number]):
        with Image.open(project / name) as picture:
            assert picture.size == (16, 16)


def drawn_in_the_examples() -> dict[str, str]:
    """Return caption -> file of the pictures that the examples draw."""
    return dict(re.findall(r'\.draw\("([^"]+)".*?\)\.save\("([^"]+)"\)', "\n".join(BLOCKS)))


def typed_prompts() -> dict[str, str]:
    """Return caption -> what it describes, of the prompts that were typed by hand."""
    return dict(line.split("\t") for line in (ROOT / "tests" / "data" / "typed_prompts.txt").read_text().splitlines())


def test_it_is_known_what_the_examples_should_draw():
    assert drawn_in_the_examples().keys() <= typed_prompts().keys(), "draw a caption of tests/data/typed_prompts.txt, or add it there"


@pytest.mark.skipif(not FINISHED, reason="UNICODE_QUICKSTART names no finished quickstart")
def test_the_examples_draw_and_answer_what_they_say(tmp_path, monkeypatch, capsys):
    """A comment behind print(...) is what it prints; a drawing shows its caption: every object, or nearest to the right picture."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "quickstart").symlink_to(Path(FINISHED).resolve())
    monkeypatch.chdir(tmp_path)
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\) +# (.+)$", "\n".join(BLOCKS), flags=re.MULTILINE)
    gallery = tmp_path / "outputs" / "quickstart" / "anno" / "emoji_gallery.json"
    for caption, file in drawn_in_the_examples().items():
        with Image.open(file) as picture:
            pixels = pil_to_tensor(picture.convert("RGB"))
        records = [{"reference": typed_prompts()[caption]}]
        drawn = SimpleNamespace(records=records, image=[pixels].__getitem__, side=pixels.shape[-1], settings={})
        found = measure_scenes(drawn) or measure_nearest(drawn, read_gallery(str(gallery), side=drawn.side))[0]
        assert (found.get("all") or found["nearest_pixels"])["value"] == 100, f"{caption}: another picture"


def test_it_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 220


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]))
def test_modules_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    packages = "|".join(path.name for path in (ROOT / "unicode").iterdir() if path.is_dir())
    named = set(re.findall(rf"`(?:unicode/)?((?:{packages})/[\w/]+\.py)`", text))
    absent = sorted(name for name in named if not (ROOT / "unicode" / name).is_file())
    assert not absent, f"{page} names {absent}"
