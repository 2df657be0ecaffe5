"""Parquet files, as Hugging Face publishes data sets -> image bytes by index and rows of text, one row group at a time."""

import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

from unicode.common.extras import require
from unicode.common.logging import get_logger
from unicode.images.archives import find_shards
from unicode.images.listing import LAYOUTS, PackedStrings, UnreadableImageError

CACHE_BYTES = 256 * 2**20  # of decompressed row groups that a process keeps
log = get_logger(__name__)


class ParquetImages:
    """The pictures of Parquet files, read at random. A key is "FILE/0000123", the row in its file, counted from 0.

    Attributes:
        keys: of all rows.
        blocks: (N,) number of the row group of each row; rows of one block are cheap to read together.
        window: row groups that are kept at a time, so many blocks may be shuffled together.
    """

    def __init__(self, pattern: str, root: str = "", *, column: str = "image") -> None:
        """Find the files of a pattern (braces {000..127} and globs, relative to `root`) and their row groups.

        `column`: the pictures, a struct with the field "bytes", or binary; "": none, only `rows` is then used. Raises FileNotFoundError: no
        file matches. Raises ValueError: pyarrow is missing, a file is no Parquet, is empty, or lacks the column.
        """
        self._parquet = require("pyarrow.parquet", extra="parquet")
        self._arguments = (pattern, root, column)
        self._paths, self._column = find_shards(pattern, root, kind="Parquet file"), column
        base = root or os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in self._paths])
        self._groups: list[tuple[int, int]] = []  # (file, row group in it)
        names, rows, sizes = [], [], [1]
        for file, path in enumerate(self._paths):
            metadata = self._open(path).metadata
            leaves = [metadata.schema.column(place).path for place in range(metadata.num_columns)]
            wanted = [place for place, leaf in enumerate(leaves) if leaf in (f"{column}.bytes", column)]
            if column and not wanted:
                shown = ", ".join(dict.fromkeys(leaf.split(".")[0] for leaf in leaves))
                raise ValueError(f"{path} has no pictures in a column '{column}'; its columns are {shown}; set data.image_column")
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            self._groups += [(file, number) for number in range(len(groups))]
            rows += [group.num_rows for group in groups]
            sizes += [sum(group.column(place).total_uncompressed_size for place in wanted) for group in groups]
            name = os.path.relpath(path, base).replace(os.sep, "/")
            names += [f"{name}/{row:07d}" for row in range(metadata.num_rows)]
            self._leaf = leaves[wanted[0]] if wanted else ""
        self._starts = np.cumsum([0, *rows], dtype=np.int64)  # of the row groups
        if not names:
            raise ValueError(f"{pattern} holds no row; {LAYOUTS}")
        self.keys = PackedStrings(names)
        self.blocks = np.repeat(np.arange(len(rows)), rows)
        self.window = int(np.clip(CACHE_BYTES // max(sizes), 1, 64))
        self._cache: OrderedDict[int, Any] = OrderedDict()  # row group -> its pictures; None: it is damaged

    def __reduce__(self) -> Any:
        """The files travel to a worker process as their names, not with what is kept of them."""
        pattern, root, column = self._arguments
        return partial(ParquetImages, column=column), (pattern, root)

    def read(self, index: int) -> bytes:
        """Return the bytes of picture `index`; UnreadableImageError if its row group is damaged or the row has none."""
        block = int(self.blocks[index])
        if block not in self._cache:
            while len(self._cache) >= self.window:
                self._cache.popitem(last=False)
            table = self._table(block, [self._leaf])
            self._cache[block] = table and table.column(0)
        self._cache.move_to_end(block)
        values = self._cache[block]
        if values is None:
            file, number = self._groups[block]
            raise UnreadableImageError(f"damaged row group: {self._paths[file]}, row group {number}")
        value = values[index - int(self._starts[block])].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise UnreadableImageError("missing file: the row has no bytes")
        return bytes(data)

    def rows(self, columns: list[str]) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Yield (key, values of `columns`) of every row, a row group at a time; None for the rows of a damaged row group.

        Raises ValueError: a file lacks one of the columns.
        """
        for path in self._paths:
            present = self._open(path).schema_arrow.names
            missing = [name for name in columns if name not in present]
            if missing:
                raise ValueError(f"{path} has no column '{missing[0]}'; its columns are {', '.join(present)}")
        for block, places in groupby(range(len(self.keys)), key=lambda index: int(self.blocks[index])):
            table = self._table(block, columns)
            values = table.to_pylist() if table is not None else None
            for place, index in enumerate(places):
                yield self.keys[index], values and values[place]

    def class_names(self, column: str) -> list[str]:
        """Names of the classes of a column of labels, as Hugging Face writes them into the file; none where it does not."""
        found = (self._open(self._paths[0]).schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        try:
            feature = json.loads(found)["info"]["features"][column]
            return [str(name) for name in feature.get("names") or feature["feature"]["names"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            return []

    def _open(self, path: str) -> Any:
        try:
            return self._parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is no Parquet file ({error}); copy it again, or leave it out of data.path") from error

    def _table(self, block: int, columns: list[str]) -> Any:
        """Read columns of a row group; None, with a warning, if it is damaged."""
        file, number = self._groups[block]
        try:
            return self._open(self._paths[file]).read_row_group(number, columns=columns, use_threads=False)
        except (OSError, ValueError) as error:
            log.warning("%s: row group %d is damaged and left out (%s)", self._paths[file], number, " ".join(str(error).split()))
            return None
