"""Parquet files: keys, random access by row group, bounded caches, an order that reads blocks together, and damaged files."""

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from unicode.images import parquet
from unicode.images.dataset import DataConfig, Skipped, build_dataset, open_images
from unicode.images.lookup import ImageLookup
from unicode.images.parquet import ParquetImages
from unicode.train.samplers import AugmentedSampler


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def write(path: Path, rows: range, *, group: int = 4, plain: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [png(row) if plain else {"bytes": png(row), "path": f"{row}.png"} for row in rows]
    pq.write_table(pa.table({"image": pictures, "text": [f"picture {row}" for row in rows]}), path, row_group_size=group)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "data/train-00000-of-00002.parquet", range(10))
    write(tmp_path / "data/train-00001-of-00002.parquet", range(10, 17))
    return tmp_path


def test_pictures_are_read_at_random_by_their_keys(folder: Path, tmp_path: Path) -> None:
    source = ParquetImages("data/train-*.parquet", str(folder))
    assert len(source.keys) == 17 and source.keys[10] == "data/train-00001-of-00002.parquet/0000000"
    assert source.blocks.tolist() == [0] * 4 + [1] * 4 + [2] * 2 + [3] * 4 + [4] * 3
    assert [source.read(row) == png(row) for row in (16, 0, 9, 11, 3)] == [True] * 5
    assert pickle.loads(pickle.dumps(source)).read(16) == png(16)
    assert ParquetImages(str(write(tmp_path / "b.parquet", range(3), plain=True))).read(2) == png(2)
    data = DataConfig(name="parquet", root=str(folder), path="data/{split}-{00000..00001}-of-00002.parquet", holdout=0.4)
    parts = [build_dataset(data, image_size=16, train=True)]
    parts.append(build_dataset(DataConfig(**{**vars(data), "split": "train", "limit": 2}), image_size=16, train=False))
    assert 0 < len(parts[0]) < 17 and len(parts[0].blocks) == len(parts[0]) and len(parts[1]) == 2
    one = folder / "data/train-00001-of-00002.parquet"
    assert open_images(one, image_size=16).key(1) == f"{one.name}/0000001"
    assert ImageLookup([one]).read(f"{one.name}/0000001") == png(11)


def test_few_row_groups_are_kept_and_each_is_read_once_in_an_epoch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = pq.ParquetFile(folder / "data/train-00000-of-00002.parquet").metadata.row_group(0)
    monkeypatch.setattr(parquet, "CACHE_BYTES", int(2.5 * group.column(0).total_uncompressed_size))
    source = ParquetImages("data/*.parquet", str(folder))
    assert source.window == 2
    read: list[int] = []
    table = source._table
    monkeypatch.setattr(source, "_table", lambda block, columns: read.append(block) or table(block, columns))
    sampler = AugmentedSampler(17, blocks=source.blocks, window=source.window, batch_size=1, stop_step=34, seed=5)
    order = [batch[0].index for batch in sampler]
    for index in order[:17]:
        assert source.read(index) == png(index) and len(source._cache) <= 2
    assert sorted(order[:17]) == sorted(order[17:]) == list(range(17)) and order[:17] != order[17:]
    assert sorted(read) == [0, 1, 2, 3, 4]
    resumed = AugmentedSampler(17, blocks=source.blocks, window=2, batch_size=1, stop_step=34, seed=5, start_step=21)
    assert [batch[0].index for batch in resumed] == order[21:]


def test_rows_are_streamed(folder: Path) -> None:
    source = ParquetImages("data/*.parquet", str(folder), column="")
    rows = list(source.rows(["text"]))
    assert rows[12] == ("data/train-00001-of-00002.parquet/0000002", {"text": "picture 12"}) and len(rows) == 17
    with pytest.raises(ValueError, match="no column 'caption'; its columns are image, text"):
        list(source.rows(["caption"]))


def test_a_damaged_row_group_is_left_out_and_counted(folder: Path) -> None:
    path = folder / "data/train-00000-of-00002.parquet"
    meta = pq.ParquetFile(path).metadata
    content = bytearray(path.read_bytes())
    for column in range(meta.num_columns):
        chunk = meta.row_group(1).column(column)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    dataset = build_dataset(DataConfig(name="parquet", root=str(folder), path="data/*.parquet"), image_size=16, train=False)
    found = [dataset.pixels(index) for index in range(17)]
    assert [index for index, one in enumerate(found) if isinstance(one, Skipped)] == [4, 5, 6, 7]
    assert found[4].reason == f"damaged row group: {path}, row group 1"  # type: ignore[union-attr]
    assert all(isinstance(one, torch.Tensor) for one in found[8:])
    texts = list(ParquetImages("data/*.parquet", str(folder)).rows(["text"]))
    assert [row is None for _, row in texts] == [index in range(4, 8) for index in range(17)]


def test_bad_files_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no pictures in a column 'img'; its columns are image, text; set data.image_column"):
        ParquetImages("data/*.parquet", str(folder), column="img")
    with pytest.raises(FileNotFoundError, match="no Parquet file matches"):
        ParquetImages("none/*.parquet", str(folder))
    (folder / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"broken.parquet is no Parquet file"):
        ParquetImages("*.parquet", str(folder))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"package pyarrow is not installed; .*unicode-mllm\[parquet\]"):
        ParquetImages("data/*.parquet", str(folder))
