"""Millions of strings in one block of memory, so that worker processes share or receive them at the cost of their bytes."""

from collections.abc import Iterable, Iterator

import numpy as np


class PackedStrings:
    """An immutable sequence of strings. A Python list of them would be copied, object by object, into each worker."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        self._ends = np.cumsum([len(part) for part in encoded], dtype=np.int64)
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self._ends):
            raise IndexError(f"index {index} of {len(self._ends)} strings")
        start = int(self._ends[index - 1]) if index else 0
        return self._bytes[start : int(self._ends[index])].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))
