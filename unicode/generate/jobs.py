"""Resumable result files: lines of JSON under keys, written by all ranks of a job, for answers and for drawn images."""

import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unicode.common.distributed import barrier, is_main, on_main, rank, world_size
from unicode.common.files import lock_folder, name_errors, open_append, read_damaged_jsonl, read_json, write_json, write_jsonl
from unicode.common.logging import get_logger
from unicode.ids.store import check_key
from unicode.images.decode import open_image
from unicode.tokenizer.decode import picture_path, write_picture

log = get_logger(__name__)

Record = dict[str, Any]
Key = tuple[str, str, str]
"""(question_id, round_id, prompt) of an answer, because MME asks twice about each picture by one id; (id, sample, "") of a drawing."""
ERROR, RUN = "error", "run"  # keys of the metadata of an answer
NUM_ON_WALL, WALL_COLUMNS, WALL_SIDE = 24, 6, 160  # pictures above their captions
RESULTS, PICTURES, SETTINGS, PARTS = "results.jsonl", "pictures", "settings.json", "results.parts"  # in a folder of drawings


@dataclass(frozen=True)
class Summary:
    """What a result file holds in the end."""

    total: int  # Keys
    done: int  # Keys with a result
    errors: dict[Key, str]  # Keys without one -> why. The same command tries them again
    damaged: int  # Lines that could not be read, as a killed process leaves them; their keys were tried again


def key_of(record: Mapping[str, Any]) -> Key:
    """Return the key of a line, or of what its line will have."""
    if "question_id" in record:
        return str(record["question_id"]), str(record.get("round_id") or 0), str(record.get("prompt", ""))
    return str(record["id"]), str(record.get("sample", 0)), ""


def error_of(record: Mapping[str, Any]) -> str:
    """Return why a line has no result, or ""."""
    metadata = record.get("metadata")
    return str(record.get(ERROR) or (metadata.get(ERROR) if isinstance(metadata, dict) else "") or "")


