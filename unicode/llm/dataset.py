"""Annotation files of any size -> examples by index, checked before training."""

import fcntl
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from unicode.annotations.build import ImageIds, open_image_ids
from unicode.annotations.records import BAD_IDS, IMAGE_TAG, TAG_MISMATCH, TASKS, Record, RefusedError, image_key, read_record
from unicode.common.distributed import is_main
from unicode.common.files import atomic_write
from unicode.common.json_lists import locate_json_list
from unicode.common.logging import get_logger
from unicode.ids.layout import Layout
from unicode.llm.examples import Example, ExampleBuilder

log = get_logger(__name__)

FORMAT = 2  # Increases when the content of a cached index changes
ROW = np.dtype([("start", "i8"), ("end", "i8"), ("length", "i4"), ("rounds", "i2"), ("task", "i1"), ("images", "i2")])
"""What the index keeps of a record: its bytes in the file, tokens, rounds kept, index of its task in TASKS, number of images."""
PARALLEL_BYTES = 1 << 25  # Files from this size on are read by several processes
MAX_PROCESSES = 16
CHUNK_RECORDS = 256
CACHE = "UNICODE_CACHE"  # Environment variable: folder of the indexes; without it ~/.cache/unicode. Empty: nothing is kept
TOO_LONG = "too long"
MANY_SHOWN = 5  # faults named in an error


class Measured(NamedTuple):
    """Tokens of a record, rounds kept, index of its task in TASKS, number of images, and whether rounds were cut off."""

    length: int
    rounds: int
    task: int
    images: int
    cut: bool


Measure = Callable[[Any, str], Measured]
"""(record, its place in the file as text) -> its measures; RefusedError leaves the record out, ValueError ends the reading."""
Span = tuple[int, tuple[int, int]]  # Number of a record, and its first byte and the byte behind its last


@dataclass
class Intake:
    """Counts of the records of one or more files: read, cut, left out."""

    records: int = 0
    cut: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # Reason -> records left out
    examples: dict[str, str] = field(default_factory=dict)  # Reason -> the first of them, with file, place and what was found

    def add(self, other: "Intake") -> None:
        """Add the counts of further records."""
        self.records, self.cut = self.records + other.records, self.cut + other.cut
        for reason, count in other.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count
            self.examples.setdefault(reason, other.examples[reason])

    def describe(self) -> str:
        """Return one line on the records read, cut and left out."""
        left = ", ".join(f"{count} left out: {reason} (first: {self.examples[reason]})" for reason, count in sorted(self.refused.items()))
        cut = f", {self.cut} cut between turns" if self.cut else ""
        return f"{self.records} records{cut}{'; ' + left if left else ''}"


@dataclass
class RecordIndex:
    """The usable records of a file, or of a part of one: `rows` (n,) of type ROW, and the counts of all records."""

    rows: np.ndarray
    intake: Intake
    named: tuple[str, str, str] = ("", "", "")  # Layout and tokenizer of the ids, and the place of the first record that names either


