"""Pictures on disk with a line for each, filled by all ranks of a job, stopped at any moment and gone on with.

    OUT/pictures/ID.png        written whole, before its line
    OUT/results.jsonl          {"id", "prompt", "seed", "ids", "file", "seconds", ...} in the order of the prompts, or with "error"
    OUT/results.parts/         what the ranks of a job have done so far; gone when the job has ended
    OUT/settings.json          what the pictures depend on besides the prompts; others are not mixed in

Batches are formed from the whole list and repeated whole where one of their pictures is missing: so what a stopped job left out comes out
bit for bit as it would have.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from unicode.common.log import get_logger
from unicode.common.ranks import barrier, is_main, rank, world_size
from unicode.common.records import atomic_write, name_errors, open_append, read_json, write_json, write_jsonl
from unicode.ids.decode import picture_path
from unicode.ids.keys import check_key

log = get_logger(__name__)
RESULTS, PICTURES, SETTINGS, PARTS = "results.jsonl", "pictures", "settings.json", "results.parts"
Record = dict[str, Any]


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
    pictures = [Image.open(file).convert("RGB") for file in files[:limit]]
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
