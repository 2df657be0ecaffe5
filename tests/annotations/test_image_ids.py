"""Stores as one source of ids: several of them, views, and such as do not belong together."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unicode.annotations.build import ImageIds, open_image_ids
from unicode.annotations.records import RefusedError
from unicode.ids.layout import Layout

OTHER = Layout("hierarchical", ((4, 2), (8, 4)), order="rows")


def test_several_stores_are_one(tmp_path: Path, store: Any) -> None:
    first = store(tmp_path / "all" / "train", ["a.jpg", "b.jpg"])
    second = store(tmp_path / "all" / "val", ["c.jpg", "bad.jpg"], seed=1, skip=["bad.jpg"])
    shutil.copytree(tmp_path / "all", tmp_path / "tokenizer" / "ids")
    for paths in ([tmp_path / "all"], [tmp_path / "tokenizer"], [tmp_path / "all" / "train", tmp_path / "all" / "val"]):
        images = open_image_ids(paths)
        assert np.array_equal(images.get("b.jpg"), first[1, 0]) and np.array_equal(images.get("c.jpg"), second[0, 0])
        assert [key for _, key in images.keys()] == ["a.jpg", "b.jpg", "c.jpg"]  # noqa: SIM118
        with pytest.raises(RefusedError, match=r"'bad.jpg' could not be encoded: truncated"):
            images.get("bad.jpg")


def test_the_same_image_twice_is_fine_two_images_of_one_name_are_not(tmp_path: Path, store: Any) -> None:
    store(tmp_path / "one", ["a.jpg"])
    store(tmp_path / "same", ["a.jpg"])
    store(tmp_path / "other", ["a.jpg"], seed=1)
    images = open_image_ids([tmp_path / "one", tmp_path / "same"])
    assert len(images.get("a.jpg")) == 40 and len(list(images.keys())) == 1
    with pytest.raises(ValueError, match=r"two stores have an image 'a\.jpg'"):
        open_image_ids([tmp_path / "one", tmp_path / "other"]).get("a.jpg")


def test_stores_that_do_not_mix(tmp_path: Path, store: Any) -> None:
    store(tmp_path / "one", ["a.jpg"])
    store(tmp_path / "two", ["b.jpg"], tokenizer="f" * 16)
    store(tmp_path / "rows", ["c.jpg"], layout=OTHER)
    with pytest.raises(ValueError, match="different tokenizers"):
        open_image_ids([tmp_path / "one", tmp_path / "two"])
    with pytest.raises(ValueError, match=r"'nested' and .*'rows'"):
        open_image_ids([tmp_path / "one", tmp_path / "rows"])


def test_views(tmp_path: Path, store: Any) -> None:
    keys = [f"{number}.jpg" for number in range(60)]
    ids = store(tmp_path, keys, views=("left", "middle", "right"))
    assert np.array_equal(open_image_ids([tmp_path]).get("7.jpg"), ids[7, 0])
    images = open_image_ids([tmp_path], view="drawn", seed=4)
    views = [next(view for view in range(3) if np.array_equal(images.get(key), ids[row, view])) for row, key in enumerate(keys)]
    assert set(views) == {0, 1, 2}
    again = open_image_ids([tmp_path], view="drawn", seed=4)
    assert all(np.array_equal(images.get(key), again.get(key)) for key in keys)
    with pytest.raises(RefusedError, match="in no store"):
        images.get("x.jpg")
    with pytest.raises(ValueError, match="first, drawn"):
        open_image_ids([tmp_path], view="second")


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no store of ids"):
        open_image_ids([tmp_path])
    with pytest.raises(ValueError, match="--ids"):
        ImageIds([])


def test_truncated_shard(tmp_path: Path, store: Any) -> None:
    store(tmp_path, ["a.jpg"])
    shard = tmp_path / "shards" / "00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match="bytes instead of"):
        open_image_ids([tmp_path])


def test_imported_ids_have_no_tokenizer(tmp_path: Path, store: Any) -> None:
    store(tmp_path / "one", ["a.jpg"], tokenizer="")
    store(tmp_path / "two", ["b.jpg"])
    assert open_image_ids([tmp_path / "one"]).fields == {"layout": "hierarchical 4x2 + 8x4 in order 'nested'"}
    with pytest.raises(ValueError, match=r"one by an unknown one, .*two by 0123456789abcdef"):
        open_image_ids([tmp_path])
