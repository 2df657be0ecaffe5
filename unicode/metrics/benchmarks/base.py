"""Shared by all benchmarks: questions, answer files, scores, published figures."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from unicode.common.files import atomic_write, read_jsonl


def percent(part: float, whole: float) -> float | None:
    """Return 100 * part / whole, or None for a share of nothing."""
    return part / whole * 100 if whole else None


def ratio(part: float, whole: float) -> float:
    """Return part / whole, or 0.0 for a share of nothing (precision where nothing was predicted)."""
    return part / whole if whole else 0.0


def share_true(flags: Iterable[bool]) -> float | None:
    """Return the percentage of true values, or None where there are none at all."""
    listed = list(flags)
    return percent(sum(listed), len(listed))


def rounded(value: float | None, digits: int = 2) -> float | None:
    """Round a number that may be missing, as scripts print it."""
    return None if value is None else round(value, digits)


FAILED = "FAILED"
"""What LLaVA's ScienceQA script calls an answer without a letter."""
_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")  # any one character follows: the full stop of the original is not escaped
_ANY_FORM = re.compile(
    r"(?:(?:the\s+)?answer(?:\s+is)?\s*:?\s*)?[(\[]?([A-Za-z])(?:[)\].:,](?:\s.*)?|)\s*", flags=re.DOTALL | re.IGNORECASE
)


def scienceqa_letter(text: str, letters: Collection[str] = "ABCDE") -> str:
    """Return the letter that LLaVA's ScienceQA script reads, or `FAILED`.

    A letter alone, or "B. cat", or exactly one "The answer is C" followed by any character. "A.", "(A)" and "a" fail.
    """
    if len(text) == 1 and text in letters:
        return text
    if len(text) >= 3 and text[0] in letters and text[1:3] == ". ":
        return text[0]
    found = _ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else FAILED


def letter_in_any_form(text: str, letters: Collection[str]) -> str | None:
    """Return the letter of an answer that consists of one, however it is dressed: "A", "a", "A.", "(A)", "A) cat", "Answer: D"."""
    found = _ANY_FORM.fullmatch(text.strip())
    letter = found.group(1).upper() if found else ""
    return letter if letter and letter in letters else None


def first_letter(text: str, letters: Collection[str]) -> str | None:
    """Return the first character if it is an option: the local score of MMBench. "Apple" reads as A."""
    letter = text.strip()[:1].upper()
    return letter if letter and letter in letters else None


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


_LLAVA = ("LLaVA-1.5 7B", "LLaVA-1.5 7B LoRA", "LLaVA-1.5 13B", "LLaVA-1.5 13B LoRA")
_LLAVA_SCORES = {
    "vqav2": (78.5, 79.1, 80.0, 80.0),
    "gqa": (62.0, 63.0, 63.3, 63.3),
    "vizwiz": (50.0, 47.8, 53.6, 58.9),
    "sqa": (66.8, 68.4, 71.6, 71.2),
    "textvqa": (58.2, 58.2, 61.3, 60.2),
    "pope": (85.9, 86.4, 85.9, 86.7),
    "mme": (1510.7, 1476.9, 1531.3, 1541.7),
    "mmbench": (64.3, 66.1, 67.7, 68.5),
    "mmbench_cn": (58.3, 58.9, 63.6, 61.5),
    "seed": (58.6, 60.1, 61.6, 61.3),
    "llavabench": (65.4, 67.9, 72.5, 69.5),
    "mmvet": (31.1, 30.2, 36.1, 38.3),
}
_QUOTED: dict[str, dict[str, float]] = {
    "UniCode 7B LoRA (quoted)": {"vqav2": 53.1, "vizwiz": 46.2, "sqa": 62.9, "pope": 71.8},
    "plain VQ, Being-VL ablation (quoted)": {"vqav2": 54.3, "vizwiz": 45.0, "sqa": 57.8, "pope": 76.1, "mme": 1301.2, "mmbench": 38.2},
}


def published_scores(name: str) -> Mapping[str, float]:
    """Return {model: headline} of one benchmark."""
    llava = dict(zip(_LLAVA, _LLAVA_SCORES[name], strict=True))
    return llava | {model: scores[name] for model, scores in _QUOTED.items() if name in scores}


EVAL_ARCHIVE = "it comes with LLaVA's eval.zip (docs/Evaluation.md of haotian-liu/LLaVA); unpack that in the data folder"
SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
SHORT_TOKENS, LONG_TOKENS = 128, 1024
"""Limits of an answer: LLaVA's loader script for short answers, its other scripts."""


def id_key(record: Mapping[str, Any]) -> str:
    """Key of a record by its id alone; 7 and "7" are one id. KeyError without `question_id`."""
    return str(record["question_id"])


def prompt_key(record: Mapping[str, Any]) -> str:
    """Key by id and prompt, where one id stands for several questions; a question's `text` is its prompt."""
    return f"{record['question_id']}#{str(record.get('prompt', record.get('text', ''))).strip()}"


