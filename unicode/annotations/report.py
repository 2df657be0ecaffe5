"""What became of the records: how many were read and written, what was left out and why, printed and saved beside the output."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unicode.annotations.conversation import RefusedError
from unicode.common.log import get_logger
from unicode.common.records import write_json

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
