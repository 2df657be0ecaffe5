"""eval_generation --gallery: which picture of a captioned set is nearest to what was drawn."""

import json
from pathlib import Path

import pytest
from PIL import Image

from unicode.generate.jobs import RESULTS
from unicode.images.shapes import Scene, ShapesConfig
from unicode.run.eval_generation import main, read_things

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "crimson": (250, 0, 0)}


@pytest.fixture
def gallery(tmp_path):
    """Four pictures, two of them reds, and a JSON of them with their kind."""
    records = []
    for name, colour in COLOURS.items():
        path = tmp_path / "set" / "images" / "new" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), colour).save(path)
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": name}]
        kind = {"kind": "red" if name in ("red", "crimson") else name}
        records.append({"id": name, "image": f"new/{name}.png", "conversations": turns, "attributes": kind})
    (tmp_path / "set" / "gallery.json").write_text(json.dumps(records))
    return tmp_path / "set"


@pytest.fixture
def drawn(tmp_path):
    """Three images of 8 px: green, a red that is nearer to crimson, and one of nothing in the gallery."""
    folder, lines = tmp_path / "drawn", []
    folder.mkdir()
    for name, colour, reference in (("0", (0, 250, 0), "new/green.png"), ("1", (251, 0, 0), "red"), ("2", (9, 9, 9), "unknown")):
        Image.new("RGB", (8, 8), colour).save(folder / f"{name}.png")
        lines.append({"id": name, "file": f"{name}.png", "prompt": f"draw {reference}", "reference": reference})
    (folder / RESULTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def read(folder):
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    return {name: entry["value"] for name, entry in metrics.items() if "nearest" in name}


def test_the_right_picture_and_the_right_kind(gallery, drawn):
    assert main(["--pictures", str(drawn), "--gallery", str(gallery / "gallery.json")]) == 0
    assert read(drawn) == {
        "nearest_pixels": 50, "nearest_pixels_kind": 100, "shuffled_nearest_pixels": 0, "shuffled_nearest_pixels_kind": 0,
    }  # fmt: skip
    lines = [json.loads(line) for line in (drawn / "nearest.jsonl").read_text().splitlines()]
    assert [(line["right"], line["nearest_pixels"]) for line in lines] == [
        ("new/green.png", "new/green.png"), ("new/red.png", "new/crimson.png"),
    ]  # fmt: skip


def test_scenes_named_in_words(tmp_path):
    """The prompts of tests/data/typed_prompts.txt about scenes: each drawn right is recognized, those about emoji do not count."""
    lines = [line.split("\t") for line in (Path(__file__).parents[1] / "data" / "typed_prompts.txt").read_text().splitlines()]
    records = []
    for number, (prompt, reference) in enumerate(lines):
        things = read_things(reference)
        Image.fromarray(Scene(tuple(things), ShapesConfig()).pixels().transpose(1, 2, 0)).save(tmp_path / f"{number}.png")
        records.append({"id": str(number), "file": f"{number}.png", "prompt": prompt, "reference": reference})
    (tmp_path / RESULTS).write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["--pictures", str(tmp_path)]) == 0
    entry = json.loads((tmp_path / "metrics.json").read_text())["metrics"]["all"]
    assert entry["value"] == 100 and "10 images" in entry["protocol"]


def test_a_folder_of_pictures_and_equal_pictures(gallery, drawn):
    twin = gallery / "images" / "old" / "crimson.png"
    twin.parent.mkdir()
    Image.new("RGB", (16, 16), COLOURS["red"]).save(gallery / "images" / "new" / "crimson.png")
    Image.new("RGB", (16, 16), COLOURS["red"]).save(twin)
    assert main(["--pictures", str(drawn), "--gallery", str(gallery / "images")]) == 0
    assert read(drawn)["nearest_pixels"] == 100 and read(drawn)["nearest_pixels_folder"] == 100


def test_a_user_is_told(gallery, drawn, capsys):
    for arguments, message in (
        (["--gallery", str(gallery / "none.json")], "none.json"),
        (["--features", str(gallery)], "--gallery"),
        (["--gallery", str(gallery / "gallery.json"), "--features", str(gallery)], "config.json"),
    ):
        assert main(["--pictures", str(drawn), *arguments]) == 2
        assert message in capsys.readouterr().err
    (drawn / RESULTS).write_text(json.dumps({"id": "9", "file": "0.png", "prompt": "x"}) + "\n")
    assert main(["--pictures", str(drawn), "--gallery", str(gallery / "gallery.json")]) == 2
    assert "no prompt describes a picture of the gallery" in capsys.readouterr().err
    assert not list(drawn.glob("nearest.jsonl"))
