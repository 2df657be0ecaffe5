"""A store as Parquet: equal by pandas and by our own reader, skipped images and views included; what is no export is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unicode.ids.layout import Layout
from unicode.ids.store import Store, StoreSpec, hash_keys
from unicode.ids.store_writer import StoreWriter
from unicode.images.parquet import ParquetImages
from unicode.run import export_ids, import_ids

KEYS = [f"a/{number}.png" for number in range(10)]
LAYOUT = Layout("hierarchical", ((2, 2), (4, 4)))
IDS = np.random.default_rng(0).integers(0, 500, (10, 2, 20))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    transform = {"protocol": "as it is"}
    spec = StoreSpec("0123456789abcdef", LAYOUT, transform, "float32", ("whole", "flip"), 500, len(KEYS), hash_keys(KEYS), 4)
    with StoreWriter(tmp_path / "store", spec) as writer:
        writer.prepare(KEYS)
        for shard in writer.missing():
            rows = spec.shard_rows(shard)
            writer.put(shard, IDS[rows.start : rows.stop], [(5, KEYS[5], "not an image")] if 5 in rows else [])
        writer.close()
        writer.finish(KEYS)
    return Store(tmp_path / "store")


def test_an_exported_store_is_read_back_equal(store: Store, tmp_path: Path) -> None:
    file, again = tmp_path / "ids.parquet", tmp_path / "again"
    assert export_ids.main(["--ids", str(store.path), "--format", "parquet", "--out", str(file)]) == 0
    frame = pd.read_parquet(file)
    assert list(frame.columns) == ["key", "ids", "ids_1", "reason"] and frame["key"].tolist() == KEYS
    for row, key in enumerate(KEYS):
        for view, column in enumerate(("ids", "ids_1")):
            found = frame[column][row]
            assert found is None if key == KEYS[5] else found.dtype == np.int32 and found.tolist() == IDS[row, view].tolist()
    assert frame["reason"][5] == "not an image" and frame["reason"].isna().sum() == 9
    assert pq.ParquetFile(file).num_row_groups == 3
    rows = [row for _, row in ParquetImages(file.name, str(tmp_path), column="").rows(["key", "ids"])]  # the reader of data.name=parquet
    assert rows == [{"key": key, "ids": None if key == KEYS[5] else ids[0].tolist()} for key, ids in zip(KEYS, IDS, strict=True)]
    assert import_ids.main([str(file), str(again), "--dry-run"]) == 0 and not again.exists()
    for _ in range(2):
        assert import_ids.main([str(file), str(again)]) == 0
        for name in ("manifest.json", "skipped.jsonl", "keys/names.txt", *(f"shards/0000{shard}.npy" for shard in range(3))):
            assert (again / name).read_bytes() == (store.path / name).read_bytes()
        (again / "shards/00001.npy").unlink()  # the second time fills what is missing


def test_what_is_no_export_is_refused(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no")
    for name in ("other", "text", "none"):
        assert import_ids.main([str(tmp_path / f"{name}.parquet"), str(tmp_path / "out")]) == 2
        assert "export the store again with python -m unicode.run.export_ids" in capsys.readouterr().err
    assert export_ids.main(["--ids", str(store.path), "--out", "ids.csv"]) == 2 and "has to be a .parquet file" in capsys.readouterr().err
    file = tmp_path / "ids.parquet"
    assert export_ids.main(["--ids", str(store.path), "--out", str(file)]) == 0
    table = pq.read_table(file)
    ids = table["ids"].to_pylist()
    for damage, message in ((ids[0][:5], "row group 0, is damaged"), ([900] * 20, "outside the vocabulary of 500")):
        changed = table.set_column(1, table.schema.field("ids"), pa.array([damage, *ids[1:]], pa.list_(pa.int32())))
        pq.write_table(changed, file, row_group_size=4)
        assert import_ids.main([str(file), str(tmp_path / "new")]) == 2 and message in capsys.readouterr().err