def digest_run(made_by: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of what results depend on besides their keys: fingerprints and settings, plain values."""
    return hashlib.sha256(json.dumps(made_by, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


class ResultFile(AbstractContextManager["ResultFile"]):
    """Results under a list of keys, filled by all ranks of a job and resumed key by key.

    Every rank opens it with the same arguments, puts results of its share, and calls `finish()`: opening and finishing wait for all
    ranks. While it is open no other process can open it. `missing` lists the places of the keys that have no result yet.

    `keys`: in the order that the results are to have; all different. `made_by`: what the results depend on besides the keys, such as
    fingerprints and settings, as plain values. `drawings`: whether the lines belong to pictures in the folder of `path`; they are described
    by SETTINGS in that folder, lines of answers instead carry the digest of `made_by`. Raises ValueError: the file holds results of other
    settings or other keys, or another process fills it.
    """

    def __init__(self, path: str | Path, keys: Sequence[Key], *, made_by: Mapping[str, Any], drawings: bool = False) -> None:
        self.path, self.made_by, self.drawings = Path(path), json.loads(json.dumps(dict(made_by))), drawings
        self.run = digest_run(made_by)
        self.parts = self.path.with_name(PARTS if drawings else f"{self.path.name}.parts")
        self._settings = self.path.with_name(SETTINGS if drawings else f"{self.path.name}.run.json")
        self._keys = dict.fromkeys(keys)
        assert len(self._keys) == len(keys), "two results have one key"
        self._part: IO[str] | None = None
        self._lock = ExitStack()
        on_main(lambda: self._lock.enter_context(lock_folder(self.parts, "drawing" if drawings else "answering")))
        try:
            self._before = read_json(self._settings) if self._settings.is_file() else {}
            if drawings and self._before and self._before != self.made_by:
                raise ValueError(f"{self.path.parent} holds pictures of {self._difference()}; {self._remedy}")
            if drawings and not self._before and self.path.exists():
                raise ValueError(f"{self.path.parent} holds a {RESULTS} without {SETTINGS}; {self._remedy}")
            self._records, self.damaged = self._read()
        except BaseException:
            self._lock.close()
            raise
        self.missing = [place for place, key in enumerate(self._keys) if not self.has(key)]
        barrier()  # all ranks list the missing results before one writes
        if is_main() and self.missing:
            write_json(self._settings, self.made_by)

    def __exit__(self, *_: object) -> None:
        self.close()

    def share(self) -> list[int]:
        """Return the part of `missing` that is this rank's."""
        return self.missing[rank() :: world_size()]

    def has(self, key: Key) -> bool:
        """Whether there was a result under a key, with its picture if it has one, when the file was opened."""
        record = self._records.get(key)
        return record is not None and not error_of(record) and ("file" not in record or (self.path.parent / record["file"]).is_file())

    def put(self, record: Mapping[str, Any]) -> None:
        """Append a line to this rank's part; it is kept even if the process is killed after this returns.

        Raises OSError: the disk is full; the message names the part.
        """
        assert key_of(record) in self._keys, key_of(record)
        path = self.parts / f"{rank():05d}.jsonl"
        with name_errors(path):
            if self._part is None:
                self._part = open_append(path)
            self._part.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._part.flush()

    def close(self) -> None:
        """Close this rank's part and let other processes open the file."""
        if self._part is not None:
            self._part.close()
        self._lock.close()
        with suppress(OSError):  # not empty: the next start reads the parts
            self.parts.rmdir()

    def finish(self) -> Summary:
        """Merge the parts in the order of the keys and close the file; called by every rank when its share is done."""
        if self._part is not None:
            self._part.close()
        barrier()
        self._records, _ = self._read()
        parts = list(self.parts.glob("*.jsonl"))
        if is_main() and (self.missing or parts):
            write_jsonl(self.path, self.records().values())
        barrier()  # all ranks have read the parts
        if is_main():
            for part in parts:
                part.unlink()
        self.close()
        errors = {key: error_of(record) for key, record in self._records.items() if error_of(record)}
        return Summary(len(self._keys), len(self._records) - len(errors), errors, self.damaged)

    def records(self) -> dict[Key, Record]:
        """Return key -> line of the results there are, in the order of the keys."""
        return {key: self._records[key] for key in self._keys if key in self._records}

    def _read(self) -> tuple[dict[Key, Record], int]:
        """Return key -> line, and the number of damaged lines. Later lines count, but no error replaces a result."""
        found: dict[Key, Record] = {}
        damaged = 0
        for file in [self.path, *sorted(self.parts.glob("*.jsonl"))]:
            for number, record in read_damaged_jsonl(file):
                if not isinstance(record, dict) or not ({"question_id", "text"} <= record.keys() or "id" in record):
                    damaged += 1
                    log.info("%s, line %d is cut off or damaged; its result is made again", file, number)
                    continue
                key = key_of(record)
                self._check(file, key, record)
                if not (error_of(record) and key in found):
                    found[key] = record
        return found, damaged

    @property
    def _remedy(self) -> str:
        names = f"{self.path.name} and {self.path.name}.*"
        return "give another --out, or delete this folder" if self.drawings else f"give another file for the answers, or delete {names}"

    def _check(self, file: Path, key: Key, record: Record) -> None:
        metadata = record.get("metadata")
        run = metadata.get(RUN, "") if isinstance(metadata, dict) else ""
        if not self.drawings and run != self.run:
            known = self._difference() if run and digest_run(self._before) == run else f"another run ({run}, not {self.run})"
            raise ValueError(f"{file} holds answers of {known if run else 'another program'}; {self._remedy}")
        if key not in self._keys:
            raise ValueError(f"{file} has a result of '{key[0]}' ({key[2]!r:.80}), which is not among those asked now; {self._remedy}")

    def _difference(self) -> str:
        before, now = self._before, self.made_by
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return "other settings: " + ", ".join(f"{name} {before.get(name)!r}, now {now.get(name)!r}" for name in names)


def answer_line(
    file: ResultFile, head: Mapping[str, Any], text: str, *, model_id: str, metadata: Mapping[str, Any], error: str = ""
) -> Record:
    """Return the line of an answer as LLaVA writes it.

    `head`: question_id, prompt, and further keys of the line such as round_id, options, option_char. `metadata`: plain values.
    `error`: why there is no answer.
    """
    answer_id = hashlib.sha256(json.dumps([file.run, *key_of(head)]).encode()).hexdigest()[:22]
    first = {"question_id": head["question_id"], "prompt": head["prompt"], "text": text, "answer_id": answer_id, "model_id": model_id}
    about = {RUN: file.run, **metadata, **({ERROR: error} if error else {})}
    return {**first, **{name: value for name, value in head.items() if name not in first}, "metadata": about}


@dataclass(frozen=True)
class OutputSlot:
    """A picture to draw: which prompt, which sample of it, and the name of its file without folder and ending."""

    id: str
    sample: int
    name: str

    @property
    def key(self) -> Key:
        return key_of({"id": self.id, "sample": self.sample})


def output_slots(ids: Sequence[str], *, samples: int) -> list[OutputSlot]:
    """Return the pictures of some prompts, the samples of a prompt side by side.

    Raises ValueError: an id that cannot be the name of a file, or two pictures of one name.
    """
    slots = [OutputSlot(name, sample, f"{name}_{sample}" if samples > 1 else name) for name in ids for sample in range(samples)]
    seen: set[str] = set()
    for slot in slots:
        check_key(slot.name)
        file = slot.name.removesuffix(".png")
        if file in seen:
            raise ValueError(f"two pictures would be called {file}.png; give the prompts other ids")
        seen.add(file)
    return slots


def save_picture(out: Path, slot: OutputSlot, pixels: np.ndarray, *, folder: str = PICTURES) -> str:
    """Write a picture (H, W, 3) uint8 and return its name relative to `out`."""
    path = picture_path(out / folder, slot.name)
    write_picture(path, pixels)
    return path.relative_to(out).as_posix()


def write_contact_sheet(files: Sequence[Path], path: Path, *, limit: int = 64, group: int = 1) -> None:
    """Write the first `limit` pictures side by side as one PNG, in rows of about the root of their number; groups stay in one row."""
    pictures = [open_image(file).convert("RGB") for file in files[:limit]]
    columns = group * max(1, round(len(pictures) ** 0.5 / group))
    _write_sheet(pictures, [""] * len(pictures), path, columns=columns, gap=2, colour="black")


def write_wall(files: Sequence[Path], captions: Sequence[str], path: Path) -> None:
    """Write the first pictures as one PNG, each enlarged by a whole number, with its caption below; there is a caption for each file."""
    pictures = [open_image(file).convert("RGB") for file in files[:NUM_ON_WALL]]
    scale = max(1, WALL_SIDE // max(pictures[0].size))
    larger = [one.resize((scale * one.width, scale * one.height), Image.Resampling.NEAREST) for one in pictures]
    texts = [textwrap.fill(" ".join(text.split()), max(12, larger[0].width // 7)) for text in captions[: len(larger)]]
    _write_sheet(larger, texts, path, columns=min(WALL_COLUMNS, len(larger)), gap=16, colour="white")


def _write_sheet(pictures: list[Image.Image], texts: list[str], path: Path, *, columns: int, gap: int, colour: str) -> None:
    below = max(20 + 16 * text.count("\n") if text else 0 for text in texts)
    width, height = pictures[0].width + gap, pictures[0].height + below + gap
    sheet = Image.new("RGB", (columns * width + gap, -(-len(pictures) // columns) * height + gap), colour)
    for number, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left, top = gap + number % columns * width, gap + number // columns * height
        sheet.paste(picture.resize(pictures[0].size), (left, top))
        ImageDraw.Draw(sheet).multiline_text((left, top + pictures[0].height + 4), text, "black", ImageFont.load_default(13))
    write_picture(path, np.asarray(sheet))
