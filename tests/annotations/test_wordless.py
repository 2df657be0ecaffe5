"""Decompression and drawing without a caption: exact records, shares, images once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unicode.annotations.build import ImageIds
from unicode.annotations.templates import TEMPLATES, UNCONDITIONAL, fill
from unicode.annotations.text_to_image import get_decompression_anno, get_uncond_anno
from unicode.ids.text import split_runs, write_run

Captioned = tuple[Path, ImageIds, dict[str, np.ndarray]]
MEANING = {"layout": "hierarchical 4x2 + 8x4 in order 'nested'", "tokenizer": "0123456789abcdef"}


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_decompression_of_every_image_of_the_store(captioned: Captioned, tmp_path: Path) -> None:
    _, images, ids = captioned
    report = get_decompression_anno(tmp_path, images, tmp_path, seed=2)
    made = read(tmp_path / "images_decompression.json")
    assert len(made) == 40 and report.read == 40
    assert {record["id"] for record in made} == set(ids)
    for record in made:
        run = write_run(ids[record["id"]])
        prompt = fill("decompression", 2, record["id"], ids=run)
        turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": run}]
        assert record == {"id": record["id"], "task": "decompression", "input_mode": "sum", **MEANING, "conversations": turns}


def test_the_compressed_image_can_be_summed_cell_by_cell(captioned: Captioned, tmp_path: Path) -> None:
    """What the field "input_mode" promises: ids of one coarse cell stand side by side."""
    _, images, ids = captioned
    get_decompression_anno(tmp_path, images, tmp_path)
    table = np.random.default_rng(0).normal(size=(1000, 3))
    for record in read(tmp_path / "images_decompression.json"):
        (run,) = (piece.ids for piece in split_runs(record["conversations"][0]["value"]) if piece.ids is not None)
        sums = table[run.reshape(-1, images.layout.cell_length)].sum(1)
        coarse, fine = images.layout.split(images.layout.restore(ids[record["id"]]))
        grid = table[fine].reshape(4, 2, 2, 2, 3).sum((1, 3)).reshape(8, 3)  # 8x4 cells -> sums over 2x2
        assert np.allclose(sums, table[coarse] + grid)


def test_images_of_an_annotation_file_once(captioned: Captioned, tmp_path: Path, write: Any, record: Any) -> None:
    root, images, _ = captioned
    text = {"id": "t", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    several = [{"from": "human", "value": "<image><image><image>"}, {"from": "gpt", "value": "x"}]
    records = [
        record("a", "000/0000.jpg", "x"),
        record("b", "000/0000.jpg", "y"),
        {"id": "c", "image": ["001/0001.jpg", "000/0000.jpg", "001/0001.jpg"], "conversations": several},
        text,
        record("d", "nowhere.jpg", "y"),
    ]
    write(root / "mix.json", records)
    report = get_decompression_anno(root, images, tmp_path, anno="mix.json")
    assert sorted(made["id"] for made in read(tmp_path / "mix_decompression.json")) == ["000/0000.jpg", "001/0001.jpg"]
    assert {reason: dropped.count for reason, dropped in report.dropped.items()} == {"image taken before": 1, "no image": 1, "no ids": 1}


def test_unconditional_share(captioned: Captioned, tmp_path: Path) -> None:
    root, images, ids = captioned
    get_uncond_anno(root, images, tmp_path, share=0.5, anno="blip_laion_cc_sbu_558k.json")
    made = read(tmp_path / "llava_laion558k_uncond.json")
    assert 10 <= len(made) <= 30
    for record in made:
        prompt, answer = (turn["value"] for turn in record["conversations"])
        assert prompt in TEMPLATES[UNCONDITIONAL] and answer == write_run(ids[record["id"]])
        assert record == {"id": record["id"], "task": "unconditional", **MEANING, "conversations": record["conversations"]}
    get_uncond_anno(root, images, tmp_path, share=0.5)
    assert sorted(map(json.dumps, read(tmp_path / "images_uncond.json"))) == sorted(map(json.dumps, made))
    get_uncond_anno(root, images, tmp_path, share=1)
    assert len(read(tmp_path / "images_uncond.json")) == 40


@pytest.mark.parametrize("share", [0, -1, 1.5])
def test_share_must_be_one(captioned: Captioned, tmp_path: Path, share: float) -> None:
    root, images, _ = captioned
    with pytest.raises(ValueError, match="share is"):
        get_uncond_anno(root, images, tmp_path, share=share)
