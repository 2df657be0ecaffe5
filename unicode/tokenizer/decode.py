"""Decoding: ids of a store, or of the runs in an annotation file -> PNG files."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from unicode.common.distributed import all_reduce_sum_, is_main, rank, world_size
from unicode.common.files import atomic_write, read_jsonl
from unicode.common.json_lists import read_json_list
from unicode.ids.layout import Layout
from unicode.ids.store import Store, check_key
from unicode.ids.text import split_runs
from unicode.images.decode import to_uint8
from unicode.tokenizer.encode import IdTokenizer, arithmetic

WRITERS = 4  # threads that compress pictures


class DecodingTokenizer(IdTokenizer, Protocol):
    """What decoding needs of an image tokenizer."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def num_levels(self) -> int:
        """Number of levels."""

    def from_ids(self, ids: torch.Tensor, *, layout: Layout | None = None) -> torch.Tensor:
        """(B, N) vocabulary ids in id order -> (B, N) canonical codes; ValueError for an id that is no image id."""

    def decode(self, codes: torch.Tensor, *, levels: int | None = None, layout: Layout | None = None) -> torch.Tensor:
        """(B, N) canonical codes -> (B, 3, H, W), about [-1, 1]."""


class Runs(Protocol):
    """Whole pictures as ids."""

    @property
    def layout(self) -> Layout:
        """Grid and order of every run."""

    @property
    def partial(self) -> int:
        """Runs met so far that are no whole picture."""

    @property
    def total(self) -> int | None:
        """How many there are, where that is known beforehand."""

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (path of the picture without folder, ids (N,) in id order)."""


class StoreRuns:
    """One view of the pictures of a store, in its order, each under its key.

    Raises:
        ValueError: the store is of another tokenizer or order, or has no such view.
    """

    partial = 0

    def __init__(self, store: Store, tokenizer: IdTokenizer, *, view: int = 0) -> None:
        store.check_tokenizer(tokenizer.fingerprint, tokenizer.layout.resized(*store.layout.grids[0]))
        if not 0 <= view < len(store.origin.views):
            raise ValueError(f"there is no view {view} in {store.path}; from 0 on it has: {', '.join(store.origin.views)}")
        self.layout = store.layout
        self.total: int | None = len(store)
        self._store, self._view = store, view

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        for key in self._store:
            yield key, self._store.ids(key, view=self._view)


class AnnotationRuns:
    """The runs in the turns of an annotation file that are whole pictures, named RECORD-RUN, both counted from 0.

    Iterating raises ValueError for a record that is no conversation, for damaged runs, and for records of another tokenizer or order.
    """

    total: int | None = None

    def __init__(self, path: str | Path, tokenizer: IdTokenizer) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no annotation file {path}; make one with python -m unicode.run.make_annotations")
        self.layout = tokenizer.layout
        self.partial = 0
        self._path, self._fingerprint = Path(path), tokenizer.fingerprint

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        self.partial = 0
        records = read_jsonl(self._path) if self._path.suffix == ".jsonl" else read_json_list(self._path)
        for number, record in enumerate(records):
            runs = [piece.ids for turn in self._turns(record, number) for piece in turn if piece.ids is not None]
            for place, ids in enumerate(runs):
                if len(ids) == self.layout.num_codes:
                    yield f"{number:07d}-{place}", ids
                else:
                    self.partial += 1

    def _turns(self, record: Any, number: int) -> Iterator[list[Any]]:
        """The turns of one record, cut into pieces."""
        where = f"{self._path}, record {number}"
        turns = record.get("conversations") if isinstance(record, dict) else None
        if not isinstance(turns, list) or not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
            raise ValueError(f"{where}: 'conversations' must be a list of turns with a 'value' each")
        for name, mine in (("tokenizer", self._fingerprint), ("layout", self.layout.describe())):
            if record.get(name, mine) != mine:
                raise ValueError(f"{where}: its ids are of the {name} {record[name]}, not of {mine}; make the annotations again")
        for place, turn in enumerate(turns):
            yield split_runs(turn["value"], where=f"{where} (id {record.get('id')!r}), turn {place}", allow_empty=True)


@dataclass(frozen=True)
class DecodeReport:
    """What `decode_runs` did, summed over the ranks."""

    pictures: int
    partial: int
    """Runs that are no whole picture."""


def open_runs(path: str | Path, tokenizer: IdTokenizer, *, view: int = 0) -> StoreRuns | AnnotationRuns:
    """Open what `--ids` means: a store, or an annotation file (.json, .jsonl).

    Raises:
        FileNotFoundError: there is neither.
        ValueError: the ids are of another tokenizer or order.
    """
    if Path(path).suffix in (".json", ".jsonl"):
        return AnnotationRuns(path, tokenizer)
    return StoreRuns(Store(path), tokenizer, view=view)


def decode_runs(
    tokenizer: DecodingTokenizer, runs: Runs, out: str | Path, *, levels: int | None = None, batch_size: int = 16, limit: int = 0
) -> DecodeReport:
    """Write every picture of `runs` to `out`, at the path of its key; called by every rank of a job, which share the pictures.

    A key that does not end in .png gets that ending after its own, so that a.jpg and a.png stay two pictures.

    Args:
        levels: decode the first so many levels only; 1 is the coarse picture.
        limit: stop after so many pictures; 0: all.

    Raises:
        ValueError: a key that leaves `out`, an id that is none of the tokenizer's, or a number of levels that it does not have.
        OSError: the disk is full.
    """
    if batch_size < 1 or limit < 0:
        raise ValueError(f"batch size {batch_size} or limit {limit} is too small")
    if levels is not None and not 1 <= levels <= tokenizer.num_levels:
        raise ValueError(f"{levels} levels asked for; the tokenizer has 1 to {tokenizer.num_levels}")
    folder, total = Path(out), runs.total and min(runs.total, limit or runs.total)
    written = 0
    bar = tqdm(total=total, desc="decoding", unit=" images", disable=not is_main())
    with ThreadPoolExecutor(WRITERS) as pool, arithmetic("float32", tokenizer.device), bar as progress:
        pending: list[Future[None]] = []
        for number, batch in enumerate(_batches(islice(runs, limit or None), batch_size)):
            progress.update(len(batch))
            if number % world_size() != rank():
                continue
            _wait(pending)
            pending = [pool.submit(_write_picture, path, pixels) for path, pixels in _decode(tokenizer, runs.layout, batch, folder, levels)]
            written += len(batch)
        _wait(pending)
    return DecodeReport(int(all_reduce_sum_(torch.tensor(written))), runs.partial)


def picture_path(folder: Path, key: str) -> Path:
    """Where the picture of a key lies under `folder`. ValueError for a key that leaves it."""
    check_key(key)
    return folder / (key if key.endswith(".png") else f"{key}.png")


def _batches(items: Iterator[tuple[str, np.ndarray]], size: int) -> Iterator[list[tuple[str, np.ndarray]]]:
    return iter(lambda: list(islice(items, size)), [])


def _decode(
    tokenizer: DecodingTokenizer, layout: Layout, batch: Iterable[tuple[str, np.ndarray]], folder: Path, levels: int | None
) -> list[tuple[Path, np.ndarray]]:
    """(path, ids) pairs -> (path, (H, W, 3) uint8) pairs."""
    keys, ids = zip(*batch, strict=True)
    try:
        codes = tokenizer.from_ids(torch.from_numpy(np.stack(ids)).to(tokenizer.device), layout=layout)
    except ValueError as error:
        raise ValueError(f"'{keys[0]}' to '{keys[-1]}': {error}") from error
    pixels = to_uint8(tokenizer.decode(codes, levels=levels, layout=layout)).permute(0, 2, 3, 1).cpu().numpy()
    return [(picture_path(folder, key), image) for key, image in zip(keys, pixels, strict=True)]


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    with atomic_write(path, "wb") as file:
        Image.fromarray(pixels).save(file, "PNG")


def _wait(pending: Iterable[Future[None]]) -> None:
    for future in pending:
        future.result()
