"""Shared by the annotation functions: input files, stores of ids, and the pipeline read -> convert -> shuffle -> write -> report.

These arguments mean the same in every function:

    root       folder of the input files
    images     the ids of the images, an `ImageIds`
    out        folder of the output, or the path of the main .json file
    seed       fixes every draw and the order of the output
    anno       annotation file relative to `root`; FILE@FOLDER where its image paths start from a folder of the image root
    val_share  share of the val files; the same pictures as those of a tokenizer's data.holdout of this size
    questions  questions per picture, at most
    dry_run    read the first records, check everything and write nothing

Every function returns its `Report`. It raises FileNotFoundError for a missing input, and ValueError for a damaged input, for a bad
argument, and where no record is left to write.
"""

import math
import os
import tempfile
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from unicode.annotations.records import BAD_IDS, NO_IDS, NOT_TEXT, RefusedError, image_key, read_record
from unicode.annotations.templates import draw
from unicode.common.files import name_errors, read_jsonl, write_json
from unicode.common.json_lists import dump_line, open_json_list, read_json_list
from unicode.common.logging import get_logger
from unicode.ids.layout import Layout
from unicode.ids.store import MANIFEST, Store

log = get_logger(__name__)
NUM_EXAMPLES = 5
DRY_RUN_RECORDS = 100
VIEWS = ("first", "drawn")
LAION, MIX = "blip_laion_cc_sbu_558k", "llava_v1_5_mix665k"
PUBLISHED_NAMES = {LAION: "llava_laion558k", MIX: "llava_mix665k"}
"""Stem of an annotation file of LLaVA -> the name of its outputs in published files."""
Item = tuple[str, int, Any]  # (file or store, place in it, the record or key of an image)
Made = list[tuple[int, dict[str, Any]]]  # (group, record) of each record that was made from one item
Convert = Callable[[Any, str], Made]  # (record or key, file or store) -> what is made of it; raises RefusedError to leave it out


@dataclass
class Dropped:
    """Records that were left out for one reason."""

    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)  # The first few: file, record (its place in the file, from 0), id, detail


@dataclass
class Report:
    """What one run of an annotation function did."""

    func: str
    seed: int
    read: int = 0  # Records (or lines, or images) read
    dropped: dict[str, Dropped] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: dict[str, int] = field(default_factory=dict)  # Name of each file written -> number of its records
    notes: list[str] = field(default_factory=list)  # Warnings and inputs that were skipped
    ids: dict[str, Any] = field(default_factory=dict)  # Tokenizer and layout of the ids in the output; empty where there are none
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._started = time.monotonic()

    def drop(self, refused: RefusedError, item: Item) -> None:
        """Count an item that was left out; the first few of each reason are kept as examples."""
        source, index, thing = item
        dropped = self.dropped.setdefault(refused.reason, Dropped())
        dropped.count += 1
        if len(dropped.examples) < NUM_EXAMPLES:
            name = thing.get("id") if isinstance(thing, dict) else thing
            dropped.examples.append({"file": source, "record": index, "id": _printable(name), "detail": _printable(refused.detail)})

    def note(self, text: str) -> None:
        """Print a warning at once and keep it for the report."""
        log.warning("%s: %s", self.func, text)
        self.notes.append(text)

    def finish(self, path: Path) -> None:
        """Save the report as JSON and print it: a line for the whole, one for each output, one for each reason."""
        self.seconds = round(time.monotonic() - self._started, 3)
        write_json(path, asdict(self))
        left_out, rate = sum(dropped.count for dropped in self.dropped.values()), self.read / max(self.seconds, 1e-3)
        log.info("%s: %d records read, %d left out, %.1f s, %.0f records/s", self.func, self.read, left_out, self.seconds, rate)
        for name, count in self.outputs.items():
            log.info("  wrote %d to %s", count, name)
        for reason, dropped in sorted(self.dropped.items(), key=lambda item: -item[1].count):
            first = "{file}, record {record}, id {id}: {detail}".format_map(dropped.examples[0])
            log.info("  left out %d: %s (first: %s)", dropped.count, reason, first)
        log.info("report: %s", path)

    def reasons(self) -> str:
        """The counts of what was left out in one phrase, for messages."""
        return ", ".join(f"{reason}: {dropped.count}" for reason, dropped in self.dropped.items()) or "no records"


