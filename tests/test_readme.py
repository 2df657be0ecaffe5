"""The Python of README.md runs, on a tiny model with random weights in the folders that it names."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def project(tuned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    outputs = folder / "outputs" / "quickstart"
    shutil.copytree(tuned.image_tokenizer, outputs / "hqvae")
    for name in ("vqa", "draw"):
        shutil.copytree(tuned.run, outputs / name)
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


def test_it_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 220


@pytest.mark.parametrize("page", sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]))
def test_modules_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    packages = "|".join(path.name for path in (ROOT / "unicode").iterdir() if path.is_dir())
    named = set(re.findall(rf"`(?:unicode/)?((?:{packages})/[\w/]+\.py)`", text))
    absent = sorted(name for name in named if not (ROOT / "unicode" / name).is_file())
    assert not absent, f"{page} names {absent}"
