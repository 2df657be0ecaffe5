"""The base class of all benchmarks: files and questions in, answers matched with the questions, scores and submission files out."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unicode.common.files import atomic_write, read_json, read_jsonl

DATA: dict[str, Any] = read_json(Path(__file__).with_name("benchmarks.json"))
"""What is no code: titles, units, files with their sources, and headline numbers of other models by benchmark, and texts."""
SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
SHOWN = 5  # How many damaged lines or unknown ids a message names

Answers = Mapping[str, Mapping[str, Any]]
"""Answer records by key, in the order of their file (see `read_answers`): `question_id`, `prompt`, `text` and what LLaVA adds."""


def percent(part: float, whole: float) -> float | None:
    """Return 100 * part / whole, or None where `whole` is 0."""
    return part / whole * 100 if whole else None


def ratio(part: float, whole: float) -> float:
    """Return part / whole, or 0.0 where `whole` is 0 (precision where nothing was predicted)."""
    return part / whole if whole else 0.0


def share_true(flags: Iterable[bool]) -> float | None:
    """Return the percentage of true values, or None where there are no values."""
    listed = list(flags)
    return percent(sum(listed), len(listed))


def rounded(value: float | None, digits: int = 2) -> float | None:
    """Round a number that may be missing."""
    return None if value is None else round(value, digits)


def result_text(content: Any) -> str:
    """Return the text of a small JSON file for people to read."""
    return json.dumps(content, indent=1) + "\n"


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Return records as the text of a JSON Lines file, with the escapes of Python's default as LLaVA writes them."""
    return "".join(json.dumps(record) + "\n" for record in records)