def _printable(value: Any) -> Any:
    """Text that any file can hold: ids of damaged records may be anything."""
    return value if value is None or isinstance(value, int) else str(value)[:200].encode("utf-8", "replace").decode()


@dataclass(frozen=True)
class Source:
    """An annotation file or list of images."""

    path: Path
    folder: str = ""  # Folder below the image root that the image paths in it start from; "" for the root itself

    def key(self, path: str) -> str:
        """Path of an image as the file has it (normalized) -> key of the image."""
        return f"{self.folder}/{path}" if self.folder else path

    @property
    def name(self) -> str:
        """Stem of what is made from the file: llava_laion558k for LLaVA's 558K."""
        return PUBLISHED_NAMES.get(self.path.stem, self.path.stem)


def find_source(root: str | Path, name: str | Path) -> Source:
    """FILE or FILE@FOLDER, the file relative to `root` or to the working folder. ValueError for a folder outside of the image root."""
    whole, (file, _, folder) = str(name), str(name).rpartition("@")
    for text, inside in ((whole, ""), (file, folder.strip("/."))):
        found = next((path for path in (Path(root) / text, Path(text)) if text and path.is_file()), None)
        if found is not None:
            try:
                return Source(found, image_key(folder) if inside else "")
            except RefusedError as refused:
                raise ValueError(f"'@{folder}' names no folder below the image root: {refused}") from None
    raise FileNotFoundError(f"no file {Path(root) / (file or whole)}; name one with --anno, or the folder that it is in with --root")


def find_sources(root: str | Path, names: Sequence[str | Path]) -> list[Source]:
    """Several files by `find_source`. ValueError when there is none or one of them is named twice."""
    sources = [find_source(root, name) for name in names]
    if not sources or len({source.path.resolve() for source in sources}) < len(sources):
        raise ValueError(f"{len(sources)} files given ({', '.join(map(str, names))}); name at least one with --anno, each once")
    return sources


def find_first(groups: Iterable[Sequence[Path]], report: Report, *, remedy: str = "name files with --anno") -> list[Path]:
    """The first file of each group that exists; groups without one are noted. FileNotFoundError with the remedy where no group has one."""
    found = {" or ".join(map(str, group)): next(filter(Path.is_file, group), None) for group in groups}
    missing = [names for names, path in found.items() if path is None]
    if len(missing) == len(found):
        raise FileNotFoundError(f"not there: {', '.join(missing)}; {remedy}")
    if missing:
        report.note(f"not there and left out: {', '.join(missing)}")
    return [path for path in found.values() if path]


def split_weight(name: str | Path) -> tuple[str, float]:
    """FILE or FILE*WEIGHT -> file and weight (1 without). ValueError for a weight that is no number from 0 up."""
    file, star, weight = str(name).rpartition("*")
    if not star:
        return str(name), 1.0
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e6:
        raise ValueError(f"'{name}': '{weight}' is no weight; write FILE*WEIGHT with a number from 0 up, as {file}*0.5")
    return file, value


def check_share(val_share: float) -> None:
    """ValueError for a share of the val files below 0, or from 1 up."""
    if not 0 <= val_share < 1:
        raise ValueError(f"val_share is {val_share}; it must be 0 or more and below 1")


