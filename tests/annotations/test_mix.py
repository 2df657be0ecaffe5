"""Mixing files of our form: weights, one meaning of ids, damaged ids counted."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from unicode.annotations.instructions import concat_uni_anno, count_copies


def talk(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


def drawn(name: str, *, run: str = "<vistok>1-2</vistok>", **fields: str) -> dict[str, Any]:
    return {"id": name, "task": "text_to_image", "layout": "A", "tokenizer": "f", **fields, "conversations": talk("Draw", run)}


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_weights_are_mean_copies(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "a.json", [drawn(f"a{number}") for number in range(400)])
    write(tmp_path / "b.json", [drawn(f"b{number}") for number in range(400)])
    write(tmp_path / "c.json", [{"id": f"c{number}", "task": "text_only", "conversations": talk("a", "b")} for number in range(100)])
    report = concat_uni_anno(tmp_path, tmp_path / "mixed.json", annos=["a.json", "b.json", "c.json"], weights=[0.25, 1.5, 3])
    copies = Counter(record["id"] for record in read(tmp_path / "mixed.json"))
    by_file = {name: [copies[f"{name}{number}"] for number in range(400 if name != "c" else 100)] for name in "abc"}
    assert set(by_file["a"]) == {0, 1} and 70 < sum(by_file["a"]) < 130
    assert set(by_file["b"]) == {1, 2} and 540 < sum(by_file["b"]) < 660
    assert set(by_file["c"]) == {3}
    assert report.inputs[0].endswith("a.json x 0.25")
    concat_uni_anno(tmp_path, tmp_path / "written.json", annos=["a.json*0.25", "b.json*1.5", "c.json*3"])
    assert (tmp_path / "written.json").read_bytes() == (tmp_path / "mixed.json").read_bytes()
    with pytest.raises(ValueError, match=r"'x' is no weight; write FILE\*WEIGHT"):
        concat_uni_anno(tmp_path, tmp_path / "written.json", annos=["a.json*x"])


def test_without_weights_every_record_once(tmp_path: Path, write: Any) -> None:
    for name in ("llava_laion558k_t2v.json", "images_uncond.json"):
        write(tmp_path / name, [drawn(f"{name}{number}") for number in range(10)])
    report = concat_uni_anno(tmp_path, tmp_path)
    assert len(read(tmp_path / "unicode_concat.json")) == 20
    assert "llava_mix665k.json" in report.notes[0] and "images_uncond" not in report.notes[0]


def test_default_files_are_looked_for_in_out_and_root(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "out" / "llava_mix665k.json", [drawn("a")])
    write(tmp_path / "root" / "llava_mix665k.json", [drawn("old")])
    write(tmp_path / "root" / "images_uncond.json", [drawn("b")])
    concat_uni_anno(tmp_path / "root", tmp_path / "out")
    assert {record["id"] for record in read(tmp_path / "out" / "unicode_concat.json")} == {"a", "b"}
    with pytest.raises(FileNotFoundError, match="--anno"):
        concat_uni_anno(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"layout": "B"}, "B, tokenizer f"), ({"tokenizer": "g"}, "tokenizer g"), ({"tokenizer": ""}, "not given")],
)
def test_ids_of_two_meanings_do_not_mix(tmp_path: Path, write: Any, fields: dict[str, str], message: str) -> None:
    write(tmp_path / "a.json", [drawn("a"), {"id": "t", "task": "text_only", "conversations": talk("a", "b")}])
    write(tmp_path / "b.json", [drawn("b", **fields)])
    with pytest.raises(ValueError, match=f"do not mix: A, tokenizer f in .*a.json, .*{message}"):
        concat_uni_anno(tmp_path, tmp_path / "out", annos=["a.json", "b.json"])
    assert list((tmp_path / "out").iterdir()) == []


def test_bad_records_are_counted(tmp_path: Path, write: Any) -> None:
    bad = [
        drawn("a", run="<vistok>1--2</vistok>"),
        drawn("b", run="<vistok>1"),
        {"id": "c", "conversations": talk("<image> what?", "x")},
        {"id": "d"},
        {"id": "e", "conversations": [{"from": "bot", "value": "x"}]},
    ]
    write(tmp_path / "a.json", [drawn("good"), *bad])
    report = concat_uni_anno(tmp_path, tmp_path / "o.json", annos=["a.json"])
    expected = {"malformed ids": 2, "image tags do not match images": 1, "no conversations": 1, "unknown role": 1}
    assert {reason: dropped.count for reason, dropped in report.dropped.items()} == expected
    assert "turn 1, character 10" in report.dropped["malformed ids"].examples[0]["detail"]


def test_copies() -> None:
    assert [count_copies(weight, 0, drawn("a")) for weight in (0, 1, 2)] == [0, 1, 2]
    mean = sum(count_copies(2.3, 0, drawn(str(number))) for number in range(2000)) / 2000
    assert abs(mean - 2.3) < 0.05


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [1, -1], [1, float("nan")]])
def test_weights_must_fit(tmp_path: Path, write: Any, weights: list[float]) -> None:
    for name in ("a.json", "b.json"):
        write(tmp_path / name, [drawn(name)])
    with pytest.raises(ValueError, match=r"one number from 0 up for each of a\.json, b\.json"):
        concat_uni_anno(tmp_path, tmp_path, annos=["a.json", "b.json"], weights=weights)
