"""Shared pipeline of the annotation functions: read, convert, shuffle, write, report."""

import os
import tempfile
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from unicode.annotations.records import BAD_IDS, NO_IDS, NOT_TEXT, RefusedError, image_key, read_record
from unicode.annotations.templates import draw
from unicode.common.files import read_jsonl, write_json
from unicode.common.json_lists import dump_line, open_json_list, read_json_list
from unicode.common.logging import get_logger
from unicode.ids.layout import Layout
from unicode.ids.store import MANIFEST, Store

log = get_logger(__name__)
NUM_EXAMPLES = 5
PROGRESS_SECONDS = 10.0


@dataclass
class Dropped:
    """Records that were left out for one reason."""

    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    """The first few: file, record (its place in the file, from 0), id, detail."""


@dataclass
class Report:
    """The account of one run of an annotation function."""

    func: str
    seed: int
    read: int = 0
    """Records (or lines, or images) looked at."""
    dropped: dict[str, Dropped] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: dict[str, int] = field(default_factory=dict)
    """Name of each file written -> number of its records."""
    notes: list[str] = field(default_factory=list)
    """What a user should know: inputs that were skipped, warnings."""
    ids: dict[str, Any] = field(default_factory=dict)
    """Tokenizer and layout of the ids in the output; empty where there are none."""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._started = self._spoke = time.monotonic()

    @property
    def num_dropped(self) -> int:
        """Records left out, for whatever reason."""
        return sum(dropped.count for dropped in self.dropped.values())

    def count_read(self) -> None:
        """Count one more record, and say from time to time how it goes."""
        self.read += 1
        if self.read % 1000 == 0 and time.monotonic() - self._spoke > PROGRESS_SECONDS:
            self._spoke = time.monotonic()
            log.info("%s: %d records read, %.0f a second, %d left out", self.func, self.read, self._rate(), self.num_dropped)

    def drop(self, refused: RefusedError, *, source: str, index: int, name: Any = None) -> None:
        """Count a record that was left out; the first few of each reason are kept as examples."""
        dropped = self.dropped.setdefault(refused.reason, Dropped())
        dropped.count += 1
        if len(dropped.examples) < NUM_EXAMPLES:
            dropped.examples.append({"file": source, "record": index, "id": _printable(name), "detail": _printable(refused.detail)})

    def note(self, text: str) -> None:
        """Say something at once and keep it for the report."""
        log.warning("%s: %s", self.func, text)
        self.notes.append(text)

    def finish(self, path: Path) -> None:
        """Save the report as JSON and print it."""
        self.seconds = round(time.monotonic() - self._started, 3)
        write_json(path, asdict(self))
        for line in self.lines():
            log.info("%s", line)
        log.info("report: %s", path)

    def lines(self) -> list[str]:
        """The report for people: a line for the whole, one for each output, one for each reason."""
        lines = [f"{self.func}: {self.read} records read, {self.num_dropped} left out, {self.seconds:.1f} s, {self._rate():.0f} records/s"]
        lines += [f"  wrote {count} to {name}" for name, count in self.outputs.items()]
        for reason, dropped in sorted(self.dropped.items(), key=lambda item: -item[1].count):
            first = dropped.examples[0]
            where = f"{first['file']}, record {first['record']}, id {first['id']}"
            lines.append(f"  left out {dropped.count}: {reason} (first: {where}: {first['detail']})")
        return lines

    def reasons(self) -> str:
        """The counts of what was left out in one phrase, for messages."""
        return ", ".join(f"{reason}: {dropped.count}" for reason, dropped in self.dropped.items()) or "no records"

    def _rate(self) -> float:
        return self.read / max(time.monotonic() - self._started, 1e-9)


def _printable(value: Any) -> Any:
    """Text that any file can hold: ids of damaged records may be anything."""
    return value if value is None or isinstance(value, int) else str(value)[:200].encode("utf-8", "replace").decode()


LAION, MIX = "blip_laion_cc_sbu_558k", "llava_v1_5_mix665k"
PUBLISHED_NAMES = {LAION: "llava_laion558k", MIX: "llava_mix665k"}
"""Stem of an annotation file of LLaVA -> the name that what is made from it carries in published files."""
Item = tuple[str, int, Any]
"""Where something comes from (a file or store), its place there, and the thing itself: a record or the key of an image."""


@dataclass(frozen=True)
class Source:
    """An annotation file or list of images."""

    path: Path
    folder: str = ""
    """Folder below the image root that the image paths in it start from; "" for the root itself."""

    def key(self, path: str) -> str:
        """Path of an image as the file has it (normalized) -> key of the image."""
        return f"{self.folder}/{path}" if self.folder else path


def find_source(root: str | Path, name: str | Path) -> Source:
    """FILE or FILE@FOLDER, the file relative to `root` or to the working folder, the folder relative to the image root.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the folder leaves the image root.
    """
    whole, (file, _, folder) = str(name), str(name).rpartition("@")
    for text, inside in ((whole, ""), (file, folder)):
        for path in (Path(root) / text, Path(text)):
            if text and path.is_file():
                return Source(path, _checked_folder(inside))
    raise FileNotFoundError(f"no file {Path(root) / (file or whole)}; name one with --anno, or the folder that it is in with --root")


