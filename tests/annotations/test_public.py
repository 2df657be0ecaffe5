"""Annotations of public data sets: labels in many phrasings with some held out, texts, labels and conversations of Parquet files."""

import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from public_sets import write_fashion, write_idx

from unicode.annotations.captioned import SHORT
from unicode.annotations.public import get_label_anno, get_parquet_anno, label_text, label_words
from unicode.annotations.records import RefusedError, read_record
from unicode.annotations.templates import HELD, LABEL_WHAT, TEMPLATES
from unicode.images.shapes_text import with_article


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def asked(record: dict) -> list[tuple[str, str, str]]:
    turns = [turn["value"].replace("<image>\n", "").replace(f"\n{SHORT}", "") for turn in record["conversations"]]
    return list(zip(turns[::2], turns[1::2], record["kinds"], strict=True))


def test_labels_become_captions_and_questions(tmp_path: Path) -> None:
    labels = np.arange(40, dtype=np.uint8) % 10
    write_fashion(tmp_path / "set")
    write_idx(tmp_path / "set/train-images-idx3-ubyte.gz", np.zeros((40, 28, 28), np.uint8))
    write_idx(tmp_path / "set/train-labels-idx1-ubyte.gz", labels)
    report = get_label_anno(tmp_path / "set", tmp_path, val_share=0.3, seed=1)
    sizes = {Path(name).stem: size for name, size in report.outputs.items()}
    assert sizes["fashionmnist_questions_train"] + sizes["fashionmnist_questions_val"] == 40 and sizes["fashionmnist_captions_test"] == 2
    seen, held = TEMPLATES[LABEL_WHAT][:-HELD], TEMPLATES[LABEL_WHAT][-HELD:]
    for part in ("train", "val", "test"):
        for record in read(tmp_path / f"fashionmnist_questions_{part}.json"):
            rows = asked(record)
            kinds = ["what", "choice", "yesno", "yesno", *(["what_held"] if part != "train" else [])]
            assert Counter(kind for _, _, kind in rows) == Counter(kinds)
            whats = {kind: text for text, _, kind in rows if kind.startswith("what")}
            assert whats["what"] in seen and whats.get("what_held", held[0]) in held
            (answer,) = {answer for _, answer, kind in rows if kind != "yesno"}
            (choice,) = (text for text, _, kind in rows if kind == "choice")
            assert answer in choice and {answer for _, answer, kind in rows if kind == "yesno"} == {"yes", "no"}
            assert all((with_article(answer) in text) == (right == "yes") for text, right, kind in rows if kind == "yesno")
    captions = {record["image"]: read_record(record).caption for record in read(tmp_path / "fashionmnist_captions_train.json")}
    words = label_words(["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"])
    assert all(words[labels[int(key[-11:-4])]] in caption.lower() for key, caption in captions.items())


def test_names_of_classes_become_words() -> None:
    assert label_words(["T-shirt/top", "0 - zero", "AnnualCrop", "apple_pie", "Ankle boot"]) == [
        "t-shirt",
        "zero",
        "annual crop",
        "apple pie",
        "ankle boot",
    ]
    assert label_words(["apartment/indoor", "apartment/outdoor"]) == ["apartment/indoor", "apartment/outdoor"]
    with pytest.raises(RefusedError, match="label out of range: label 10 of 2 classes"):
        label_text(10, ["a", "b"], Random(0), held_out=False)


def features(**columns: object) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": columns}}).encode()}


def test_columns_of_parquet(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    table = pa.table({
        "text": ["A  dog.", None, "", "<vistok>1</vistok>", "A cat."],
        "captions": [["One.", "Two."], [], ["Three."], ["Four."], None],
        "label": [0, 1, 7, -1, 1],
        "talk": [turns, turns, [{"from": "robot", "value": "?"}], turns, turns],
    }).replace_schema_metadata(features(label={"names": ["big_dog", "cat"], "_type": "ClassLabel"}))  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    made = get_parquet_anno(tmp_path, tmp_path / "text")
    assert {reason: dropped.count for reason, dropped in made.dropped.items()} == {"no caption": 2, "reserved tag in text": 1}
    captions = {record["image"]: read_record(record).caption for record in read(tmp_path / "text/parquet_captions_train.json")}
    assert captions == {"a.parquet/0000000": "A dog.", "a.parquet/0000004": "A cat."}
    get_parquet_anno(tmp_path, tmp_path / "list", text_column="captions")
    found = read(tmp_path / "list/parquet_captions_train.json")
    assert sorted(read_record(record).caption for record in found) == ["Four.", "One.", "Three."]
    made = get_parquet_anno(tmp_path, tmp_path / "label", text_column="label")
    assert made.dropped["label out of range"].count == 2
    assert {
        answer for record in read(tmp_path / "label/parquet_questions_train.json") for _, answer, kind in asked(record) if kind == "what"
    } == {"big dog", "cat"}
    made = get_parquet_anno(tmp_path, tmp_path / "talk", text_column="talk", val_share=0.5)
    assert made.dropped["unknown role"].count == 1 and sum(made.outputs.values()) == 4
    with pytest.raises(ValueError, match="no column 'none'; its columns are text, captions, label, talk"):
        get_parquet_anno(tmp_path, tmp_path / "none", text_column="none")
