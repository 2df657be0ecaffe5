"""Stores of ids and annotation files of a few records."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unicode.annotations.build import ImageIds, open_image_ids
from unicode.ids.layout import Layout
from unicode.ids.store import StoreSpec, hash_keys
from unicode.ids.store_writer import StoreWriter

LAYOUT = Layout("hierarchical", ((4, 2), (8, 4)))
VOCAB = 1000


def make_store(
    folder: Path,
    keys: Sequence[str],
    *,
    layout: Layout = LAYOUT,
    seed: int = 0,
    views: tuple[str, ...] = ("whole",),
    tokenizer: str = "0123456789abcdef",
    skip: Sequence[str] = (),
) -> np.ndarray:
    """Write a store of random ids and return them: (images, views, N)."""
    spec = StoreSpec(tokenizer, layout, {"image_size": 32}, "float32", views, VOCAB, len(keys), hash_keys(keys), 64)
    ids = np.random.default_rng(seed).integers(0, VOCAB, (len(keys), len(views), layout.num_codes))
    with StoreWriter(folder, spec) as writer:
        writer.prepare(keys)
        for shard in writer.missing():
            rows = spec.shard_rows(shard)
            writer.put(shard, ids[rows.start : rows.stop], [(row, keys[row], "truncated") for row in rows if keys[row] in skip])
        writer.close()
        writer.finish(keys)
    return ids


@pytest.fixture
def store() -> Callable[..., np.ndarray]:
    return make_store


@pytest.fixture
def captioned(tmp_path: Path) -> tuple[Path, ImageIds, dict[str, np.ndarray]]:
    """A root with 40 captioned images in blip_laion_cc_sbu_558k.json, their ids opened, and their ids by key."""
    root = tmp_path / "root"
    keys = [f"00{number % 4}/{number:04d}.jpg" for number in range(40)]
    ids = make_store(root / "ids", keys)
    records = [caption_record(f"n{key[4:8]}", key, f"a picture of {key[4:8]}") for key in keys]
    write_annotation(root / "blip_laion_cc_sbu_558k.json", records)
    return root, open_image_ids([root / "ids"]), {key: values[0] for key, values in zip(keys, ids, strict=True)}


@pytest.fixture
def write() -> Callable[[Path, Any], Path]:
    return write_annotation


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    return caption_record


def write_annotation(path: Path, records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def caption_record(name: str, image: str, caption: str, **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "Describe it.\n<image>"}, {"from": "gpt", "value": caption}]
    return {"id": name, "image": image, "conversations": turns, **changes}
