"""A store of ids <-> one Parquet file: a row for each image, written and read one shard at a time."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from unicode.common.extras import require
from unicode.common.files import atomic_write
from unicode.ids.store import Store, StoreSpec
from unicode.ids.store_writer import StoreWriter

SPEC = b"unicode_ids"  # key in the schema's metadata: the spec of the store as JSON


def view_columns(spec: StoreSpec) -> list[str]:
    """Names of the columns of ids, one a view: "ids", "ids_1", "ids_2"."""
    return ["ids", *(f"ids_{number}" for number in range(1, len(spec.views)))]


def write_parquet(store: Store, out: str | Path) -> None:
    """Write a store as Parquet: "key" string, "ids" list<int32> in id order (null for images without ids), "reason" string of those.

    A row group is a shard. The metadata of the schema holds the spec of the store. Raises ValueError: pyarrow is not installed. Raises
    OSError: the disk is full; an older file stays as it was.
    """
    arrow, parquet = require("pyarrow", extra="parquet"), require("pyarrow.parquet", extra="parquet")
    spec, columns = store.spec, view_columns(store.spec)
    fields = [("key", arrow.string()), *((name, arrow.list_(arrow.int32())) for name in columns), ("reason", arrow.string())]
    schema = arrow.schema(fields, metadata={SPEC: json.dumps(spec.to_dict())})
    with atomic_write(out, "wb") as file, parquet.ParquetWriter(file, schema) as writer:
        for shard in range(spec.num_shards):
            keys = [store.index[row] for row in spec.shard_rows(shard)]
            ids = [[store.get(key, view=view) for key in keys] for view in range(len(columns))]
            reasons = [None if found is not None else store.skipped[key] for key, found in zip(keys, ids[0], strict=True)]
            writer.write_table(arrow.table([keys, *ids, reasons], schema=schema))


def read_parquet(path: str | Path, out: str | Path, *, tokenizer: str = "", dry_run: bool = False) -> StoreSpec:
    """Write what `write_parquet` wrote to the store `out`, and return its spec. The same call resumes a stopped one.

    `tokenizer`: fingerprint of the tokenizer that has to have made the ids; "": any. Raises FileNotFoundError: no such file. Raises
    ValueError: pyarrow is not installed, the file was not made by `write_parquet`, is damaged, or holds ids outside of the vocabulary or
    of another tokenizer; `out` holds another store.
    """
    parquet = require("pyarrow.parquet", extra="parquet")
    again = "export the store again with python -m unicode.run.export_ids"
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}; {again}")
    try:
        file = parquet.ParquetFile(path)
        spec = StoreSpec.from_dict(json.loads((file.schema_arrow.metadata or {})[SPEC]))
        keys = [key for shard in range(spec.num_shards) for key in _column(file, shard, "key")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no exported store of ids ({type(error).__name__}: {error}); {again}") from error
    if tokenizer and spec.tokenizer != tokenizer:
        raise ValueError(f"{path} holds ids of the tokenizer {spec.tokenizer or 'unknown'}, not of {tokenizer}; name that one with --ckpt")
    if not dry_run:
        with StoreWriter(out, spec) as writer:
            writer.prepare(keys)
            for shard in writer.missing():
                try:
                    ids, skipped = _read_shard(file, spec, shard)
                except (OSError, ValueError, TypeError) as error:
                    raise ValueError(f"{path}, row group {shard}, is damaged ({error}); {again}") from error
                writer.put(shard, ids, skipped)
            writer.close()
            writer.finish(keys)
    return spec


def _read_shard(file: Any, spec: StoreSpec, shard: int) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
    """(images, views, N) ids of a shard, zeros where there are none, and (row, key, reason) of the images without ids."""
    nothing = [0] * spec.layout.num_codes
    views = [[ids or nothing for ids in _column(file, shard, name)] for name in view_columns(spec)]
    rows = zip(spec.shard_rows(shard), _column(file, shard, "key"), _column(file, shard, "reason"), strict=True)
    return np.asarray(views, np.int64).swapaxes(0, 1), [row for row in rows if row[2] is not None]


def _column(file: Any, shard: int, name: str) -> list[Any]:
    return file.read_row_group(shard, columns=[name]).column(0).to_pylist()
