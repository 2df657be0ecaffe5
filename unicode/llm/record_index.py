"""Index of an annotation file: where each usable record stands, how many tokens it has, and why others are left out.

A file of any size is read once, record by record; what is kept is a few numbers a record. They are remembered on disk under a digest of
everything that they depend on, so the second start with the same data and settings reads the file only to make sure it is the same.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from tqdm import tqdm

from unicode.annotations.conversation import RefusedError
from unicode.common.json_stream import locate_json_list
from unicode.common.log import get_logger
from unicode.common.ranks import is_main
from unicode.common.records import atomic_write

log = get_logger(__name__)

FORMAT = 1
"""Goes up when the meaning of a cached number changes."""
COLUMNS = {"starts": np.int64, "ends": np.int64, "lengths": np.int32, "rounds": np.int16, "tasks": np.int8, "images": np.int16}
PARALLEL_BYTES = 1 << 24
"""Files from this size on are read by several processes."""
MAX_PROCESSES = 16
CHUNK_RECORDS = 256
CACHE = "UNICODE_CACHE"
"""Environment variable: folder of the indexes; without it ~/.cache/unicode. Empty: nothing is kept."""


@dataclass(frozen=True)
class Measured:
    """What the index keeps of a record: tokens, questions kept of those it has, place of its task in TASKS, number of images."""

    length: int
    rounds: int
    cut: bool
    task: int
    images: int


Measure = Callable[[Any, str], Measured]
"""(record, place as words) -> what to keep; RefusedError leaves the record out, ValueError ends it all."""


@dataclass
class Intake:
    """What became of the records of one or more files."""

    records: int = 0
    cut: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    """Reason -> records left out."""
    examples: dict[str, str] = field(default_factory=dict)
    """Reason -> the first of them, with file, place and what was found."""

    def refuse(self, reason: str, example: str) -> None:
        """Count a record that is left out."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
        self.examples.setdefault(reason, example)

    def add(self, other: "Intake") -> None:
        """Count what became of another file's records too."""
        self.records, self.cut = self.records + other.records, self.cut + other.cut
        for reason, count in other.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count
            self.examples.setdefault(reason, other.examples[reason])

    def describe(self) -> str:
        """One line on what was read, cut and left out."""
        left = ", ".join(f"{count} left out: {reason} (first: {self.examples[reason]})" for reason, count in sorted(self.refused.items()))
        cut = f", {self.cut} cut between turns" if self.cut else ""
        return f"{self.records} records{cut}{'; ' + left if left else ''}"


@dataclass
class RecordIndex:
    """The usable records of one file.

    Attributes:
        columns: name in COLUMNS -> (n,) one number per record.
        intake: what became of the records.
        layout, tokenizer: what the first record that says it says about its ids.
    """

    columns: dict[str, np.ndarray]
    intake: Intake
    layout: str = ""
    tokenizer: str = ""

    def __len__(self) -> int:
        return len(self.columns["starts"])


def index_records(path: Path, measure: Measure, *, settings: dict[str, Any]) -> RecordIndex:
    """Return the index of an annotation file, from the cache when file and settings are those of an earlier call.

    Under a launcher the main rank reads the file and the others wait for it.

    Args:
        path: a JSON list of records.
        measure: what to keep of a record.
        settings: everything that `measure` depends on, as JSON can hold it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or `measure` raised it; on every rank.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}; make some with python -m unicode.run.make_annotations")
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return _load_or_scan(path, measure, settings)
    outcome: list[str | None] = [None]
    index = None
    if is_main():
        try:
            index = _load_or_scan(path, measure, settings)
        except ValueError as error:
            outcome = [str(error)]
    dist.broadcast_object_list(outcome)
    if outcome[0] is not None:
        raise ValueError(outcome[0])
    return index or _load_or_scan(path, measure, settings)


def _load_or_scan(path: Path, measure: Measure, settings: dict[str, Any]) -> RecordIndex:
    cached = _cache_file(path, settings)
    if cached is not None and cached.is_file():
        with suppress(OSError, ValueError, KeyError):  # a damaged cache is no cache
            return _load(cached)
    index = _scan(path, measure)
    if cached is not None:
        try:
            _save(index, cached)
        except OSError as error:
            log.warning("the index of %s could not be kept (%s); the next start reads the file again", path, error)
    return index


def _scan(path: Path, measure: Measure) -> RecordIndex:
    """Read the whole file; a large one with several processes, which start as copies of this one."""
    processes = min(MAX_PROCESSES, len(os.sched_getaffinity(0))) if "fork" in get_all_start_methods() else 1
    if processes == 1 or path.stat().st_size < PARALLEL_BYTES:
        return _gather(path, (_measure_chunk(path, measure, *chunk) for chunk in _chunks(path)))
    with get_context("fork").Pool(processes, initializer=_keep, initargs=(path, measure)) as pool:
        return _gather(path, pool.imap(_measure_kept, _chunks(path)))


@dataclass
class _Chunk:
    """What was found in some records that stand one after another."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    intake: Intake = field(default_factory=Intake)
    meaning: tuple[str, str] = ("", "")
    place: str = ""


