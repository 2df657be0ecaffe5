"""Keys of a store: the names of its images, found in a file of any size without loading it.

A key is a path relative to the image root, with forward slashes. `names.txt` holds all keys in the order of the rows,
`offsets.npy` where each begins, `hashes.npy` the sorted 64-bit hashes and `rows.npy` the row of each hash. All are
memory-mapped: opening costs the same for a hundred keys and for ten million.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from unicode.common.records import atomic_write

FILES = ("names.txt", "offsets.npy", "hashes.npy", "rows.npy")


class KeyIndex:
    """The keys in `folder`: `index[row]` is a key, `index.find(key)` its row.

    Raises:
        ValueError: a file of the index is missing or damaged, or the files do not belong together.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        remedy = "delete that folder and run the command that made the store, it makes the index again"
        try:
            self._offsets, self._hashes, self._rows = (np.load(folder / name, mmap_mode="r") for name in FILES[1:])
            self._names = np.memmap(folder / FILES[0], dtype=np.uint8, mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"the key index {folder} cannot be read ({error}); {remedy}") from error
        if not len(self._offsets) - 1 == len(self._hashes) == len(self._rows) or self._offsets[-1] != len(self._names):
            raise ValueError(f"the files of the key index {folder} do not belong together; {remedy}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> str:
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        return self._names[start : end - 1].tobytes().decode("utf-8", "surrogateescape")  # the last byte is the line end

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def find(self, key: str) -> int:
        """Row of `key`, or -1: one binary search over the hashes, then the names themselves decide."""
        wanted = _hash(key)
        place = int(np.searchsorted(self._hashes, wanted))
        while place < len(self._hashes) and self._hashes[place] == wanted:
            row = int(self._rows[place])
            if self[row] == key:
                return row
            place += 1
        return -1


def write_keys(folder: str | Path, keys: Sequence[str]) -> None:
    """Write the index of `keys` to `folder`; each file is renamed into place when whole.

    Raises:
        ValueError: see `check_keys`.
    """
    check_keys(keys)
    folder = Path(folder)
    encoded = [_encode(key) + b"\n" for key in keys]
    hashes = np.fromiter((_hash(key) for key in keys), dtype=np.uint64, count=len(keys))
    rows = np.argsort(hashes, kind="stable")
    offsets = np.concatenate(([0], np.cumsum([len(name) for name in encoded]))).astype(np.int64)
    for name, array in zip(FILES[1:], (offsets, hashes[rows], rows.astype(np.int64)), strict=True):
        with atomic_write(folder / name, "wb") as file:
            np.save(file, array)
    with atomic_write(folder / FILES[0], "wb") as file:
        file.writelines(encoded)


def check_keys(keys: Sequence[str]) -> None:
    """ValueError when there are no keys, two are equal, or one could lead out of the image root."""
    if not keys:
        raise ValueError("no images to encode: the list is empty")
    for key in keys:
        check_key(key)
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key '{twice}' stands for two images; keys are paths relative to the image root, never bare names")


def check_key(key: str) -> None:
    """ValueError for a key that is no path below the image root: absolute, with "..", with backslashes, or empty."""
    if not key or key.startswith("/") or "\\" in key or key[1:2] == ":" or ".." in PurePosixPath(key).parts:
        raise ValueError(f"'{key}' is no path below the image root; keys are relative, with forward slashes and without '..'")


def hash_keys(keys: Sequence[str]) -> str:
    """Hexadecimal SHA-256 of the keys in their order: two lists of images are the same when this is."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(_encode(key) + b"\0")
    return digest.hexdigest()


def _encode(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _hash(key: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(_encode(key), digest_size=8).digest(), "little"))