@contextmanager
def expect(what: str, remedy: str) -> Iterator[None]:
    """Turn the errors of malformed content into one ValueError with `what` is wrong and the remedy."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{what} ({error!r}); {remedy}") from error


@dataclass(frozen=True)
class Options:
    """What a user may choose; a benchmark ignores what does not concern it."""

    split: str = ""  # vqav2, vizwiz: "" is the split of LLaVA's question file, "val" the one with answers
    circular: bool = False  # mmbench: ask every question once per rotation of its options
    grade: Callable[[str], str] | None = None  # llavabench: the grader, prompt -> reply (see `graded.Grader`); None: not graded
    grader_name: str = ""  # llavabench: the grader's model, part of the name of the score
    grader_workers: int = 1  # llavabench: requests to the grader at the same time


@dataclass(frozen=True)
class Question:
    """One question to a model."""

    id: str | int  # `question_id` as its file has it; not always unique, `key` is
    text: str  # what the model reads, with the instruction on how to answer, without image tag and conversation template
    key: str  # unique in the benchmark; `Benchmark.key_of` finds the same key from an answer record
    image: str = ""  # path below `image_folder`; empty for a question without image
    image_data: bytes = b""  # the encoded image, where the benchmark's own file holds it (MMBench)
    prompt: str = ""  # what LLaVA records as `prompt` of the answer; differs from `text` in some benchmarks
    fields: Mapping[str, Any] = field(default_factory=dict)  # further fields of the answer record (`round_id`) or the question (`category`)


@dataclass(frozen=True)
class NeededFile:
    """A file or folder below the data folder, and where it comes from. `paths` are alternatives; the first that exists counts."""

    paths: Sequence[str]
    source: str  # what to download, from where
    to_ask: bool = True  # needed before a model can be asked
    to_score: bool = False  # without it the score is incomplete

    def find(self, data: Path) -> Path | None:
        """Return the first of the alternatives that exists."""
        return next((data / path for path in self.paths if (data / path).exists()), None)

    def require(self, data: Path) -> Path:
        """Return the path, or raise FileNotFoundError with the download."""
        found = self.find(data)
        if found is None:
            raise FileNotFoundError(self.message(data))
        return found

    def message(self, data: Path) -> str:
        return f"{' or '.join(str(data / path) for path in self.paths)} is not there: {self.source}"


@dataclass
class Score:
    """The result of scoring. Numbers are kept unrounded."""

    name: str
    headline: float | None  # the number that papers quote; None where only a server or a grader can score, `notes` has the reason
    unit: str  # of the headline: "% F1", "points of 2000"
    protocol: str  # one line: which files, which rules
    values: dict[str, Any] = field(default_factory=dict)  # all numbers, nested; variants under names of their own
    num_expected: int | None = None  # None: no file told how many questions there are
    num_answered: int = 0
    num_unparsed: int = 0  # answers (or a grader's replies) from which no choice could be read
    num_unknown: int = 0  # answers to questions that the benchmark does not have
    notes: list[str] = field(default_factory=list)  # what a reader must know: what is missing and where to get it, where to submit
    files: dict[str, str | bytes] = field(default_factory=dict)  # submission and result files by name

    def to_dict(self) -> dict[str, Any]:
        """The form of `scores.json`: everything but the content of the files."""
        report = asdict(self)
        report["files"] = sorted(self.files)
        return report

    def write_files(self, folder: Path) -> list[Path]:
        """Write the files below `folder`, each atomically, and return their paths."""
        for name, content in self.files.items():
            with atomic_write(folder / name, "wb") as file:
                file.write(content if isinstance(content, bytes) else content.encode("utf-8"))
        return [folder / name for name in self.files]

    def note_missing_(self, data: Path, *files: NeededFile) -> bool:
        """Add a note for each of the files that does not exist; return whether there was one."""
        messages = [file.message(data) for file in files if file.find(data) is None]
        self.notes += messages
        return bool(messages)

    def count_answers_(self, answers: Answers, known: Collection[str], *, where: str | Path | None) -> None:
        """Count the questions (keys `known`), those with an answer, and the answers that belong to none.

        Raises ValueError: more than half of the answers belong to none: they are answers to another question file.
        """
        unknown = [record["question_id"] for key, record in answers.items() if key not in known]
        shown = ", ".join(repr(name) for name in unknown[:SHOWN])
        if 2 * len(unknown) > len(answers):
            raise ValueError(
                f"{len(unknown)} of {len(answers)} answers are to questions that {where} does not have (question_id {shown}, ...): "
                "these are answers to another question file; give the answers of this benchmark and split"
            )
        self.num_expected, self.num_answered, self.num_unknown = len(known), len(answers) - len(unknown), len(unknown)
        if unknown:
            self.notes.append(f"{len(unknown)} answers are to questions that {where} does not have, and left out: question_id {shown}")
        if self.num_answered < self.num_expected:
            self.notes.append(f"{self.num_expected - self.num_answered} of {self.num_expected} questions have no answer")


class Benchmark(ABC):
    """One benchmark: which files it needs, how its questions are read, its answers scored. The objects hold no state.

    By default the questions are the lines of LLaVA's question file, and a question is known by its id. Title, unit, protocol, files and
    published numbers come from benchmarks.json.
    """

    name: str

    def __init__(self) -> None:
        about = DATA["benchmarks"][self.name]
        self.title: str = about["title"]
        self.unit: str = about["unit"]  # of the headline
        self.protocol: str = about["protocol"]
        self.max_new_tokens: int = about.get("max_new_tokens", 128)  # LLaVA's limit for short answers; its other scripts allow 1024
        self.published: Mapping[str, float] = about["published"]  # headline numbers of other models, by model, in `unit`
        self.files: dict[str, NeededFile] = {}
        for role, file in about["files"].items():
            self.files[role] = NeededFile(**{**file, "source": DATA["sources"].get(file["source"], file["source"])})

    def needed_files(self, options: Options) -> list[NeededFile]:
        """All files and folders, with what to download: questions, images, what scoring reads beside them."""
        return list(self.files.values())

    def missing_files(self, data: Path, options: Options, *, purpose: str) -> list[str]:
        """Return a message for each file that does not exist; `purpose` is "ask" or "score"."""
        needed = [file for file in self.needed_files(options) if (file.to_ask if purpose == "ask" else file.to_score)]
        return [file.message(data) for file in needed if file.find(data) is None]

    def image_folder(self, options: Options) -> str:
        """Where the images lie below the data folder."""
        return self.needed_files(options)[1].paths[0]

    def key_of(self, record: Mapping[str, Any]) -> str:
        """Return the key of the question that an answer record belongs to; 7 and "7" are one id. KeyError without `question_id`."""
        return str(record["question_id"])

    def read_questions(self, data: Path, options: Options) -> list[Question]:
        """Return the questions in the order of their file. FileNotFoundError names the download, ValueError the damaged file."""
        return read_question_file(self.files["questions"].require(data), self.key_of)

    def score(self, data: Path, answers: Answers, options: Options) -> Score:
        """Score the answers. A missing answer key is no error: the score then has no headline, and a note.

        Raises ValueError: the answers belong to another question file, or a file is damaged.
        """
        score = Score(self.name, None, self.unit, self.protocol, num_answered=len(answers))
        self._score(score, data, answers, options)
        return score

    @abstractmethod
    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        """Fill in the score."""

    def _match_questions(self, data: Path, answers: Answers, options: Options) -> dict[str, Question] | None:
        """Return the asked questions by key, None without their file. ValueError where the answers were given to other prompts."""
        path = self.needed_files(options)[0].find(data)
        if path is None:
            return None
        questions = {question.key: question for question in self.read_questions(data, options)}
        check_prompts(answers, questions.values(), where=str(path))
        return questions


def add_question_(questions: dict[str, Question], question: Question, *, where: str) -> None:
    """Add a question under its key; one that is there twice is asked once. ValueError where the key has another question."""
    if questions.setdefault(question.key, question) != question:
        raise ValueError(f"{where} has the question_id {question.id!r} of an earlier question; ids must be unique")


def read_question_file(path: Path, key_of: Callable[[Mapping[str, Any]], str]) -> list[Question]:
    """Read `{"question_id", "image", "text"}` a line; further fields are kept. A line that is there twice is asked once.

    Raises ValueError: a line is damaged, lacks a field, or uses a key for another question; the message names file and line.
    """
    questions: dict[str, Question] = {}
    for number, record in enumerate(read_jsonl(path), 1):
        where = f"{path}, question {number}"
        if not isinstance(record, dict) or not isinstance(record.get("text"), str) or not isinstance(record.get("question_id"), str | int):
            raise ValueError(f'{where} is {str(record)[:120]}; expected {{"question_id": ..., "image": ..., "text": ...}}')
        try:
            key = key_of({"question_id": record["question_id"], "prompt": record["text"]})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        fields = {name: value for name, value in record.items() if name not in ("question_id", "image", "text")}
        image, text = record.get("image") or "", record["text"]
        add_question_(questions, Question(record["question_id"], text, key, image=image, prompt=text, fields=fields), where=where)
    if not questions:
        raise ValueError(f"{path} holds no question; was it downloaded whole?")
    return list(questions.values())


def read_answers(path: Path, key_of: Callable[[Mapping[str, Any]], str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Read an answer file; `key_of` is the benchmark's. Damaged lines are left out.

    Returns the records by key, in the order of the file, and notes for the report: which lines are damaged, how many repeat an answer.
    Raises FileNotFoundError: there is no such file. Raises ValueError: two lines answer one question differently; both lines are named.
    """
    records: dict[str, dict[str, Any]] = {}
    lines: dict[str, int] = {}
    damaged, num_repeated = [], 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if not isinstance(record, dict) or not isinstance(record.get("text"), str) or "question_id" not in record:
                    raise ValueError("an answer has at least 'question_id' and 'text'")
                key = key_of(record)
            except (ValueError, KeyError) as error:
                damaged.append(f"line {number}: {error}")
                continue
            earlier = records.setdefault(key, record)
            first = lines.setdefault(key, number)
            if earlier["text"] != record["text"]:
                raise ValueError(
                    f"{path}: lines {first} and {number} answer question {record['question_id']!r} differently; "
                    "was a file of another run appended? Remove one of them"
                )
            num_repeated += first != number
    notes = []
    if damaged:
        shown = "; ".join(damaged[:SHOWN]) + ("; ..." if len(damaged) > SHOWN else "")
        notes.append(f"{path}: {len(damaged)} damaged lines left out ({shown})")
    if num_repeated:
        notes.append(f"{path}: {num_repeated} lines repeat an earlier answer word for word")
    return records, notes


def check_prompts(answers: Answers, questions: Iterable[Question], *, where: str) -> None:
    """Refuse answers whose recorded prompts are not the questions of their ids, as happens when two files number theirs alike.

    Answers without a recorded prompt are not compared. Raises ValueError: more than half of the prompts differ; one pair is shown.
    """
    compared, different = 0, []
    for question in questions:
        prompt = str(answers.get(question.key, {}).get("prompt", ""))
        if prompt.strip():
            compared += 1
            if prompt.strip() not in (question.prompt.strip(), question.text.strip()):
                different.append((question, prompt))
    if 2 * len(different) > compared:
        question, prompt = different[0]
        raise ValueError(
            f"{len(different)} of {compared} answers were given to another text than {where} has: question {question.id!r} is "
            f"{question.text[:120]!r} there, but {prompt[:120]!r} was answered; give the answers of this question file"
        )
