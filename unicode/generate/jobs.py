"""Resumable output files of several ranks: answers and drawn images, a JSON line each."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from PIL import Image

from unicode.common.distributed import barrier, is_main, rank, world_size
from unicode.common.files import atomic_write, name_errors, open_append, read_json, write_json, write_jsonl
from unicode.common.logging import get_logger
from unicode.ids.store import check_key
from unicode.images.decode import open_image
from unicode.tokenizer.decode import picture_path

log = get_logger(__name__)

Record = dict[str, Any]
Key = tuple[str, str, str]
"""What tells one question from another: question_id, round_id and prompt. Ids alone do not: MME asks twice about each picture by one."""
ERROR, RUN = "error", "run"  # keys of the metadata of an answer


@dataclass(frozen=True)
class Summary:
    """What a file of answers holds in the end."""

    num_questions: int
    num_answered: int
    errors: dict[Key, str]
    """Questions that could not be answered -> why. Their lines have an empty text; the same command asks them again."""
    damaged: int
    """Lines that were no answers, as a killed process leaves them; their questions were asked again."""


def key_of(record: Mapping[str, Any]) -> Key:
    """The key of an answer's line, or of what its line will have."""
    return str(record["question_id"]), str(record.get("round_id") or 0), str(record.get("prompt", ""))