def find_sources(root: str | Path, names: Sequence[str | Path]) -> list[Source]:
    """Several files by `find_source`. ValueError when there is none or one of them is named twice."""
    sources = [find_source(root, name) for name in names]
    if not sources or len({source.path.resolve() for source in sources}) < len(sources):
        raise ValueError(f"{len(sources)} files given ({', '.join(map(str, names))}); name at least one with --anno, each once")
    return sources


def read_sources(sources: Sequence[Source]) -> Iterator[Item]:
    """The records of several annotation files one after the other."""
    for source in sources:
        for index, record in enumerate(read_json_list(source.path)):
            yield str(source.path), index, record


def read_runs(path: str | Path, *, layout: Layout, tokenizer: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (RECORD-RUN, ids) of the runs in the turns of an annotation file (.json, .jsonl), both counted from 0.

    Args:
        layout: of the ids.
        tokenizer: fingerprint of the image tokenizer.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a record is no conversation, its ids are damaged, of another tokenizer or in another order.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no annotation file {path}; make one with python -m unicode.run.make_annotations")
    for number, content in enumerate(read_jsonl(path) if Path(path).suffix == ".jsonl" else read_json_list(path)):
        where = f"{path}, record {number}"
        try:
            record = read_record(content)
        except RefusedError as refused:
            raise ValueError(f"{where}: {refused}") from refused
        for name, found, mine in (("tokenizer", record.tokenizer, tokenizer), ("layout", record.layout, layout.describe())):
            if found and found != mine:
                raise ValueError(f"{where}: its ids are of the {name} {found}, not of {mine}; make the annotations again")
        for place, ids in enumerate(record.runs):
            yield f"{number:07d}-{place}", ids


def output_name(source: Source | None, kind: str) -> str:
    """Default name of what is made from an annotation file: llava_laion558k_t2v.json for LLaVA's 558K and kind "t2v".

    images_t2v.json where no annotation file is behind it.
    """
    stem = source.path.stem if source else "images"
    return f"{PUBLISHED_NAMES.get(stem, stem)}_{kind}.json"


def output_path(out: str | Path, name: str, inputs: Sequence[Source]) -> Path:
    """`out` itself when it is a .json file, else the file `name` in the folder `out`. ValueError when that is an input."""
    path = Path(out) if Path(out).suffix == ".json" else Path(out) / name
    for source in inputs:
        if path.exists() and path.samefile(source.path):
            raise ValueError(f"the output {path} would replace an input; choose another --out")
    return path


def _checked_folder(folder: str) -> str:
    try:
        return image_key(folder) if folder.strip("/.") else ""
    except RefusedError as refused:
        raise ValueError(f"'@{folder}' names no folder below the image root: {refused}") from None


VIEWS = ("first", "drawn")


class ImageIds:
    """The images of several stores as one; all of them of one tokenizer and in one order.

    Args:
        stores: at least one.
        view: which crop or flip of an image to take where a store has several: "first", or "drawn" by `seed` and key.
        seed: for `view`.

    Raises:
        ValueError: stores of two tokenizers or two orders, no store, or an unknown view.
    """

    def __init__(self, stores: Sequence[Store], *, view: str = "first", seed: int = 0) -> None:
        if not stores:
            raise ValueError("no store of ids given; make one with python -m unicode.run.encode_images and name it with --ids")
        if view not in VIEWS:
            raise ValueError(f"view is '{view}'; known: {', '.join(VIEWS)}")
        self.stores, self.view, self.seed = list(stores), view, seed
        for store in stores[1:]:
            stores[0].layout.check_same(store.layout)
        made_by = {store.spec.tokenizer: store.path for store in stores}
        if len(made_by) > 1:
            named = ", ".join(f"{path} by {fingerprint or 'an unknown one'}" for fingerprint, path in made_by.items())
            raise ValueError(f"the stores were made by different tokenizers: {named}; their ids do not mix")
        self.tokenizer = stores[0].spec.tokenizer
        self.fields = {"layout": self.layout.describe(), **({"tokenizer": self.tokenizer} if self.tokenizer else {})}
        """What a record with such ids says about them."""

    @property
    def layout(self) -> Layout:
        """Grid and order of the ids."""
        return self.stores[0].layout

    def keys(self) -> Iterator[tuple[str, str]]:
        """(path of the store, key) of every image that has ids, each key once."""
        for number, store in enumerate(self.stores):
            for key in store:
                if not any(key in earlier for earlier in self.stores[:number]):
                    yield str(store.path), key

    def get(self, key: str) -> np.ndarray:
        """Vocabulary ids of one image: int64 (N,) in id order.

        Raises:
            RefusedError: no store has the image, it could not be read, or its ids are not such as the layout and vocabulary allow.
            ValueError: two stores have an image of this key and it is not the same one.
        """
        found: np.ndarray | None = None
        for store in self.stores:
            ids = self._read(store, key)
            if ids is not None and found is not None and not np.array_equal(ids, found):
                raise ValueError(f"two stores have an image '{key}' and their ids differ; name with --ids only stores of one image root")
            found = ids if found is None else found
        if found is None:
            raise RefusedError(NO_IDS, self._why_missing(key))
        return found

    def _read(self, store: Store, key: str) -> np.ndarray | None:
        num_views = len(store.spec.views)
        if self.view == "first" or num_views == 1:
            ids = store.get(key)
        else:
            ids = store.ids(key, view=draw(num_views, self.seed, "view", key)) if key in store else None
        if ids is not None and (ids.min() < 0 or ids.max() >= store.spec.vocab_size):
            found = f"'{key}' has ids {ids.min()} to {ids.max()} in {store.path}"
            raise RefusedError(BAD_IDS, f"{found}, the vocabulary has {store.spec.vocab_size}")
        return ids

    def _why_missing(self, key: str) -> str:
        for store in self.stores:
            if key in store.skipped:
                return f"'{key}' could not be encoded: {store.skipped[key]}"
        example = self.stores[0].index[0]
        return f"'{key}' is in no store; keys there look like '{example}' (--anno FILE@FOLDER puts a folder before the paths)"


def open_image_ids(paths: Sequence[str | Path], *, view: str = "first", seed: int = 0) -> ImageIds:
    """Open stores; a folder that is no store stands for all the stores in it or in its folder `ids`, as a tokenizer's does.

    Raises:
        FileNotFoundError: a folder is neither a store nor holds one, or a shard is missing.
        ValueError: as `ImageIds`, or a damaged store.
    """
    folders: list[Path] = []
    for path in map(Path, paths):
        patterns = (MANIFEST, f"*/{MANIFEST}", f"ids/*/{MANIFEST}")
        inside = next(filter(None, (sorted(path.glob(pattern)) for pattern in patterns)), [])
        if not inside:
            make = "python -m unicode.run.encode_images or scripts/vae_eval/generate_img_token_ids.sh make one"
            raise FileNotFoundError(f"no store of ids in {path}; {make}, --ids names it or the folder of its tokenizer")
        folders += [found.parent for found in inside]
    return ImageIds([Store(folder) for folder in folders], view=view, seed=seed)


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


Made = list[tuple[int, dict[str, Any]]]
"""(group, record) of each record that was made from one thing."""
Convert = Callable[[Any, str], Made]
"""(thing, where it comes from) -> what is made of it; raises RefusedError to leave it out."""

DRY_RUN_RECORDS = 100


def build(
    report: Report,
    items: Iterable[Item],
    convert: Convert,
    outputs: Mapping[Path, Collection[int]],
    *,
    images: ImageIds | None = None,
    dry_run: bool = False,
) -> Report:
    """Convert all items and write each file of `outputs` with the records of its groups; the first is the main one.

    The report lies beside the main file. With `dry_run` the first items are converted and nothing is written.

    Raises:
        ValueError: not one record was left for the main file; the message says why.
        OSError: the disk is full; older files of those names stay as they were.
    """
    main = next(iter(outputs))
    if images is not None:
        stores = [str(store.path) for store in images.stores]
        report.ids = {"layout": images.layout.to_dict(), "tokenizer": images.tokenizer, "stores": stores}
    if dry_run:
        made = sum(len(_convert(report, convert, item)) for item in islice(items, DRY_RUN_RECORDS))
        _check_made(report, made)
        report.note(f"dry run: the first {report.read} records were read, {made} made of them; {', '.join(map(str, outputs))} not written")
        return report
    with open_spool(main.parent, seed=report.seed) as spool:
        for item in items:
            for copy, (group, record) in enumerate(_convert(report, convert, item)):
                _keep(report, spool, item, record, group=group, copy=copy)
        _check_made(report, len(spool))
        report.outputs = {str(path): count for path, count in spool.write(outputs).items()}
    report.finish(main.with_name(f"{main.stem}.report.json"))
    return report


def _convert(report: Report, convert: Convert, item: Item) -> Made:
    source, index, thing = item
    report.count_read()
    try:
        return convert(thing, source)
    except RefusedError as refused:
        report.drop(refused, source=source, index=index, name=thing.get("id") if isinstance(thing, dict) else thing)
        return []


def _keep(report: Report, spool: LineSpool, item: Item, record: dict[str, Any], *, group: int, copy: int) -> None:
    source, index, _ = item
    try:
        spool.add(record, group=group, copy=copy)
    except UnicodeEncodeError as error:
        report.drop(RefusedError(NOT_TEXT, f"half a surrogate pair: {error.reason}"), source=source, index=index, name=record.get("id"))


def _check_made(report: Report, made: int) -> None:
    if not made:
        examples = "; ".join(str(dropped.examples[0]["detail"]) for dropped in report.dropped.values())
        raise ValueError(f"{report.func}: of {report.read} records none is left to write ({report.reasons()}). {examples}".rstrip())
