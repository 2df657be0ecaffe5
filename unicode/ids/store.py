"""Store: the ids of a whole set of images on disk, found by key without loading them.

    OUT/manifest.json            what the ids are and which files hold them (`unicode.ids.manifest`)
    OUT/shards/00000.npy         (images, views, N) uint16 or int32 in id order; 00000.json beside it: checksum, unreadable images
    OUT/keys/                    the index of keys (`unicode.ids.keys`)
    OUT/skipped.jsonl            key, row and reason of each image without ids

Row r of the store is image r of the list it was made from. `unicode.ids.write` makes stores.
"""

import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from unicode.common.records import read_jsonl
from unicode.ids.keys import KeyIndex
from unicode.ids.layout import Layout
from unicode.ids.manifest import Manifest

OPEN_SHARDS = 128  # memory maps held at a time; each holds a file descriptor
REMEDY = "the command that made the store makes what is missing"


class Store:
    """Ids by key. Opening reads the manifest and the sizes of the files, never the ids.

    Raises:
        FileNotFoundError: no store there, or a shard is missing.
        ValueError: the store is not finished, damaged, or a shard is truncated.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = Manifest.load(self.path)
        self.origin = self.manifest.origin
        if not self.manifest.complete:
            raise ValueError(f"{self.path} is not finished; {REMEDY}")
        for shard in self.manifest.shards:
            file = self.path / shard.file
            if not file.is_file():
                raise FileNotFoundError(f"shard {file} is missing; {REMEDY}")
            if file.stat().st_size != shard.bytes:
                raise ValueError(f"shard {file} has {file.stat().st_size} bytes instead of {shard.bytes}; {REMEDY}")
        self.index = KeyIndex(self.path / "keys")
        if len(self.index) != self.origin.num_images:
            counts = f"{len(self.index)} keys for {self.origin.num_images} images"
            raise ValueError(f"{self.path}: {counts}; encode the images again into a new folder")
        self._maps: dict[int, np.ndarray] = {}

    def __reduce__(self) -> tuple[type["Store"], tuple[Path]]:
        """A store travels to a worker process as its path, not as its content."""
        return Store, (self.path,)

    @property
    def layout(self) -> Layout:
        """Grid of the codes and order of the ids."""
        return self.origin.layout

    def __len__(self) -> int:
        """Images that have ids."""
        return self.origin.num_images - self.manifest.skipped

    def __contains__(self, key: str) -> bool:
        row = self.index.find(key)
        return row >= 0 and not self._is_empty(self._row(row))

    def __getitem__(self, key: str) -> np.ndarray:
        """The first view of one image, see `ids`."""
        return self.ids(key)

    def ids(self, key: str, *, view: int = 0) -> np.ndarray:
        """Vocabulary ids of one image: int64 (N,) in id order.

        Raises:
            KeyError: the store has no such image, or no ids of it; the message says which and why.
            IndexError: no such view.
        """
        row = self.index.find(key)
        if row < 0:
            raise KeyError(f"'{key}' is not in {self.path}; keys are paths relative to the image root, as '{self.index[0]}'")
        found = self._row(row)
        if self._is_empty(found):
            raise KeyError(f"'{key}' has no ids in {self.path}: {self.skipped.get(key, 'not encoded')}")
        return found[view].astype(np.int64)

    def get(self, key: str) -> np.ndarray | None:
        """As `self[key]`, with None for an image that is not there or could not be read."""
        row = self.index.find(key)
        found = self._row(row) if row >= 0 else None
        return None if found is None or self._is_empty(found) else found[0].astype(np.int64)

    def __iter__(self) -> Iterator[str]:
        """Keys of all images that have ids, in the order of the list they were made from."""
        skipped = self.skipped
        return (key for key in self.index if key not in skipped)

    def keys(self) -> Iterator[str]:
        """As iterating over the store."""
        return iter(self)

    @cached_property
    def skipped(self) -> dict[str, str]:
        """Reason for each image without ids. FileNotFoundError where the list of them is missing."""
        if not (self.path / "skipped.jsonl").is_file():
            raise FileNotFoundError(f"{self.path / 'skipped.jsonl'} is missing; {REMEDY}")
        return {record["key"]: record["reason"] for record in read_jsonl(self.path / "skipped.jsonl")}

    def check_tokenizer(self, fingerprint: str, layout: Layout) -> None:
        """ValueError when the ids were made by another tokenizer or stand in another order."""
        self.layout.check_same(layout)
        if self.origin.tokenizer and self.origin.tokenizer != fingerprint:
            both = f"{self.origin.tokenizer}, not of {fingerprint}"
            raise ValueError(f"{self.path} holds ids of the tokenizer {both}; encode the images again with this one")

    def verify(self) -> None:
        """Read everything and raise ValueError at the first shard whose checksum is wrong or that holds an id out of range."""
        for number, shard in enumerate(self.manifest.shards):
            file = self.path / shard.file
            if checksum(file.read_bytes()) != shard.crc32:
                raise ValueError(f"shard {file} is damaged: its checksum is not {shard.crc32}; delete the file; {REMEDY}")
            ids = self._shard(number)
            wrong = (ids.astype(np.int64) >= self.origin.vocab_size) & (ids != self.origin.no_id) | (ids < min(self.origin.no_id, 0))
            if wrong.any():
                key = self.index[number * self.origin.shard_size + int(np.argwhere(wrong)[0, 0])]
                fault = f"id {ids[wrong][0]} is not below the vocabulary size {self.origin.vocab_size}"
                raise ValueError(f"shard {file}, image '{key}': {fault}; encode the images again")

    def _is_empty(self, row: np.ndarray) -> bool:
        return bool(row[0, 0] == self.origin.no_id)

    def _row(self, row: int) -> np.ndarray:
        """(views, N) of one row, memory-mapped."""
        shard, place = divmod(row, self.origin.shard_size)
        return self._shard(shard)[place]

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._maps:
            if len(self._maps) >= OPEN_SHARDS:
                self._maps.pop(next(iter(self._maps)))
            file = self.path / self.manifest.shards[number].file
            try:
                ids = np.load(file, mmap_mode="r")
            except (ValueError, EOFError) as error:
                raise ValueError(f"shard {file} is damaged: it is no array of numpy; delete the file; {REMEDY}") from error
            if ids.shape != self.origin.shard_shape(number) or ids.dtype != self.origin.dtype:
                raise ValueError(f"shard {file} is damaged: it holds {ids.dtype} {ids.shape}; delete the file; {REMEDY}")
            self._maps[number] = ids
        return self._maps[number]


def checksum(content: bytes) -> str:
    """CRC-32 as eight hexadecimal digits."""
    return f"{zlib.crc32(content):08x}"