def index_records(path: Path, measure: Measure, *, settings: dict[str, Any]) -> RecordIndex:
    """Return the index of an annotation file, from the cache when file and settings are those of an earlier call.

    Of several processes that index a file at the same time, one reads it and the others wait for its result; without a cache each reads it
    with its share of the processors. `settings`: everything that `measure` depends on, as JSON can hold it. Raises FileNotFoundError: there
    is no such file. Raises ValueError: it is damaged, or `measure` raised it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}; make some with python -m unicode.run.make_annotations")
    cached = _cache_file(path, settings)
    if cached is None:
        return _scan(path, measure, readers=int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    with ExitStack() as stack:
        with suppress(OSError):  # a folder that cannot be written or locked is no hindrance
            cached.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(open(cached.with_suffix(".lock"), "w")), fcntl.LOCK_EX)
        if cached.is_file():
            with suppress(OSError, ValueError, KeyError), np.load(cached) as content:  # a damaged cache is written anew
                intake, *named = json.loads(str(content["words"]))
                return RecordIndex(content["rows"], Intake(*intake), tuple(named))
        index = _scan(path, measure)
        try:
            words = json.dumps([[*vars(index.intake).values()], *index.named])
            with atomic_write(cached, "wb") as file:
                np.savez(file, words=np.array(words), rows=index.rows)
        except OSError as error:
            log.warning("the index of %s could not be saved (%s); the next start reads the file again", path, error)
    return index


def _cache_file(path: Path, settings: dict[str, Any]) -> Path | None:
    root = os.environ.get(CACHE, str(Path.home() / ".cache" / "unicode"))
    if not root:
        return None
    with open(path, "rb") as file:
        content = hashlib.file_digest(file, "blake2b").hexdigest()
    key = hashlib.sha256(json.dumps([FORMAT, str(path), content, settings], sort_keys=True).encode()).hexdigest()[:32]
    return Path(root) / "records" / f"{path.stem}-{key}.npz"


_pool_jobs: list[tuple[Path, Measure]] = []  # in a process of the pool: the file, and the function that measures its records


def _scan(path: Path, measure: Measure, *, readers: int = 1) -> RecordIndex:
    """Read the whole file. `readers`: ranks that do so on this machine at once."""
    rows, intake, named = [np.empty(0, ROW)], Intake(), ("", "", "")
    with (
        closing(_index_chunks(path, measure, readers)) as chunks,
        tqdm(desc=f"reading {path.name}", unit=" records", mininterval=5, delay=10, disable=not is_main()) as bar,
    ):
        for chunk in chunks:
            rows.append(chunk.rows)
            intake.add(chunk.intake)
            named = named if named[2] else chunk.named
            if chunk.named[2] and chunk.named[:2] != named[:2]:
                found, known = (" and ".join(filter(None, one[:2])) for one in (chunk.named, named))
                reason = f"its ids are of {found}, those of {named[2]} of {known}"
                raise ValueError(f"{chunk.named[2]}: {reason}; ids of two tokenizers or orders do not mix")
            bar.update(chunk.intake.records)
    return RecordIndex(np.concatenate(rows), intake, named)


def _index_chunks(path: Path, measure: Measure, readers: int) -> Generator[RecordIndex]:
    processes = min(MAX_PROCESSES, max(1, len(os.sched_getaffinity(0)) // readers))
    spans = enumerate(locate_json_list(path))
    chunks = iter(lambda: list(islice(spans, CHUNK_RECORDS)), [])
    if processes == 1 or path.stat().st_size < PARALLEL_BYTES:
        yield from (_index_chunk(path, measure, chunk) for chunk in chunks)
        return
    context = get_context("forkserver")  # forking a process that has threads or a GPU may hang
    context.set_forkserver_preload([__name__])
    waiting: deque[Future[RecordIndex]] = deque()
    # Not a multiprocessing.Pool, whose end in an error hangs where it kills a process that holds the lock of the results
    with ProcessPoolExecutor(processes, context, _begin, ((path, measure),)) as pool:
        for chunk in chunks:
            waiting.append(pool.submit(_index_chunk_in_pool, chunk))
            if len(waiting) > 4 * processes:
                yield waiting.popleft().result()
        yield from (one.result() for one in waiting)


def _index_chunk(path: Path, measure: Measure, chunk: list[Span]) -> RecordIndex:
    rows, intake, named = [], Intake(len(chunk)), ("", "", "")
    with open(path, "rb") as file:
        for index, (start, end) in chunk:
            file.seek(start)
            try:
                record = json.loads(file.read(end - start))
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, record {index}: the file is not UTF-8 text ({error.reason})") from error
            name = record.get("id") if isinstance(record, dict) else None
            place = f"{path}, record {index}" + (f" (id {name!r})" if name is not None else "")
            try:
                measured = measure(record, place)
            except RefusedError as refused:
                intake.add(Intake(0, 0, {refused.reason: 1}, {refused.reason: f"{place}: {refused.detail}"}))
                continue
            intake.cut += measured.cut
            rows.append((start, end, *measured[:4]))
            if not named[2] and (record.get("layout") or record.get("tokenizer")):
                named = record.get("layout") or "", record.get("tokenizer") or "", place
    return RecordIndex(np.array(rows, ROW), intake, named)


def _begin(job: tuple[Path, Measure]) -> None:
    _pool_jobs.append(job)


def _index_chunk_in_pool(chunk: list[Span]) -> RecordIndex:
    return _index_chunk(*_pool_jobs[-1], chunk)


class ConversationDataset(Dataset[Example]):
    """The conversations of one or more annotation files, tokenized on access.

    All records are checked and measured when the data set is made. A record that is too long is cut between turns, or left out when
    its first round alone is too long; an image is never cut.

    `files`: JSON lists of records; FILE@FOLDER where its image paths start from a folder of the image root. `builder`: tokenizes
    conversations; without a layout, that of the stores or records is taken. `stores`: folders of ids (or folders of such folders) for
    records that name their images. `max_length`: most tokens of an example; 0: no limit. `input_mode`: "sum" compresses the images of all
    questions, "ids" those of records that ask for it. `isolate_turns`: see `unicode.llm.examples.split_branches`. `image_positions`:
    positions of an image whose features are put in later (LLaVA); 0 where images are ids. `skip_bad`: leave out records that cannot be used
    and count them, in place of an error that names them. Raises FileNotFoundError: no such annotation file or store. Raises ValueError: a
    damaged file; records that cannot be used; ids of another tokenizer, in another order or beyond the vocabulary; no record left.
    """

    lengths: np.ndarray  # (n,) int32 tokens
    tasks: np.ndarray  # (n,) int8, indexes in annotations.records.TASKS
    sources: np.ndarray  # (n,) int32, indexes in `files`
    num_images: np.ndarray  # (n,) int16, images of each example
    fingerprint: str  # Of the image tokenizer that made the ids; "" if neither arguments nor stores nor records name it

    def __init__(
        self,
        files: Sequence[str | Path],
        builder: ExampleBuilder,
        *,
        stores: Sequence[str | Path] = (),
        fingerprint: str = "",
        max_length: int = 0,
        input_mode: str = "ids",
        isolate_turns: bool = False,
        image_positions: int = 0,
        skip_bad: bool = False,
    ) -> None:
        if not files:
            raise ValueError("no annotation files; name some, as data.files=[FILE.json]")
        self.paths, self.folders = zip(*(split_source(file) for file in files), strict=True)
        self.image_ids = open_image_ids(stores) if stores and not image_positions else None
        self.builder = replace(builder, layout=None) if image_positions else builder
        self.fingerprint, self.image_positions, self.max_length = fingerprint, image_positions, max_length
        self.input_mode, self.isolate_turns = input_mode, isolate_turns
        if self.image_ids is not None:
            self._check_stores(self.image_ids)
        self.indexes: list[RecordIndex] = []
        self.intake = Intake()
        for source, (path, folder) in enumerate(zip(self.paths, self.folders, strict=True)):
            index = index_records(path, partial(self._measure, source), settings={**self._settings(), "folder": folder})
            self._adopt(*index.named)
            self.intake.add(index.intake)
            self.indexes.append(index)
        self._check_intake(skip_bad)
        rows = np.concatenate([index.rows for index in self.indexes])
        self.lengths, self.tasks, self.num_images = (np.ascontiguousarray(rows[name]) for name in ("length", "task", "images"))
        sizes = [len(index.rows) for index in self.indexes]
        self.sources = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self._begins = np.cumsum([0, *sizes])
        self._contents: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        """Return the example of one record."""
        index = range(len(self))[index]
        sample, source = self.sample(index), int(self.sources[index])
        return self.builder.build(
            sample.turns,
            self._runs(sample, source),
            input_mode=sample.input_mode or self.input_mode,
            isolate_turns=self.isolate_turns,
            task=sample.task,
            images=tuple(self._key(key, source) for key in sample.keys),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_contents": {}}  # memory maps would be pickled as copies of the files

    @property
    def layout(self) -> Layout | None:
        """Of the ids; None if neither arguments nor stores nor records name it, or images are not ids."""
        return self.builder.layout

    def sample(self, index: int) -> Record:
        """Return one record, cut as its example is."""
        source = int(self.sources[index])
        row = self.indexes[source].rows[index - self._begins[source]]
        if source not in self._contents:
            self._contents[source] = np.memmap(self.paths[source], dtype=np.uint8, mode="r")
        record = json.loads(self._contents[source][row["start"] : row["end"]].tobytes())
        return read_record(record).first_rounds(int(row["rounds"]))

    def _measure(self, source: int, record: Any, place: str) -> Measured:
        """Check a record and count its tokens. RefusedError if it cannot be used, ValueError if no record of the file can."""
        sample = read_record(record)
        self._adopt(sample.layout, sample.tokenizer, place)
        runs, rounds = self._runs(sample, source), len(sample.turns) // 2
        for count in range(rounds, 0, -1):
            part = sample.first_rounds(count)
            options: dict[str, Any] = {"input_mode": sample.input_mode or self.input_mode, "isolate_turns": self.isolate_turns}
            try:
                length = self.builder.measure(part.turns, runs[: len(part.images)], **options)
            except ValueError as error:
                raise RefusedError(BAD_IDS, str(error)) from error
            if not self.max_length or length <= self.max_length:
                return Measured(length, count, TASKS.index(sample.task), len(part.images), count < rounds)
        raise RefusedError(TOO_LONG, f"its first turn has {length} tokens, at most {self.max_length} are allowed")

    def _runs(self, sample: Record, source: int) -> list[np.ndarray]:
        """Ids of the images of a sample; in LLaVA's way positions that are filled later."""
        if self.image_positions:
            if len(sample.keys) < len(sample.images):
                raise RefusedError(BAD_IDS, "the record holds ids, but this model reads image files; give it LLaVA's own annotations")
            if sum(turn.count(IMAGE_TAG) for turn in sample.turns[::2]) < len(sample.images):
                raise RefusedError(TAG_MISMATCH, f"{IMAGE_TAG} in an answer, but a model that reads image files cannot write them")
            return [np.full(self.image_positions, self.builder.placeholder)] * len(sample.images)
        runs: list[np.ndarray] = []
        for image in sample.images:
            if not isinstance(image, str):
                runs.append(image)
            elif self.image_ids is not None:
                runs.append(self.image_ids.get(self._key(image, source)))
            else:
                reason = f"{self.paths[source]}, record {sample.id!r} names the image '{image}', but no store of ids is given"
                raise ValueError(f"{reason}; name one with data.stores=[DIR] (python -m unicode.run.encode_images makes it)")
        return runs

    def _key(self, key: str, source: int) -> str:
        return f"{self.folders[source]}/{key}" if self.folders[source] else key

    def _check_stores(self, image_ids: ImageIds) -> None:
        """Take layout and fingerprint from the stores, or compare them with the expected ones."""
        for store in image_ids.stores:
            if self.layout is not None:
                store.check_tokenizer(self.fingerprint or store.spec.tokenizer, self.layout)
            if 0 < self.builder.vocab_size < store.spec.vocab_size:
                both = f"a vocabulary of {store.spec.vocab_size} tokens, but the language model has {self.builder.vocab_size}"
                raise ValueError(f"{store.path} holds ids of {both}; take the model whose table the image tokenizer was trained with")
        self.builder = replace(self.builder, layout=image_ids.layout)
        self.fingerprint = self.fingerprint or image_ids.tokenizer

    def _adopt(self, described: str, tokenizer: str, place: str) -> None:
        """Take layout and tokenizer that a record names for its ids; ValueError if they differ from the known ones."""
        if self.image_positions:
            return
        if described and (self.layout is None or described != self.layout.describe()):
            try:
                layout = Layout.parse(described)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error
            if self.layout is not None and layout != self.layout:
                both = f"{described}, expected {self.layout.describe()}"
                raise ValueError(f"{place}: its ids are {both}; make the annotations again with the store of this image tokenizer")
            self.builder = replace(self.builder, layout=layout)
        self.fingerprint = self.fingerprint or tokenizer
        if tokenizer and tokenizer != self.fingerprint:
            both = f"{tokenizer}, expected {self.fingerprint}"
            raise ValueError(f"{place}: its ids are of the image tokenizer {both}; make the annotations again with the store of this one")

    def _check_intake(self, skip_bad: bool) -> None:
        """Raise ValueError naming the first records that cannot be used, or when none is left."""
        names = ", ".join(map(str, self.paths))
        bad = {reason: count for reason, count in self.intake.refused.items() if reason != TOO_LONG}
        if bad and not skip_bad:
            shown = "; ".join(f"{count} x {reason}, as {self.intake.examples[reason]}" for reason, count in list(bad.items())[:MANY_SHOWN])
            total = f"{sum(bad.values())} of {self.intake.records} records cannot be used"
            raise ValueError(f"{total}: {shown}; correct them, or leave such records out with data.skip_bad=true")
        if not any(len(index.rows) for index in self.indexes):
            raise ValueError(f"no record of {names} is left for training: {self.intake.describe()}")
        if self.intake.refused or self.intake.cut:
            log.info("%s: %s", names, self.intake.describe())

    def _settings(self) -> dict[str, Any]:
        """Return everything except the file that the index of a file depends on."""
        builder = self.builder
        stores = [] if self.image_ids is None else [repr(store.manifest) for store in self.image_ids.stores]
        return {
            "template": [builder.template.name, str(getattr(builder.text_tokenizer, "chat_template", None))],
            "text_tokenizer": builder.encoder.digest,
            "markers": None if builder.markers is None else asdict(builder.markers),
            "layout": None if self.layout is None else self.layout.describe(),
            "tokenizer": self.fingerprint,
            "stores": hashlib.sha256("".join(stores).encode()).hexdigest(),
            "limits": [builder.vocab_size, self.max_length, self.input_mode, self.isolate_turns, self.image_positions],
            "output_mode": builder.output_mode,
        }


def split_source(file: str | Path) -> tuple[Path, str]:
    """Split FILE or FILE@FOLDER into the file and the folder below the image root that its image paths start from.

    Raises ValueError: the folder leaves the image root.
    """
    name, _, folder = str(file).rpartition("@")
    if not name or Path(file).is_file():
        return Path(file), ""
    try:
        return Path(name), image_key(folder)
    except RefusedError as refused:
        raise ValueError(f"'{file}': '@{folder}' names no folder below the image root: {refused}") from None
