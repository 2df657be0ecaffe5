"""Batches: the same for any number of workers, bad pictures left out or replaced, everything skipped in the report."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unicode.images.dataset import AugmentedIndex, DataConfig, ImageDataset, Skipped, build_dataset
from unicode.images.decode import to_float
from unicode.images.loader import SkipReport, build_loader

BAD = (2, 5)


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    random = np.random.default_rng(0)
    for index in range(10):
        Image.fromarray(random.integers(0, 256, (20, 36, 3), np.uint8)).save(tmp_path / f"{index}.png")
    for index in BAD:
        (tmp_path / f"{index}.png").write_bytes(b"")
    return build_dataset(DataConfig(name="folder", root=str(tmp_path)), image_size=16, train=True)


def test_evaluation_leaves_bad_pictures_out(dataset: ImageDataset) -> None:
    first, second, third = build_loader(dataset, [[0, 1, 2, 3], [5], [9, 4]], num_workers=0)
    assert (first.indices, first.keys) == ([0, 1, 3], ["0.png", "1.png", "3.png"])
    assert first.skipped == [Skipped("2.png", "empty file", 2)]
    assert first.images.dtype == torch.float32
    assert torch.equal(first.images[2], to_float(dataset.pixels(3)))  # type: ignore[union-attr]
    assert (second.images.shape, second.indices) == ((0, 3, 16, 16), [])
    assert third.indices == [9, 4]


def test_training_replaces_bad_pictures(dataset: ImageDataset) -> None:
    requests = [[AugmentedIndex(index, 7 + index) for index in range(10)]]
    (batch,) = build_loader(dataset, requests, num_workers=0)
    assert batch.images.shape == (10, 3, 16, 16)
    assert {entry.index for entry in batch.skipped} == set(BAD)
    assert [index for index in range(10) if batch.indices[index] != index] == list(BAD)
    assert not set(batch.indices) & set(BAD)
    (again,) = build_loader(dataset, [requests[0][2:3]], num_workers=0)
    assert again.indices == batch.indices[2:3]
    assert torch.equal(again.images[0], batch.images[2])


def test_workers_change_nothing(dataset: ImageDataset) -> None:
    requests = [[AugmentedIndex(index, seed) for index in range(10)] for seed in range(4)]
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    alone, shared = (list(build_loader(dataset, requests, num_workers=number)) for number in (0, 2))
    assert len(alone) == len(shared) == 4
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.images, other.images)
        assert (one.keys, one.indices, one.skipped) == (other.keys, other.indices, other.skipped)
    assert torch.equal(torch.rand(1), expected)


def test_a_data_set_without_good_pictures_stops_training(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    dataset = build_dataset(DataConfig(name="folder", root=str(tmp_path)), image_size=16, train=True)
    with pytest.raises(ValueError, match=r"20 images in a row .* a\.png \(empty file\)"):
        list(build_loader(dataset, [[AugmentedIndex(0, 0)]], num_workers=0))


def test_skip_report(tmp_path: Path) -> None:
    report = SkipReport()
    assert report.summary() == "no image skipped"
    report.add([Skipped("b", "damaged image: x", 4), Skipped("a", "empty file", 1)])
    report.add([Skipped("c", "damaged image: y", 2), Skipped("a", "empty file", 1)])
    assert len(report) == 3
    assert report.counts() == {"damaged image": 2, "empty file": 1}
    assert report.summary() == "3 images skipped (2 damaged image, 1 empty file); the first: b (damaged image: x)"
    report.write(tmp_path / "skipped.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [1, 2, 4]
    assert lines[0] == {"key": "a", "reason": "empty file", "index": 1}
