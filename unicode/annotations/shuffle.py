"""Shuffle more records than fit into memory: lines go to a temporary file, an index of it is put in order and read back.

The order is that of a keyed hash of each line. It is fixed by the seed and by what the records say, not by the order in which
they came, and costs 17 bytes of memory a record, and as many again while the output is written.
"""

import os
import tempfile
from array import array
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np

from unicode.common.json_stream import dump_line, open_json_list

BUFFER_BYTES = 1 << 20


class LineSpool:
    """Records on their way from the order of the input to the order of the output. Made by `open_spool`."""

    def __init__(self, file: IO[bytes], seed: int, folder: Path) -> None:
        self.file, self.folder = file, folder
        self.key = str(seed).encode()[:64]
        self.waiting = bytearray()
        self.offsets, self.hashes, self.groups = array("Q", [0]), array("Q"), bytearray()

    def __len__(self) -> int:
        return len(self.hashes)

    def add(self, record: dict[str, Any], *, group: int = 0, copy: int = 0) -> None:
        """Keep a record for the files that take `group`; `copy` tells equal lines apart, so that they do not end side by side.

        Raises:
            UnicodeEncodeError: the record holds text that UTF-8 cannot hold.
            OSError: the disk is full.
        """
        line = dump_line(record).encode()
        digest = blake2b(line, digest_size=8, key=self.key, salt=copy.to_bytes(8, "big")).digest()
        self.waiting += line
        self.offsets.append(self.offsets[-1] + len(line))
        self.hashes.append(int.from_bytes(digest, "big"))
        self.groups.append(group)
        if len(self.waiting) > BUFFER_BYTES:
            self._flush()

    def write(self, outputs: Mapping[Path, Collection[int]]) -> dict[Path, int]:
        """Write each file of `outputs` with the records of its groups, shuffled; all of them or none. Returns their sizes."""
        self._flush()
        order = np.argsort(np.frombuffer(self.hashes, dtype=np.uint64), kind="stable") if self.hashes else np.empty(0, dtype=np.int64)
        descriptor = self.file.fileno()
        with ExitStack() as stack:
            writers = {path: stack.enter_context(open_json_list(path)) for path in outputs}
            takers = [[writers[path] for path, groups in outputs.items() if group in groups] for group in range(256)]
            for index in map(int, order):
                start, end = self.offsets[index], self.offsets[index + 1]
                line = os.pread(descriptor, end - start, start).decode()
                for writer in takers[self.groups[index]]:
                    writer.write_line(line)
            for writer in writers.values():
                writer.finish()
        return {path: writer.count for path, writer in writers.items()}

    def _flush(self) -> None:
        """Write what waits. The file has no buffer of its own: one could fail a second time when it is closed."""
        try:
            done = 0
            while done < len(self.waiting):
                done += os.write(self.file.fileno(), memoryview(self.waiting)[done:])
        except OSError as error:
            message = f"no room for the temporary file of the shuffle ({error.strerror}); nothing that was there before is lost"
            raise OSError(error.errno, message, str(self.folder)) from error
        self.waiting = bytearray()


@contextmanager
def open_spool(folder: Path, *, seed: int) -> Iterator[LineSpool]:
    """A spool whose nameless temporary file lies in `folder`, where the output will need as much room anyway."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        yield LineSpool(file, seed, folder)