def read_runs(path: str | Path, *, layout: Layout, tokenizer: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (RECORD-RUN, ids) of the runs in the turns of an annotation file (.json, .jsonl), both counted from 0.

    Raises FileNotFoundError: no such file. Raises ValueError: a record is no conversation, its ids are damaged, of another tokenizer (a
    fingerprint) or in another order.
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


def output_path(out: str | Path, name: str, sources: Sequence[Source]) -> Path:
    """`out` itself when it is a .json file, else the file `name` in the folder `out`. ValueError when that is an input."""
    path = Path(out) if Path(out).suffix == ".json" else Path(out) / name
    for source in sources:
        if path.exists() and path.samefile(source.path):
            raise ValueError(f"the output {path} would replace an input; choose another --out")
    return path


class ImageIds:
    """The images of several stores as one, all of them of one `tokenizer` (fingerprint) and `layout`; `fields` names both in a record.

    `view`: which crop or flip of an image to take where a store has several: "first", or "drawn" by `seed` and key. Raises ValueError:
    stores of two tokenizers or two orders, no store, or an unknown view.
    """

    def __init__(self, stores: Sequence[Store], *, view: str = "first", seed: int = 0) -> None:
        if not stores:
            raise ValueError("no store of ids given; make one with python -m unicode.run.encode_images and name it with --ids")
        if view not in VIEWS:
            raise ValueError(f"view is '{view}'; known: {', '.join(VIEWS)}")
        self.stores, self.view, self.seed = list(stores), view, seed
        self.layout, self.tokenizer = stores[0].layout, stores[0].spec.tokenizer
        for store in stores[1:]:
            self.layout.check_same(store.layout)
        made_by = {store.spec.tokenizer: store.path for store in stores}
        if len(made_by) > 1:
            named = ", ".join(f"{path} by {fingerprint or 'an unknown one'}" for fingerprint, path in made_by.items())
            raise ValueError(f"the stores were made by different tokenizers: {named}; their ids do not mix")
        self.fields = {"layout": self.layout.describe(), **({"tokenizer": self.tokenizer} if self.tokenizer else {})}

    def keys(self) -> Iterator[tuple[str, str]]:
        """(path of the store, key) of every image that has ids, each key once."""
        for number, store in enumerate(self.stores):
            for key in store:
                if not any(key in earlier for earlier in self.stores[:number]):
                    yield str(store.path), key

    def get(self, key: str) -> np.ndarray:
        """Vocabulary ids of one image: int64 (N,) in id order.

        Raises RefusedError: no store has the image, it could not be read, or its ids are beyond the vocabulary. Raises ValueError: two
        stores have an image of this key and it is not the same one.
        """
        found: np.ndarray | None = None
        for store in self.stores:
            drawn = self.view == "drawn" and len(store.spec.views) > 1
            ids = store.get(key, view=draw(len(store.spec.views), self.seed, "view", key) if drawn else 0)
            if ids is None:
                continue
            low, high, size = ids.min(), ids.max(), store.spec.vocab_size
            if low < 0 or high >= size:
                raise RefusedError(BAD_IDS, f"'{key}' has ids {low} to {high} in {store.path}, the vocabulary has {size}")
            if found is not None and not np.array_equal(ids, found):
                raise ValueError(f"two stores have an image '{key}' and their ids differ; name with --ids only stores of one image root")
            found = ids
        if found is not None:
            return found
        for store in self.stores:
            if key in store.skipped:
                raise RefusedError(NO_IDS, f"'{key}' could not be encoded: {store.skipped[key]}")
        example = f"keys there look like '{self.stores[0].index[0]}' (--anno FILE@FOLDER puts a folder before the paths)"
        raise RefusedError(NO_IDS, f"'{key}' is in no store; {example}")


def open_image_ids(paths: Sequence[str | Path], *, view: str = "first", seed: int = 0) -> ImageIds:
    """Open stores; a folder that is no store stands for all the stores in it or in its folder `ids`, as a tokenizer's does.

    FileNotFoundError where a folder is neither a store nor holds one, ValueError as `Store` and `ImageIds`.
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


class LineSpool:
    """Records in a temporary file, between the order of the input and the shuffled order of the output. Made by `open_spool`."""

    def __init__(self, file: IO[bytes], seed: int, folder: Path) -> None:
        self.file, self.folder, self.key = file, folder, str(seed).encode()[:64]
        self.offsets, self.hashes, self.groups = array("Q", [0]), array("Q"), bytearray()

    def __len__(self) -> int:
        return len(self.hashes)

    def add(self, record: dict[str, Any], *, group: int = 0, copy: int = 0) -> None:
        """Keep a record for the files that take `group`; `copy` tells equal lines apart, so that they do not end side by side.

        Raises RefusedError: the record holds text that UTF-8 cannot hold. Raises OSError: the disk is full.
        """
        try:
            line = dump_line(record).encode()
        except UnicodeEncodeError as error:
            raise RefusedError(NOT_TEXT, f"half a surrogate pair: {error.reason}") from error
        digest = blake2b(line, digest_size=8, key=self.key, salt=copy.to_bytes(8, "big")).digest()
        self.offsets.append(self.offsets[-1] + len(line))
        self.hashes.append(int.from_bytes(digest, "big"))
        self.groups.append(group)
        rest = memoryview(line)
        with name_errors(self.folder):
            while rest:
                rest = rest[self.file.write(rest) :]

    def write(self, outputs: Mapping[Path, Collection[int]]) -> dict[Path, int]:
        """Write each file of `outputs` with the records of its groups, shuffled; all of them or none. Returns their sizes."""
        order = np.argsort(np.frombuffer(self.hashes, dtype=np.uint64), kind="stable") if self.hashes else ()
        with ExitStack() as stack:
            writers = {path: stack.enter_context(open_json_list(path)) for path in outputs}
            takers = [[writers[path] for path, groups in outputs.items() if group in groups] for group in range(256)]
            for index in map(int, order):
                start, end = self.offsets[index], self.offsets[index + 1]
                line = os.pread(self.file.fileno(), end - start, start).decode()
                for writer in takers[self.groups[index]]:
                    writer.write_line(line)
            for writer in writers.values():
                writer.finish()
        return {path: writer.count for path, writer in writers.items()}


@contextmanager
def open_spool(folder: Path, *, seed: int) -> Iterator[LineSpool]:
    """A spool whose temporary file lies in `folder`, which needs as much room for the output."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:  # a buffer could fail a second time when it is closed
        yield LineSpool(file, seed, folder)


def build(
    report: Report,
    items: Iterator[Item] | list[Source],
    convert: Convert,
    outputs: Path | Mapping[Path, Collection[int]],
    *,
    images: ImageIds | None = None,
    dry_run: bool = False,
) -> Report:
    """Convert all items, or the records of annotation files, and write each file of `outputs` with the records of its groups.

    A single output takes group 0. The report is beside the first file, the main one. With `dry_run` the first items are converted and
    nothing is written. Raises ValueError: no record was left for the main file; the message has the reasons. Raises OSError: the disk is
    full; older files of those names stay as they were.
    """
    outputs = {outputs: (0,)} if isinstance(outputs, Path) else outputs
    main = next(iter(outputs))
    if isinstance(items, list):
        report.inputs = report.inputs or [str(source.path) for source in items]
        items = ((str(source.path), *numbered) for source in items for numbered in enumerate(read_json_list(source.path)))
    if images is not None:
        stores = [str(store.path) for store in images.stores]
        report.ids = {"layout": images.layout.to_dict(), "tokenizer": images.tokenizer, "stores": stores}
    made = 0
    with nullcontext() if dry_run else open_spool(main.parent, seed=report.seed) as spool:
        some = islice(items, DRY_RUN_RECORDS if dry_run else None)
        for source, index, thing in tqdm(some, desc=report.func, unit=" records", mininterval=5, delay=5):
            report.read += 1
            try:
                for copy, (group, record) in enumerate(convert(thing, source)):
                    if spool is not None:
                        spool.add(record, group=group, copy=copy)
                    made += 1
            except RefusedError as refused:
                report.drop(refused, (source, index, thing))
        if not made:
            examples = "; ".join(str(dropped.examples[0]["detail"]) for dropped in report.dropped.values())
            raise ValueError(f"{report.func}: of {report.read} records none is left to write ({report.reasons()}). {examples}".rstrip())
        if spool is not None:
            report.outputs = {str(path): count for path, count in spool.write(outputs).items()}
    if dry_run:
        report.note(f"dry run: the first {report.read} records were read, {made} made of them; {', '.join(map(str, outputs))} not written")
    else:
        report.finish(main.with_name(f"{main.stem}.report.json"))
    return report
