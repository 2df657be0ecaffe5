"""LLaVA's instructions: images become ids where their tags stand, text-only records stay, files are put together."""

import json
from pathlib import Path
from typing import Any

import pytest

from unicode.annotations.build import open_image_ids
from unicode.annotations.instructions import concat_llava_anno, get_llava_uni_anno
from unicode.ids.text import write_run


def talk(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_exact_records(tmp_path: Path, store: Any, write: Any) -> None:
    first, second = (write_run(ids[0]) for ids in store(tmp_path / "ids", ["coco/1.jpg", "gqa/2.jpg"]))
    two = ["Between <image> and", "ok", "<image>: which?", "The first."]
    records = [
        {"id": "one", "image": "coco/1.jpg", "conversations": talk("<image>\nWhat?", "A bus.", "Red?", "Yes.")},
        {"id": "two", "image": ["gqa/2.jpg", "coco/1.jpg"], "conversations": talk(*two)},
        {"id": "text", "model": "x", "conversations": talk("Hello", "Hi")},
        {"id": "lost", "image": "coco/3.jpg", "conversations": talk("<image>", "x")},
    ]
    write(tmp_path / "llava_v1_5_mix665k.json", records)
    report = get_llava_uni_anno(tmp_path, open_image_ids([tmp_path / "ids"]), tmp_path / "out")
    made = {record["id"]: record for record in read(tmp_path / "out" / "llava_mix665k.json")}
    meaning = {"layout": "hierarchical 4x2 + 8x4 in order 'nested'", "tokenizer": "0123456789abcdef"}
    assert made == {
        "one": {"id": "one", "task": "image_to_text", **meaning, "conversations": talk(f"{first}\nWhat?", "A bus.", "Red?", "Yes.")},
        "two": {
            "id": "two",
            "task": "image_to_text",
            **meaning,
            "conversations": talk(f"Between {second} and", "ok", f"{first}: which?", "The first."),
        },
        "text": {"id": "text", "task": "text_only", "conversations": talk("Hello", "Hi")},
    }
    assert {reason: dropped.count for reason, dropped in report.dropped.items()} == {"no ids": 1}


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("blip_laion_cc_sbu_558k.json", "llava_laion558k.json"),
        ("llava_v1_5_mix665k.json", "llava_mix665k.json"),
        ("mine.json", "mine_uni.json"),
    ],
)
def test_names_of_the_published_files(tmp_path: Path, store: Any, write: Any, record: Any, name: str, out: str) -> None:
    store(tmp_path / "ids", ["1.jpg"])
    write(tmp_path / name, [record("a", "1.jpg", "x")])
    get_llava_uni_anno(tmp_path, open_image_ids([tmp_path / "ids"]), tmp_path, anno=name)
    assert len(read(tmp_path / out)) == 1


def test_concat_llava(tmp_path: Path, write: Any, record: Any) -> None:
    laion = [record(f"l{number}", f"00/{number}.jpg", "x", source="laion") for number in range(20)]
    mix = [record(f"m{number}", f"coco/{number}.jpg", "y") for number in range(20)] + [{"id": "t", "conversations": talk("a", "b")}]
    bad = [record("out", "../../x.jpg", "y"), record("abs", "/x.jpg", "y"), "nothing"]
    write(tmp_path / "blip_laion_cc_sbu_558k.json", laion)
    write(tmp_path / "llava_v1_5_mix665k.json", mix + bad)
    report = concat_llava_anno(tmp_path, tmp_path)
    made = read(tmp_path / "llava_v1_5_concat.json")
    expected = [{**record, "split": 0} for record in laion] + [{**record, "split": 1} for record in mix]
    assert sorted(made, key=lambda record: record["id"]) == sorted(expected, key=lambda record: record["id"])
    assert made != expected
    assert {reason: dropped.count for reason, dropped in report.dropped.items()} == {"image path leaves the root": 2, "no conversations": 1}


def test_concat_llava_refuses_a_file_twice(tmp_path: Path, write: Any, record: Any) -> None:
    write(tmp_path / "a.json", [record("a", "1.jpg", "x")])
    with pytest.raises(ValueError, match="each once"):
        concat_llava_anno(tmp_path, tmp_path, annos=["a.json", tmp_path / "a.json"])
    write(tmp_path / "blip_laion_cc_sbu_558k.json", [record("a", "1.jpg", "x")])
    with pytest.raises(FileNotFoundError, match="llava_v1_5_mix665k"):
        concat_llava_anno(tmp_path, tmp_path)
