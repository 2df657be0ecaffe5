"""Pictures and their lines: resumed by whole batches, cut lines, other settings, names."""

import json

import numpy as np
import pytest
from PIL import Image

from unicode.generate.jobs import DrawingFile, places_of, write_contact_sheet

MADE_BY = {"model": "a", "sampling": {"temperature": 1.0}}


def draw(file: DrawingFile, numbers, error: str = "") -> None:
    for number in numbers:
        name = file.save_picture(number, np.full((4, 4, 3), number, np.uint8))
        file.put(number, {"error": error} if error else {"file": name, "ids": [number]})


def test_what_is_missing_is_drawn_by_whole_batches(tmp_path):
    places = places_of([f"p{number}" for number in range(7)], samples=1)
    file = DrawingFile(tmp_path, places, made_by=MADE_BY)
    assert list(file.batches(3)) == [[0, 1, 2], [3, 4, 5], [6]]
    draw(file, [0, 1, 2, 4])
    with open(tmp_path / "results.parts" / "00000.jsonl", "a") as part:
        part.write('{"id": "p5", "fi')
    again = DrawingFile(tmp_path, places, made_by=MADE_BY)
    assert list(again.batches(3)) == [[3, 4, 5], [6]] and again.is_done(4) and not again.is_done(5)
    draw(again, [3, 5, 6])
    lines = again.finish()
    assert [line["id"] for line in lines] == [place.id for place in places]
    assert lines == [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert not (tmp_path / "results.parts").exists()
    (tmp_path / lines[2]["file"]).unlink()
    assert list(DrawingFile(tmp_path, places, made_by=MADE_BY).batches(3)) == [[0, 1, 2]]


def test_errors_are_tried_again(tmp_path):
    places = places_of(["a", "b"], samples=1)
    file = DrawingFile(tmp_path, places, made_by=MADE_BY)
    draw(file, [0])
    draw(file, [1], error="too long")
    file.finish()
    again = DrawingFile(tmp_path, places, made_by=MADE_BY)
    assert list(again.batches(1)) == [[1]]
    draw(again, [1])
    assert "error" not in again.finish()[1]


def test_other_settings_do_not_mix(tmp_path):
    places = places_of(["a"], samples=1)
    DrawingFile(tmp_path, places, made_by=MADE_BY)
    with pytest.raises(ValueError, match=r"other settings: sampling .*'temperature': 1.0.*now.*2.0"):
        DrawingFile(tmp_path, places, made_by={**MADE_BY, "sampling": {"temperature": 2.0}})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"without settings\.json"):
        DrawingFile(tmp_path / "other", places, made_by=MADE_BY)


def test_names_of_samples():
    assert [place.name for place in places_of(["a", "b/c.png"], samples=2)] == ["a_0", "a_1", "b/c.png_0", "b/c.png_1"]
    with pytest.raises(ValueError, match=r"two pictures would be called a\.png"):
        places_of(["a", "a.png"], samples=1)


def test_contact_sheet(tmp_path):
    for number in range(6):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    write_contact_sheet([tmp_path / f"{number}.png" for number in range(6)], tmp_path / "sheet.png", group=2)
    assert Image.open(tmp_path / "sheet.png").size == (22, 32)