def _gather(path: Path, chunks: Iterable[_Chunk]) -> RecordIndex:
    intake, first = Intake(), _Chunk()
    rows: list[np.ndarray] = []
    with tqdm(desc=f"reading {path.name}", unit=" records", mininterval=5, delay=10, disable=not is_main()) as bar:
        for chunk in chunks:
            rows.append(np.array(chunk.rows, dtype=np.int64).reshape(-1, len(COLUMNS)))
            intake.add(chunk.intake)
            if any(chunk.meaning) and not any(first.meaning):
                first = chunk
            if any(chunk.meaning) and chunk.meaning != first.meaning:
                both = f"{' and '.join(filter(None, chunk.meaning))}, those of {first.place} {' and '.join(filter(None, first.meaning))}"
                raise ValueError(f"{chunk.place}: its ids are of {both}; ids of two tokenizers or orders do not mix")
            bar.update(chunk.intake.records)
    whole = np.concatenate(rows) if rows else np.empty((0, len(COLUMNS)), dtype=np.int64)
    columns = {name: whole[:, number].astype(kind) for number, (name, kind) in enumerate(COLUMNS.items())}
    return RecordIndex(columns, intake, *first.meaning)


def _chunks(path: Path) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Number of the first record, and first byte and byte behind the last of each, for some records at a time."""
    spans, number = locate_json_list(path), 0
    while chunk := list(islice(spans, CHUNK_RECORDS)):
        yield number, chunk
        number += len(chunk)


def _measure_chunk(path: Path, measure: Measure, number: int, spans: list[tuple[int, int]]) -> _Chunk:
    chunk = _Chunk()
    with open(path, "rb") as file:
        for index, (start, end) in enumerate(spans, number):
            file.seek(start)
            try:
                record = json.loads(file.read(end - start))
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, record {index}: the file is not UTF-8 text ({error.reason})") from error
            name = record.get("id") if isinstance(record, dict) else None
            place = f"{path}, record {index}" + (f" (id {name!r})" if name is not None else "")
            chunk.intake.records += 1
            try:
                found = measure(record, place)
            except RefusedError as refused:
                chunk.intake.refuse(refused.reason, f"{place}: {refused.detail}")
                continue
            chunk.intake.cut += found.cut
            chunk.rows.append((start, end, found.length, found.rounds, found.task, found.images))
            if not any(chunk.meaning):
                chunk.meaning, chunk.place = (str(record.get("layout") or ""), str(record.get("tokenizer") or "")), place
    return chunk


_kept: dict[str, Any] = {}  # in a process of the pool: the file and the function that measures its records


def _keep(path: Path, measure: Measure) -> None:
    _kept.update(path=path, measure=measure)


def _measure_kept(chunk: tuple[int, list[tuple[int, int]]]) -> _Chunk:
    return _measure_chunk(_kept["path"], _kept["measure"], *chunk)


def _cache_file(path: Path, settings: dict[str, Any]) -> Path | None:
    root = os.environ.get(CACHE, str(Path.home() / ".cache" / "unicode"))
    if not root:
        return None
    with open(path, "rb") as file:
        content = hashlib.file_digest(file, "blake2b").hexdigest()
    key = hashlib.sha256(json.dumps([FORMAT, str(path), content, settings], sort_keys=True).encode()).hexdigest()[:32]
    return Path(root) / "records" / f"{path.stem}-{key}.npz"


def _save(index: RecordIndex, path: Path) -> None:
    intake = index.intake
    words = json.dumps([[intake.records, intake.cut, intake.refused, intake.examples], index.layout, index.tokenizer])
    arrays: dict[str, Any] = {"words": np.array(words), **index.columns}
    with atomic_write(path, "wb") as file:
        np.savez(file, **arrays)


def _load(path: Path) -> RecordIndex:
    with np.load(path) as content:
        intake, layout, tokenizer = json.loads(str(content["words"]))
        return RecordIndex({name: content[name] for name in COLUMNS}, Intake(*intake), layout, tokenizer)
