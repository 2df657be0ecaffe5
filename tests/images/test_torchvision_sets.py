"""torchvision's sets by name: parts, keys, labels, padding, Debian's packed files, and sets that are not there."""

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from public_sets import LABELS, PICTURES, write_fashion

from unicode.images.dataset import DataConfig, Skipped, build_dataset, open_images
from unicode.images.lookup import ImageLookup
from unicode.images.torchvision_sets import TorchvisionSet, parse_source


def write_food(root: Path) -> Path:
    for name in ("apple_pie/1", "apple_pie/2", "baby_back_ribs/7"):
        path = root / "food-101" / "images" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), "red").save(path)
    meta = root / "food-101" / "meta"
    meta.mkdir()
    (meta / "train.json").write_text(json.dumps({"apple_pie": ["apple_pie/1", "apple_pie/2"], "baby_back_ribs": []}))
    (meta / "test.json").write_text(json.dumps({"apple_pie": [], "baby_back_ribs": ["baby_back_ribs/7", "baby_back_ribs/8"]}))
    return root


@pytest.mark.parametrize("packed", [True, False], ids=["debian", "torchvision"])
def test_fashion_mnist_is_read_packed_and_unpacked(tmp_path: Path, packed: bool) -> None:
    folder = write_fashion(tmp_path if packed else tmp_path / "FashionMNIST" / "raw", ".gz" if packed else "")
    assert folder.is_dir()
    source = TorchvisionSet("FashionMNIST", "train", str(tmp_path))
    assert list(source.keys)[:2] == ["FashionMNIST/train/0000000.png", "FashionMNIST/train/0000001.png"]
    assert source.labels.tolist() == LABELS.tolist() and source.classes[9] == "Ankle boot"
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(np.asarray(again.read(2))[:, :, 1], PICTURES[2])
    assert TorchvisionSet("FashionMNIST", "val", str(tmp_path)).part == "test"


def test_small_pictures_are_padded_where_asked(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    settings = {"name": "torchvision", "set": "FashionMNIST", "root": str(tmp_path)}
    padded = build_dataset(DataConfig(**settings, pad=True), image_size=32, train=True)
    pixels = padded.pixels(1)
    assert isinstance(pixels, torch.Tensor) and pixels[:, 2:30, 2:30].numpy().tolist() == [PICTURES[1].tolist()] * 3
    assert pixels.sum() == 3 * PICTURES[1].astype(int).sum() and "padded" in padded.protocol
    resized = build_dataset(DataConfig(**settings), image_size=32, train=False)
    assert resized.pixels(1)[:, 0].float().mean() > 50 and "padded" not in resized.protocol  # type: ignore[index]
    larger = build_dataset(DataConfig(**settings, pad=True), image_size=16, train=False).pixels(0)
    assert torch.equal(larger, build_dataset(DataConfig(**settings), image_size=16, train=False).pixels(0))  # type: ignore[arg-type]


def test_files_are_decoded_and_missing_ones_skipped(tmp_path: Path) -> None:
    found = build_dataset(
        DataConfig(name="torchvision", set="Food101", root=str(write_food(tmp_path)), split="test"), image_size=16, train=False
    )
    assert found.pixels(0).shape == (3, 16, 16)  # type: ignore[union-attr]
    assert found.pixels(1) == Skipped("Food101/test/0000001.png", "missing file", 1)


def test_holdout_divides_the_training_part_alone(tmp_path: Path) -> None:
    settings = {"name": "torchvision", "set": "FashionMNIST", "root": str(write_fashion(tmp_path)), "holdout": 0.5}
    keys = {part: build_dataset(DataConfig(**settings, split=part), image_size=32, train=False).keys for part in ("train", "val", "test")}
    assert sorted(keys["train"] + keys["val"]) == [f"FashionMNIST/train/{index:07d}.png" for index in range(5)] and keys["val"]
    assert keys["test"] == ["FashionMNIST/test/0000000.png", "FashionMNIST/test/0000001.png"]


def test_a_source_is_written_in_one_word(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    assert parse_source("shapes:val") is None and parse_source("torchvision:A:b@/c") == ("A", "b", "/c")
    assert open_images("torchvision:FashionMNIST:train", image_size=32, root=str(tmp_path)).key(4) == "FashionMNIST/train/0000004.png"
    assert len(open_images(f"torchvision:FashionMNIST@{tmp_path}", image_size=32)) == 2
    lookup = ImageLookup([f"torchvision:FashionMNIST:train@{tmp_path}", f"torchvision:FashionMNIST:test@{tmp_path}"])
    for key in ("FashionMNIST/train/0000001.png", "FashionMNIST/test/0000001.png"):
        assert np.array_equal(np.asarray(lookup.find(key))[:, :, 0], PICTURES[1])


@pytest.mark.parametrize(
    ("name", "part", "root", "kind", "message"),
    [
        ("FashionMNITS", "train", "none", ValueError, "did you mean FashionMNIST?"),
        ("FashionMNIST", "train", "", ValueError, "needs data.root"),
        (
            "FashionMNIST",
            "train",
            "none",
            FileNotFoundError,
            "not in none .*data.download=true.* apt-get install dataset-fash",
        ),
        ("CIFAR10", "train", "none", FileNotFoundError, r"CIFAR10 is not in none .*import CIFAR10 as Set; Set\('none', download=True\)\"$"),
        ("CIFAR10", "all", "none", ValueError, "data.split=all: its parts are train and test"),
        ("EuroSAT", "test", "none", ValueError, "it has one part, train"),
        ("STL10", "all", "none", ValueError, "Valid values are"),
    ],
)
def test_what_is_not_there_is_named(name, part, root, kind, message) -> None:
    with pytest.raises(kind, match=message):
        TorchvisionSet(name, part, root)


def test_nothing_is_downloaded_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import FashionMNIST

    asked = []
    monkeypatch.setattr(FashionMNIST, "download", lambda self: asked.append(write_fashion(Path(self.raw_folder), "")))
    with pytest.raises(FileNotFoundError, match="download=true"):
        TorchvisionSet("FashionMNIST", "train", str(tmp_path))
    assert not asked
    assert len(TorchvisionSet("FashionMNIST", "train", str(tmp_path), download=True).keys) == 5 and len(asked) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte.gz", b"nothing", "no idx file of 3 axes"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(bytes((0, 0, 8, 1, 0, 0, 0, 4, 1, 2, 3, 4)), mtime=0), "5 pictures, .* 4 labels"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(bytes((0, 0, 8, 1, 0, 0, 0, 9, 1)), mtime=0), "no idx file of 1 axes"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (write_fashion(tmp_path) / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        TorchvisionSet("FashionMNIST", "train", str(tmp_path))
