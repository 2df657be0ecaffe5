"""The contract between a benchmark and the command that runs it: questions out, answers in, a score with its protocol out.

A benchmark is described by one module of this package: where its files lie below the data folder (LLaVA's `playground/data/eval`), how a
line of them becomes a question, how answers are scored or turned into a submission file. It never runs a model.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from unicode.common.records import atomic_write

Answers = Mapping[str, Mapping[str, Any]]
"""Answer records by key, in the order of their file (see `answers.read_answers`): `question_id`, `prompt`, `text` and what LLaVA adds."""


@dataclass(frozen=True)
class Options:
    """What a user may choose; a benchmark ignores what does not concern it."""

    split: str = ""  # vqav2, vizwiz: "" is the split of LLaVA's question file, "val" the one with answers
    circular: bool = False  # mmbench: ask every question once per rotation of its options
    ask: Callable[[str], str] | None = None  # llavabench: the judge, prompt -> reply (see `endpoint.Endpoint`); None: not judged
    judge_name: str = ""  # llavabench: the judge's model, part of the name of the score
    judge_workers: int = 1  # llavabench: questions put to the judge at the same time


@dataclass(frozen=True)
class Question:
    """One question to a model."""

    id: str | int
    """`question_id` as its file has it; not always unique, `key` is."""
    text: str
    """What the model reads, with the suffix that says how to answer, without image tag and conversation template."""
    key: str
    """Unique in the benchmark; `Benchmark.key_of` finds the same key from an answer record."""
    image: str = ""
    """Path below `image_folder`; empty for a question without image."""
    image_data: bytes = b""
    """The encoded picture, where the benchmark's own file holds it (MMBench)."""
    prompt: str = ""
    """What LLaVA records as `prompt` of the answer; differs from `text` in some benchmarks."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the answer record (`round_id`, `options`, `option_char`) or of the question (`category`)."""


@dataclass(frozen=True)
class NeededFile:
    """A file or folder below the data folder, and where it comes from. `path` may name alternatives; the first that is there counts."""

    path: str | tuple[str, ...]
    source: str  # what to download, from where
    to_ask: bool = True  # needed before a model can be asked
    to_score: bool = False  # without it the score is incomplete

    def find(self, data: Path) -> Path | None:
        """Return the first of the alternatives that exists."""
        paths = (self.path,) if isinstance(self.path, str) else self.path
        return next((data / path for path in paths if (data / path).exists()), None)

    def require(self, data: Path) -> Path:
        """Return the path, or raise the FileNotFoundError that says what to download."""
        found = self.find(data)
        if found is None:
            raise FileNotFoundError(self.message(data))
        return found

    def message(self, data: Path) -> str:
        """Say what is missing and what to do about it."""
        paths = (self.path,) if isinstance(self.path, str) else self.path
        return f"{' or '.join(str(data / path) for path in paths)} is not there: {self.source}"


@dataclass
class Score:
    """What came out of scoring. Numbers are kept unrounded."""

    name: str
    headline: float | None  # the number people quote; None where only a server or a judge can tell, `notes` say why
    unit: str  # of the headline: "% F1", "points of 2000"
    protocol: str  # one line: which files, which rules
    values: dict[str, Any] = field(default_factory=dict)  # all numbers, nested; variants under names of their own
    num_expected: int | None = None  # None: no file told how many questions there are
    num_answered: int = 0
    num_unparsed: int = 0  # answers (or a judge's replies) from which no choice could be read
    num_unknown: int = 0  # answers to questions that the benchmark does not have
    notes: list[str] = field(default_factory=list)  # what a reader must know: what is missing and where to get it, where to submit
    files: dict[str, str | bytes] = field(default_factory=dict)  # submission and result files by name, ready to be written

    def to_dict(self) -> dict[str, Any]:
        """The form of `scores.json`: everything but the content of the files."""
        report = asdict(self)
        report["files"] = sorted(self.files)
        return report

    def write_files(self, folder: Path) -> list[Path]:
        """Write the files below `folder`, each whole or not at all, and return their paths."""
        paths = []
        for name, content in self.files.items():
            with atomic_write(folder / name, "wb") as file:
                file.write(content if isinstance(content, bytes) else content.encode("utf-8"))
            paths.append(folder / name)
        return paths


class Benchmark(Protocol):
    """One benchmark. The objects in `table.BENCHMARKS` are stateless."""

    name: str
    title: str
    max_new_tokens: int
    published: Mapping[str, float]
    """Headline numbers of other models, by model; all in the unit of `Score.headline`."""

    def image_folder(self, options: Options) -> str:
        """Where the images lie below the data folder."""
        ...

    def needed_files(self, options: Options) -> list[NeededFile]:
        """All files and folders, with what to download."""
        ...

    def read_questions(self, data: Path, options: Options) -> list[Question]:
        """Return the questions in the order of their file. FileNotFoundError says what to download, ValueError what is damaged."""
        ...

    def key_of(self, record: Mapping[str, Any]) -> str:
        """Return the key of the question that an answer record belongs to."""
        ...

    def score(self, data: Path, answers: Answers, options: Options) -> Score:
        """Score the answers. A missing answer key file is no error: the score then has no headline and says so.

        Raises:
            ValueError: the answers belong to another question file, or a file is damaged.
        """
        ...


def missing_files(benchmark: Benchmark, data: Path, options: Options, *, purpose: str) -> list[str]:
    """Return a message for each file that is not there; `purpose` is "ask" or "score"."""
    needed = [file for file in benchmark.needed_files(options) if (file.to_ask if purpose == "ask" else file.to_score)]
    return [file.message(data) for file in needed if file.find(data) is None]


def result_text(content: Any) -> str:
    """Return the text of a small JSON file for people to read."""
    return json.dumps(content, indent=1) + "\n"


def json_lines(records: list[dict[str, Any]]) -> str:
    """Return records as the text of a JSON Lines file, with the escapes of Python's default as LLaVA writes them."""
    return "".join(json.dumps(record) + "\n" for record in records)