def digest_run(made_by: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of what answers depend on besides the question: fingerprints and settings, plain values."""
    return hashlib.sha256(json.dumps(made_by, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


class AnswerFile:
    """Answers to a list of questions, filled by all ranks of a job and resumed question by question.

    Every rank opens it with the same arguments, answers `share()`, and calls `finish()`: opening and finishing wait for all ranks.

    Args:
        path: the file of answers.
        keys: of the questions, in the order that the answers are to have; all different.
        made_by: what the answers depend on besides the questions: model, fingerprints, settings, as plain values.
        model_id: name of the model for the lines.

    Raises:
        ValueError: what is there answers other questions, or was made by another model or with other settings.
    """

    def __init__(self, path: str | Path, keys: Sequence[Key], *, made_by: Mapping[str, Any], model_id: str = "") -> None:
        self.path, self.made_by, self.model_id = Path(path), dict(made_by), model_id
        self.run = digest_run(made_by)
        self.parts = self.path.with_name(f"{self.path.name}.parts")
        self._description = self.path.with_name(f"{self.path.name}.run.json")
        self._keys = dict.fromkeys(keys)
        assert len(self._keys) == len(keys), "two questions have one key; check_unique says which"
        self._part: IO[str] | None = None
        self.damaged = 0
        done = {key for key, record in self._read().items() if ERROR not in record["metadata"]}
        self.missing = [place for place, key in enumerate(self._keys) if key not in done]
        """Places, in the order of the questions, of those that are still to be asked."""
        barrier()  # nobody writes before everybody has looked, so that all deal the same questions

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def share(self) -> list[int]:
        """The part of `missing` that this rank answers."""
        return self.missing[rank() :: world_size()]

    def put(self, question_id: Any, prompt: str, text: str, *, metadata: Mapping[str, Any] | None = None, **fields: Any) -> None:
        """Append one answer to this rank's part as LLaVA writes it; it outlives this process when this returns.

        Args:
            metadata: plain values; "error" marks a question that could not be answered.
            fields: further keys of the line, as round_id, options, option_char.

        Raises:
            OSError: the disk is full; the message names the part.
        """
        head = {"question_id": question_id, "prompt": prompt, "text": text}
        key = key_of({**head, **fields})
        assert key in self._keys, key
        answer_id = hashlib.sha256(json.dumps([self.run, *key]).encode()).hexdigest()[:22]
        record = {**head, "answer_id": answer_id, "model_id": self.model_id, **fields, "metadata": {RUN: self.run, **(metadata or {})}}
        path = self.parts / f"{rank():05d}.jsonl"
        with name_errors(path):
            if self._part is None:
                self._part = open_append(path)
                write_json(self._description, self.made_by)
            self._part.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._part.flush()

    def close(self) -> None:
        """Close this rank's part."""
        if self._part is not None:
            self._part.close()
            self._part = None

    def finish(self) -> Summary:
        """Put the parts together in the order of the questions; called by every rank when it has answered its share."""
        self.close()
        barrier()
        damaged, records = self.damaged, self._read()
        if is_main() and (self.missing or self.parts.is_dir()):
            write_jsonl(self.path, (records[key] for key in self._keys if key in records))
        barrier()  # everybody has read the parts
        if is_main():
            shutil.rmtree(self.parts, ignore_errors=True)
        errors = {key: record["metadata"][ERROR] for key, record in records.items() if ERROR in record["metadata"]}
        return Summary(len(self._keys), len(records) - len(errors), errors, damaged)

    def records(self) -> dict[Key, Record]:
        """Key -> line of the answers there are, in the order of the questions."""
        found = self._read()
        return {key: found[key] for key in self._keys if key in found}

    def _read(self) -> dict[Key, Record]:
        """Key -> line of everything there: the file first, then its parts; an answer is never replaced by an error."""
        found: dict[Key, Record] = {}
        self.damaged = 0
        for file in [self.path, *sorted(self.parts.glob("*.jsonl"))]:
            for record in self._lines(file):
                key = key_of(record)
                self._check(file, key, record)
                if not (ERROR in record["metadata"] and key in found):
                    found[key] = record
        return found

    def _lines(self, file: Path) -> Iterator[Record]:
        """The whole lines of a file; those that are no answers are counted in `damaged`."""
        if not file.is_file():
            return
        with open(file, encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                    complete = isinstance(record, dict) and {"question_id", "text"} <= record.keys()
                except ValueError:
                    complete = False
                if complete:
                    yield record
                elif line.strip():
                    self.damaged += 1
                    log.info("%s, line %d is cut off or damaged; its question is asked again", file, number)

    def _check(self, file: Path, key: Key, record: Record) -> None:
        remedy = "give another file for the answers, or delete this one and what begins with its name"
        metadata = record.get("metadata")
        made_by = metadata.get(RUN, "") if isinstance(metadata, dict) else ""
        if made_by != self.run:
            raise ValueError(f"{file} holds answers of {self._difference(made_by)}; {remedy}")
        if key not in self._keys:
            raise ValueError(f"{file} answers question '{key[0]}' ({key[2]!r:.80}), which is not among those asked now; {remedy}")

    def _difference(self, made_by: str) -> str:
        """What is different about the run `made_by`, as far as is known."""
        before = read_json(self._description) if self._description.is_file() else {}
        if not made_by or digest_run(before) != made_by:
            return "another program" if not made_by else f"another run ({made_by}, not {self.run})"
        names = [name for name in {**before, **self.made_by} if before.get(name) != self.made_by.get(name)]
        return "other settings: " + ", ".join(f"{name} {before.get(name)!r}, now {self.made_by.get(name)!r}" for name in names)


@dataclass(frozen=True)
class AskedQuestion:
    """A line of a question file."""

    id: Any
    text: str
    images: tuple[str, ...]
    """Paths below the image folder, or keys of a store."""
    fields: Record
    """All other keys of the line, as category."""

    @property
    def key(self) -> Key:
        """See `key_of`."""
        return key_of({"question_id": self.id, "round_id": self.fields.get("round_id"), "prompt": self.text})


def read_questions(path: str | Path) -> list[AskedQuestion]:
    """Read a question file: JSON lines as above, or LLaVA's JSON list of {"id", "image"?, "conversations"} (the first turn is asked).

    Lines that are damaged or no questions are left out with a warning that names them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no question in it, or two with the same id.
    """
    questions = [question for line in _question_lines(Path(path)) if (question := _parse_question(*line, path)) is not None]
    if not questions:
        raise ValueError(f'{path} holds no question; expected lines as {{"question_id": 1, "image": "a.jpg", "text": "What is this?"}}')
    check_unique((question.key for question in questions), path)
    return questions


def check_unique(keys: Iterable[Key], path: str | Path) -> None:
    """ValueError that names `path` and the first key that stands there twice."""
    seen: set[Key] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"{path} asks question '{key[0]}' ({key[2]!r:.80}) twice; answers are found by id and text")
        seen.add(key)


def _question_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of each line, or of each element of a list; None for what is no JSON."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json" and text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


def _parse_question(number: int, record: Any, path: str | Path) -> AskedQuestion | None:
    """One line; None with a warning where it is no question."""
    record = dict(record) if isinstance(record, dict) else {}
    name, text = record.pop("question_id", record.pop("id", None)), record.pop("text", None)
    turns = record.pop("conversations", None)
    if text is None and isinstance(turns, list) and turns and isinstance(turns[0], dict):
        text = turns[0].get("value")
    images = record.pop("image", None) or []
    images = [images] if isinstance(images, str) else images
    if name is None or not isinstance(text, str) or not isinstance(images, Sequence) or not all(isinstance(i, str) for i in images):
        log.warning("%s, record %d is damaged or no question (question_id and text are needed); it is left out", path, number)
        return None
    return AskedQuestion(name, text.strip(), tuple(images), record)


log = get_logger(__name__)
RESULTS, PICTURES, SETTINGS, PARTS = "results.jsonl", "pictures", "settings.json", "results.parts"


@dataclass(frozen=True)
class Place:
    """One picture to be drawn: which prompt, which sample of it."""

    id: str
    sample: int
    name: str
    """Of the file, without folder and ending."""


def places_of(ids: Sequence[str], *, samples: int) -> list[Place]:
    """The pictures of some prompts, the samples of a prompt side by side.

    Raises:
        ValueError: an id that cannot be the name of a file, or two pictures of one name.
    """
    places = [Place(name, sample, f"{name}_{sample}" if samples > 1 else name) for name in ids for sample in range(samples)]
    seen: set[str] = set()
    for place in places:
        check_key(place.name)
        file = place.name.removesuffix(".png")
        if file in seen:
            raise ValueError(f"two pictures would be called {file}.png; give the prompts other ids")
        seen.add(file)
    return places


class DrawingFile:
    """The pictures of one run of `generate_images`.

    Args:
        out: the folder.
        places: all pictures, in their order.
        made_by: what they depend on, as plain values.

    Raises:
        ValueError: `out` holds pictures of other settings.
    """

    def __init__(self, out: str | Path, places: Sequence[Place], *, made_by: Mapping[str, Any]) -> None:
        self.out, self.places = Path(out), list(places)
        self._parts = self.out / PARTS
        self._part: IO[str] | None = None
        before = read_json(self.out / SETTINGS) if (self.out / SETTINGS).is_file() else {}
        plain = json.loads(json.dumps(dict(made_by)))
        names = [name for name in {**before, **plain} if before and before.get(name) != plain.get(name)]
        if names:
            changed = ", ".join(f"{name} {before.get(name)!r}, now {plain.get(name)!r}" for name in names)
            raise ValueError(f"{out} holds pictures of other settings: {changed}; give another --out, or delete this folder")
        if not before and (self.out / RESULTS).exists():
            raise ValueError(f"{out} holds a {RESULTS} without {SETTINGS}; give another --out, or delete this folder")
        self.records = self._read()
        barrier()  # nobody writes before everybody has looked, so that all see the same gaps
        if is_main() and not before:
            write_json(self.out / SETTINGS, plain)

    def batches(self, size: int) -> Iterator[list[int]]:
        """The batches of places in which something is missing that are this rank's."""
        starts = range(0, len(self.places), size)
        every = [list(range(start, min(start + size, len(self.places)))) for start in starts]
        missing = [batch for batch in every if not all(self.is_done(place) for place in batch)]
        yield from missing[rank() :: world_size()]

    def is_done(self, place: int) -> bool:
        """Whether a picture and its line are there."""
        record = self.records.get((self.places[place].id, self.places[place].sample))
        return record is not None and "error" not in record and (self.out / record["file"]).is_file()

    def save_picture(self, place: int, pixels: np.ndarray, *, folder: str = PICTURES) -> str:
        """Write a picture (H, W, 3) uint8 and return its name relative to the folder of the run."""
        path = picture_path(self.out / folder, self.places[place].name)
        with atomic_write(path, "wb") as file:
            Image.fromarray(pixels).save(file, "PNG")
        return path.relative_to(self.out).as_posix()

    def put(self, place: int, record: Mapping[str, Any]) -> None:
        """Append the line of a picture to this rank's part; it outlives this process when this returns."""
        named = {"id": self.places[place].id, **({"sample": self.places[place].sample} if self._sampled else {}), **record}
        path = self._parts / f"{rank():05d}.jsonl"
        with name_errors(path):
            if self._part is None:
                self._part = open_append(path)
            self._part.write(json.dumps(named, ensure_ascii=False) + "\n")
            self._part.flush()

    def finish(self) -> list[Record]:
        """Put the parts together in the order of the places; called by every rank. Returns all lines."""
        if self._part is not None:
            self._part.close()
            self._part = None
        barrier()
        self.records = self._read()
        keys = [(place.id, place.sample) for place in self.places]
        lines = [self.records[key] for key in keys if key in self.records]
        barrier()  # everybody has read the parts
        if is_main():
            write_jsonl(self.out / RESULTS, lines)
            shutil.rmtree(self._parts, ignore_errors=True)
        return lines

    @property
    def _sampled(self) -> bool:
        return any(place.sample for place in self.places)

    def _read(self) -> dict[tuple[str, int], Record]:
        """All whole lines there are by id and sample, the newest of each."""
        found: dict[tuple[str, int], Record] = {}
        for path in [self.out / RESULTS, *sorted(self._parts.glob("*.jsonl"))]:
            if not path.is_file():
                continue
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # half a line of a killed process: its batch is drawn again
                key = (record.get("id"), record.get("sample", 0))
                if "error" not in record or key not in found:
                    found[key] = record
        return found


def write_contact_sheet(files: Sequence[Path], path: Path, *, limit: int = 64, group: int = 1) -> None:
    """Write the first `limit` pictures side by side as one PNG, in rows of about the root of their number; groups stay in one row."""
    pictures = [open_image(file).convert("RGB") for file in files[:limit]]
    if not pictures:
        return
    width, height = pictures[0].size
    columns = group * max(1, round(len(pictures) ** 0.5 / group))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + 2) + 2, rows * (height + 2) + 2))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet.paste(picture.resize((width, height)), (2 + column * (width + 2), 2 + row * (height + 2)))
    with atomic_write(path, "wb") as file:
        sheet.save(file, "PNG")