class QuestionLines:
    """A benchmark whose questions are the lines of a JSON Lines file; a description derives from it and adds `score`."""

    max_new_tokens = SHORT_TOKENS
    questions: NeededFile
    images: NeededFile
    val_images: NeededFile | None = None

    def image_folder(self, options: Options) -> str:
        """Where the images lie below the data folder."""
        images = self.val_images if options.split == "val" and self.val_images is not None else self.images
        assert isinstance(images.path, str)
        return images.path

    def key_of(self, record: Mapping[str, Any]) -> str:
        """Key of the question that an answer record belongs to."""
        return id_key(record)

    def read_questions(self, data: Path, options: Options) -> list[Question]:
        """Return the questions in the order of their file."""
        return read_question_file(self.questions.require(data), self.key_of)


def read_question_file(path: Path, key_of: Callable[[Mapping[str, Any]], str]) -> list[Question]:
    """Read `{"question_id", "image", "text"}` a line; further fields are kept. A line that is there twice is asked once.

    Raises:
        ValueError: a line is damaged, lacks a field, or uses a key for another question; the message names file and line.
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
        extra = {name: value for name, value in record.items() if name not in ("question_id", "image", "text")}
        image = record.get("image") or ""
        question = Question(record["question_id"], record["text"], key, image=image, prompt=record["text"], fields=extra)
        if questions.setdefault(key, question) != question:
            raise ValueError(f"{where} has the question_id {record['question_id']!r} of an earlier question; ids must be unique")
    if not questions:
        raise ValueError(f"{path} holds no question; was it downloaded whole?")
    return list(questions.values())


def known_questions(data: Path, file: NeededFile, key_of: Callable[[Mapping[str, Any]], str]) -> dict[str, Question] | None:
    """Return the questions of a file by key, or None where the file is not there: scoring can do without."""
    path = file.find(data)
    return None if path is None else {question.key: question for question in read_question_file(path, key_of)}


def check_split(name: str, options: Options) -> str:
    """Return the split of a benchmark that has "" (LLaVA's question file) and "val" (with answers). ValueError for any other."""
    if options.split not in ("", "val"):
        raise ValueError(f"{name} has no split {options.split!r}; leave it out for LLaVA's question file, or give val, which has answers")
    return options.split


NAMED = 5
"""How many of the damaged lines or of the unknown ids a message names."""


@dataclass
class AnswerFile:
    """The content of one answer file."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)  # by key, in the order of the file
    damaged: list[str] = field(default_factory=list)  # "line 17: why", for lines that are no answer
    num_repeated: int = 0  # lines that only repeat an earlier answer

    def notes(self, path: Path) -> list[str]:
        """What a report should say about the file."""
        notes = []
        if self.damaged:
            shown = "; ".join(self.damaged[:NAMED]) + ("; ..." if len(self.damaged) > NAMED else "")
            notes.append(f"{path}: {len(self.damaged)} damaged lines left out ({shown})")
        if self.num_repeated:
            notes.append(f"{path}: {self.num_repeated} lines repeat an earlier answer word for word")
        return notes


def read_answers(path: Path, key_of: Callable[[Mapping[str, Any]], str]) -> AnswerFile:
    """Read an answer file; `key_of` is the benchmark's. Damaged lines are counted and left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: two lines answer one question differently; both lines are named.
    """
    answers, lines = AnswerFile(), dict[str, int]()
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
                answers.damaged.append(f"line {number}: {error}")
                continue
            if key not in answers.records:
                answers.records[key] = record
                lines[key] = number
            elif answers.records[key]["text"] == record["text"]:
                answers.num_repeated += 1
            else:
                raise ValueError(
                    f"{path}: lines {lines[key]} and {number} answer question {record['question_id']!r} differently; "
                    "was a file of another run appended? Remove one of them"
                )
    return answers


def count_answers_(score: Score, answers: Answers, known: Collection[str], *, where: str) -> None:
    """Enter into `score` how many questions (keys `known`) there are, how many have an answer, and how many answers belong to none.

    Raises:
        ValueError: more than half of the answers belong to none: they are answers to another question file.
    """
    unknown = [record["question_id"] for key, record in answers.items() if key not in known]
    if 2 * len(unknown) > len(answers):
        shown = ", ".join(repr(name) for name in unknown[:NAMED])
        raise ValueError(
            f"{len(unknown)} of {len(answers)} answers are to questions that {where} does not have (question_id {shown}, ...): "
            "these are answers to another question file; give the answers of this benchmark and split"
        )
    score.num_expected, score.num_answered, score.num_unknown = len(known), len(answers) - len(unknown), len(unknown)
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:NAMED])
        score.notes.append(f"{len(unknown)} answers are to questions that {where} does not have, and left out: question_id {shown}")
    if score.num_answered < score.num_expected:
        score.notes.append(f"{score.num_expected - score.num_answered} of {score.num_expected} questions have no answer")


def check_prompts(answers: Answers, questions: Iterable[Question], *, where: str) -> None:
    """Refuse answers whose recorded prompts are not the questions of their ids, as happens when two files number theirs alike.

    Answers without a recorded prompt are not looked at.

    Raises:
        ValueError: more than half of the prompts differ; one pair is shown.
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
