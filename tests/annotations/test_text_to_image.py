"""Text to image: exact records, every row evenly, drops with reasons, the same output for the same seed in any order."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unicode.annotations.build import ImageIds, open_image_ids
from unicode.annotations.templates import FIRST_ROW, NEXT_ROW, TEMPLATES, TEXT_TO_IMAGE, draw, fill
from unicode.annotations.text_to_image import draw_rows, get_t2v_anno
from unicode.ids.layout import Layout
from unicode.ids.text import split_runs, write_run

Captioned = tuple[Path, ImageIds, dict[str, np.ndarray]]
NAMES = ("llava_laion558k_t2v.json", "llava_laion558k_t2v_full.json", "llava_laion558k_t2v_part.json")


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def runs(turn: str) -> list[list[int]]:
    return [piece.ids.tolist() for piece in split_runs(turn) if piece.ids is not None]


def test_whole_images_and_one_part_of_each(captioned: Captioned, tmp_path: Path) -> None:
    root, images, ids = captioned
    report = get_t2v_anno(root, images, tmp_path / "out", seed=3)
    everything, full, part = (read(tmp_path / "out", name) for name in NAMES)
    assert len(full) == len(part) == 40 and report.read == 40 and not report.dropped
    assert sorted(map(json.dumps, everything)) == sorted(map(json.dumps, full + part))
    meaning = {"layout": "hierarchical 4x2 + 8x4 in order 'nested'", "tokenizer": "0123456789abcdef"}
    by_id = {f"n{key[4:8]}": (key, values) for key, values in ids.items()}
    for record in full:
        key, values = by_id[record["id"]]
        caption = f"a picture of {key[4:8]}"
        prompt = fill(TEXT_TO_IMAGE, 3, f"{record['id']}\0{key}", caption=caption)
        turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": write_run(values)}]
        assert record == {"id": record["id"], "task": "text_to_image", **meaning, "conversations": turns}
    for record in part:
        key, values = by_id[record["id"]]
        given, answer = (turn["value"] for turn in record["conversations"])
        row = draw(4, 3, "row", f"{record['id']}\0{key}")
        assert runs(given) == ([values[: row * 10].tolist()] if row else [])
        assert answer == write_run(values[row * 10 : row * 10 + 10])
        assert f"a picture of {key[4:8]}" in given
        assert record["task"] == "next_row" and meaning.items() <= record.items()


@pytest.mark.parametrize("layout", [Layout("hierarchical", ((8, 8), (16, 16)), order="rows"), Layout("residual", ((8, 8),), 4)])
def test_rows_of_every_layout_join_to_the_image(tmp_path: Path, store: Any, write: Any, record: Any, layout: Layout) -> None:
    (ids,) = store(tmp_path / "ids", ["a.jpg"], layout=layout)[:, 0]
    write(tmp_path / "anno.json", [record("a", "a.jpg", "something")])
    get_t2v_anno(tmp_path, open_image_ids([tmp_path / "ids"]), tmp_path / "out", anno="anno.json", parts=8)
    part = read(tmp_path / "out", "anno_t2v_part.json")
    seen = {}
    for made in part:
        given, answer = (turn["value"] for turn in made["conversations"])
        before = runs(given)[0] if runs(given) else []
        assert before == ids[: len(before)].tolist()
        seen[len(before)] = runs(answer)[0]
    assert sorted(seen) == [layout.prefix(row) for row in range(8)]
    assert [number for start in sorted(seen) for number in seen[start]] == ids.tolist()


def test_rows_are_even_over_ten_thousand_records() -> None:
    counts = Counter(draw_rows(8, 1, 0, f"record {number}")[0] for number in range(10_000))
    assert sorted(counts) == list(range(8))
    assert sum((count - 1250) ** 2 / 1250 for count in counts.values()) < 24.3  # chi-square, 7 degrees of freedom, p = 0.001
    several = Counter(row for number in range(5000) for row in draw_rows(8, 3, 0, f"record {number}"))
    assert all(abs(count - 1875) < 140 for count in several.values())
    assert all(len(set(draw_rows(8, 3, 0, str(number)))) == 3 for number in range(50))
    assert sorted(draw_rows(8, 8, 0, "x")) == list(range(8)) and draw_rows(8, 0, 0, "x") == []


def test_first_row_is_asked_for_without_ids() -> None:
    assert all("{ids}" not in template for template in TEMPLATES[FIRST_ROW])
    assert all("{ids}" in template for template in TEMPLATES[NEXT_ROW])


def test_output_is_fixed_by_seed_whatever_the_order(captioned: Captioned, tmp_path: Path, write: Any) -> None:
    root, images, _ = captioned
    source = root / "blip_laion_cc_sbu_558k.json"
    records = json.loads(source.read_text())
    contents = []
    for trial, seed in enumerate((0, 0, 1)):
        random.Random(trial).shuffle(records)
        write(source, records)
        get_t2v_anno(root, images, tmp_path / str(trial), seed=seed)
        contents.append([(tmp_path / str(trial) / name).read_bytes() for name in NAMES])
    assert contents[0] == contents[1] != contents[2]
    write(source, records[:20])
    get_t2v_anno(root, images, tmp_path / "half")
    kept = {record["id"] for record in records[:20]}
    assert read(tmp_path / "half", NAMES[0]) == [made for made in json.loads(contents[0][0]) if made["id"] in kept]


def test_every_drop_is_counted_with_its_reason(captioned: Captioned, tmp_path: Path, store: Any, write: Any, record: Any) -> None:
    root, _, _ = captioned
    store(root / "broken", ["broken.jpg", "fine.jpg"], skip=["broken.jpg"])
    shard = root / "broken" / "shards" / "00000.npy"
    ids = np.load(shard)
    ids[1, 0, 5] = 5000  # outside the vocabulary of 1000
    np.save(shard, ids)
    good = record("good", "000/0000.jpg", "a good one")
    bad = {
        "no conversations": {"id": "a", "image": "000/0000.jpg"},
        "malformed turns": {"id": "b", "conversations": [{"from": "human", "value": "x"}]},
        "unknown role": {"id": "c", "conversations": [{"from": "user", "value": "x"}, {"from": "gpt", "value": "x"}]},
        "malformed image field": record("d", 7, "x"),
        "image path leaves the root": record("e", "../0000.jpg", "x"),
        "image tags do not match images": record("f", ["000/0000.jpg", "001/0001.jpg"], "x"),
        "reserved tag in text": record("g", "000/0000.jpg", "<vistok>1</vistok>"),
        "no image": {"id": "h", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "x"}]},
        "no caption": record("i", "000/0000.jpg", "  "),
        "no ids": record("j", "broken.jpg", "x"),
        "malformed ids": record("k", "fine.jpg", "x"),
        "not Unicode text": record("l\ud800", "000/0000.jpg", "x"),
    }
    write(root / "bad.json", [good, *bad.values(), record("m", "nowhere.jpg", "x")])
    report = get_t2v_anno(root, open_image_ids([root]), tmp_path / "out", anno="bad.json", parts=0)
    assert {reason: dropped.count for reason, dropped in report.dropped.items()} == dict.fromkeys(bad, 1) | {"no ids": 2}
    assert report.read == 14 and sum(dropped.count for dropped in report.dropped.values()) == 13
    assert [made["id"] for made in read(tmp_path / "out", "bad_t2v_full.json")] == ["good"]
    assert read(tmp_path / "out", "bad_t2v_part.json") == []
    saved = json.loads((tmp_path / "out" / "bad_t2v.report.json").read_text(encoding="utf-8"))
    assert saved["dropped"]["no ids"]["examples"][0] == {
        "file": str(root / "bad.json"),
        "record": 10,
        "id": "j",
        "detail": "'broken.jpg' could not be encoded: truncated",
    }
    assert "keys there look like" in saved["dropped"]["no ids"]["examples"][1]["detail"]
    assert saved["outputs"] == {str(tmp_path / "out" / f"bad_t2v{end}.json"): int(end != "_part") for end in ("", "_full", "_part")}
    assert saved["ids"]["tokenizer"] == "0123456789abcdef" and saved["ids"]["layout"]["order"] == "nested"


def test_nothing_left_is_an_error_that_says_why(captioned: Captioned, tmp_path: Path, write: Any, record: Any) -> None:
    root, images, _ = captioned
    write(root / "other.json", [record(str(number), f"elsewhere/{number}.jpg", "x") for number in range(9)])
    with pytest.raises(ValueError, match=r"of 9 records none is left to write \(no ids: 9\).*'elsewhere/0.jpg' is in no store; keys there"):
        get_t2v_anno(root, images, tmp_path / "out", anno="other.json")
    assert list((tmp_path / "out").iterdir()) == []


def test_folder_goes_before_the_paths(captioned: Captioned, tmp_path: Path, write: Any, record: Any) -> None:
    root, images, _ = captioned
    write(root / "short.json", [record("a", "0000.jpg", "x")])
    report = get_t2v_anno(root, images, tmp_path, anno="short.json@000/", parts=0)
    assert not report.dropped
    with pytest.raises(ValueError, match="no folder below the image root"):
        get_t2v_anno(root, images, tmp_path, anno="short.json@../x")


def test_requests_in_words_of_ones_own(captioned: Captioned, tmp_path: Path) -> None:
    root, images, ids = captioned
    get_t2v_anno(root, images, tmp_path, parts=0, request="{caption}")
    asked = {record["conversations"][0]["value"] for record in read(tmp_path, NAMES[1])}
    assert asked == {f"a picture of {key[4:8]}" for key in ids}
    for wrong in ("draw", "{caption} {size}", "{"):
        with pytest.raises(ValueError, match=r"only slot is \{caption\}"):
            get_t2v_anno(root, images, tmp_path, request=wrong)


def test_refusals(captioned: Captioned, tmp_path: Path, write: Any) -> None:
    root, images, _ = captioned
    with pytest.raises(FileNotFoundError, match="--anno"):
        get_t2v_anno(root, images, tmp_path, anno="none.json")
    with pytest.raises(ValueError, match="choose 0 to 4"):
        get_t2v_anno(root, images, tmp_path, parts=5)
    with pytest.raises(ValueError, match="would replace an input"):
        get_t2v_anno(root, images, root / "blip_laion_cc_sbu_558k.json")
    write(root / "object.json", {"a": 1})
    with pytest.raises(ValueError, match="expected a JSON list"):
        get_t2v_anno(root, images, tmp_path, anno="object.json")


def test_a_damaged_file_leaves_the_old_output(captioned: Captioned, tmp_path: Path) -> None:
    root, images, _ = captioned
    source = root / "blip_laion_cc_sbu_558k.json"
    get_t2v_anno(root, images, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    source.write_text(source.read_text()[:-30])
    with pytest.raises(ValueError, match="cut off"):
        get_t2v_anno(root, images, tmp_path, seed=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_main_file_by_name_and_dry_run(captioned: Captioned, tmp_path: Path) -> None:
    root, images, _ = captioned
    get_t2v_anno(root, images, tmp_path / "x" / "mine.json", dry_run=True)
    assert not (tmp_path / "x").exists()
    get_t2v_anno(root, images, tmp_path / "x" / "mine.json")
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["mine.json", "mine.report.json", "mine_full.json", "mine_part.json"]
