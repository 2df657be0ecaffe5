"""ScienceQA, SEED-Bench and MMBench: multiple choice."""

import base64
import binascii
import csv
import io
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from unicode.common.extras import require
from unicode.common.files import read_json
from unicode.metrics.benchmarks import base
from unicode.metrics.benchmarks.base import OPTION_LETTER, Answers, Benchmark, Options, Question, Score

_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")  # any one character follows: the full stop of the original is not escaped
_ANY_FORM = re.compile(
    r"(?:(?:the\s+)?answer(?:\s+is)?\s*:?\s*)?[(\[]?([A-Za-z])(?:[)\].:,](?:\s.*)?|)\s*", flags=re.DOTALL | re.IGNORECASE
)


def scienceqa_letter(text: str, letters: Collection[str] = "ABCDE") -> str | None:
    """Return the letter that LLaVA's ScienceQA script reads, or None.

    A letter alone, or "B. cat", or exactly one "The answer is C" followed by any character. "A.", "(A)" and "a" fail.
    """
    if len(text) == 1 and text in letters:
        return text
    if len(text) >= 3 and text[0] in letters and text[1:3] == ". ":
        return text[0]
    found = _ANSWER_IS.findall(text)
    return found[0] if len(found) == 1 else None


def letter_in_any_form(text: str, letters: Collection[str]) -> str | None:
    """Return the letter of an answer that consists of one in any common form: "A", "a", "A.", "(A)", "A) cat", "Answer: D"."""
    found = _ANY_FORM.fullmatch(text.strip())
    letter = found.group(1).upper() if found else ""
    return letter if letter and letter in letters else None


def first_letter(text: str, letters: Collection[str]) -> str | None:
    """Return the first character if it is an option: the local score of MMBench. "Apple" reads as A."""
    letter = text.strip()[:1].upper()
    return letter if letter and letter in letters else None


SQA_LETTERS = "ABCDE"


class Sqa(Benchmark):
    """ScienceQA: accuracy over all test ids, and over the answers whose recorded prompt has an image (the headline)."""

    name = "sqa"

    def read_questions(self, data: Path, options: Options) -> list[Question]:
        """Return the first turn of each conversation; about half of them have no image."""
        path = self.files["questions"].require(data)
        questions: dict[str, Question] = {}
        for number, record in enumerate(read_json(path), 1):
            where = f"{path}, record {number}"
            with base.expect(f'{where} is not {{"id", "conversations", "image"}}', self.files["questions"].source):
                stem = record["conversations"][0]["value"].replace("<image>", "").strip()
                text, image = f"{stem}\n{OPTION_LETTER}", record.get("image") or ""
                prompt = f"<image>\n{text}" if image else text
                question = Question(record["id"], text, str(record["id"]), image=image, prompt=prompt)
            base.add_question_(questions, question, where=where)
        return list(questions.values())

    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        if score.note_missing_(data, self.files["problems"], self.files["splits"]):
            return
        path, splits = self.files["problems"].require(data), self.files["splits"].require(data)
        with base.expect(f"{path} and pid_splits.json do not belong together", self.files["problems"].source):
            problems = read_json(path)
            choices = {str(name): problems[str(name)] for name in read_json(splits)["test"]}
            gold = {name: SQA_LETTERS[problem["answer"]] for name, problem in choices.items()}
            letters = {name: SQA_LETTERS[: len(problem["choices"])] for name, problem in choices.items()}
        score.count_answers_(answers, gold, where=splits)
        self._match_questions(data, answers, options)
        texts = {key: answers[key]["text"] for key in gold if key in answers}
        with_image = {key for key in texts if "<image>" in str(answers[key].get("prompt", ""))}
        parsed = {key: scienceqa_letter(text, SQA_LETTERS) for key, text in texts.items()}
        relaxed = {key: letter_in_any_form(text, letters[key]) for key, text in texts.items()}
        score.num_unparsed = sum(letter is None for letter in parsed.values())
        score.values = {**_sqa_rates(parsed, gold, with_image), "letter_in_any_form": _sqa_rates(relaxed, gold, with_image)}
        score.headline = score.values["img_accuracy"]
        if not with_image:
            score.notes.append("no answer has <image> in its recorded prompt, so there is no accuracy over questions with image")
        printed = {name: score.values[name] for name in ("total", "correct")}
        printed |= {name: base.rounded(score.values[name]) for name in ("accuracy", "img_accuracy")}
        score.files["sqa.json"] = base.result_text(printed)


def _sqa_rates(letters: Mapping[str, str | None], gold: Mapping[str, str], with_image: set[str]) -> dict[str, Any]:
    """A letter beyond the choices of its question is not the gold one. Missing answers count in `total`, not in `img_total`."""
    right = {key: letters.get(key) == letter for key, letter in gold.items()}
    return {
        "total": len(gold),
        "correct": sum(right.values()),
        "accuracy": base.share_true(right.values()),
        "img_total": len(with_image),
        "img_correct": sum(right[key] for key in with_image),
        "img_accuracy": base.share_true(right[key] for key in with_image),
    }


LETTERS = "ABCD"


class Seed(Benchmark):
    """SEED-Bench: accuracy in total (the headline), of images, of videos and per type; a missing answer is wrong."""

    name = "seed"

    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        self._match_questions(data, answers, options)
        gold = self.files["gold"]
        if score.note_missing_(data, gold):
            return
        path = gold.require(data)
        with base.expect(f"{path} is not SEED-Bench.json of the first SEED-Bench", gold.source):
            content = read_json(path)
            questions = {str(question["question_id"]): question for question in content["questions"]}
            names = {number: name for name, number in content["question_type"].items()}
            score.count_answers_(answers, questions, where=path)
            texts = {key: answers[key]["text"] for key in questions if key in answers}
            relaxed = {key: letter_in_any_form(text, LETTERS) for key, text in texts.items()}
            score.values = {**_seed_rates(questions, texts, names), "letter_in_any_form": _seed_rates(questions, relaxed, names)}
        score.num_unparsed = sum(text not in tuple(LETTERS) for text in texts.values())
        score.headline = score.values["total"]
        printed = score.values["per_type"] | {
            f"{name} accuracy": score.values[key] for key, name in (("total", "Total"), ("image", "image"), ("video", "video"))
        }
        score.files["seed.json"] = base.result_text({name: base.rounded(value) for name, value in printed.items()})
        score.files["seed_upload.jsonl"] = base.json_lines(
            {"question_id": question["question_id"], "prediction": texts.get(key, "")} for key, question in questions.items()
        )


def _seed_rates(questions: Mapping[str, Any], letters: Mapping[str, str | None], names: Mapping[int, str]) -> dict[str, Any]:
    right = [(question, letters.get(key) == question["answer"]) for key, question in questions.items()]
    types = sorted({question["question_type_id"] for question, _ in right})

    def share(name: str, value: Any) -> float | None:
        return base.share_true(flag for question, flag in right if question[name] == value)

    return {
        "total": base.share_true(flag for _, flag in right),
        "image": share("data_type", "image"),
        "video": share("data_type", "video"),
        "per_type": {names[kind]: share("question_type_id", kind) for kind in types},
    }


Row = Mapping[str, str]
REQUIRED = ("index", "question", "A", "B", "image")
MAY_BE_EMPTY = ("hint", *LETTERS, "answer")
NOT_UPLOADED = frozenset({"hint", "category", "source", "image", "comment", "l2-category"})
PREDICTION_COLUMN = 6  # Where LLaVA puts the prediction among the columns that are left: after index, question and A to D
NO_VALUE = frozenset({"", "#n/a", "#n/a n/a", "n/a", "na", "<na>", "#na", "null", "nan", "-nan", "none"})
"""Cells, in lower case, that stand for nothing: what LLaVA's reader takes for empty."""


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows by column; cells of `MAY_BE_EMPTY` that stand for nothing are "".

    Raises ValueError: a column is not there, a row is cut off, an index is no number or is there twice; the message names it.
    """
    csv.field_size_limit(sys.maxsize)  # an image is one cell
    rows: dict[str, dict[str, str]] = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t")
        columns = list(reader.fieldnames or ())
        missing = [name for name in REQUIRED if name not in columns]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}, it has {columns[:15]}; is it a tab-separated table of MMBench?")
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, row {number} (index {row['index']}) has not {len(columns)} cells; was the table downloaded whole?"
                )
            if not row["index"].isdigit() or row["index"] in rows:
                raise ValueError(f"{path}, row {number} has the index {row['index']!r}; expected a number that no other row has")
            empty = {name: "" for name in MAY_BE_EMPTY if row.get(name, "").strip().lower() in NO_VALUE}
            rows[row["index"]] = row | empty
    if not rows:
        raise ValueError(f"{path} has no rows; was the table downloaded whole?")
    return list(rows.values())


def row_options(row: Row) -> list[str]:
    """Return the options of a row: A, B, ... up to the first empty one."""
    options = [row.get(letter, "") for letter in LETTERS]
    return options[: options.index("")] if "" in options else options


def write_workbook(rows: Sequence[Row], predictions: Mapping[str, str]) -> bytes:
    """Return the xlsx file for the server: the table without images and categories, with `prediction` as its seventh column.

    `predictions`: the raw answer by index; a row without one gets an empty cell.
    """
    openpyxl = require("openpyxl", extra="mmbench")
    columns = [name for name in rows[0] if name not in NOT_UPLOADED]
    columns.insert(PREDICTION_COLUMN, "prediction")
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(columns)
    for row in rows:
        texts = {**row, "prediction": predictions.get(row["index"], "")}
        cells = []
        for name in columns:
            cell = openpyxl.cell.WriteOnlyCell(sheet, None)
            if name == "index":
                cell.value = int(texts[name])
            elif texts[name]:
                cell.value = openpyxl.cell.cell.ILLEGAL_CHARACTERS_RE.sub("", texts[name])
                cell.data_type = "s"  # an answer that begins with "=" is no formula
            cells.append(cell)
        sheet.append(cells)
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


ROTATION_STEP = 1_000_000  # The server's tables hold rotations of a question under its index plus a multiple of this


class Mmbench(Benchmark):
    """MMBench or, with `name` "mmbench_cn", its Chinese translation: a workbook for the server and first-letter accuracies.

    The headline is circular: a question is right if all its rotations are, those of the table and those that were asked.
    """

    def __init__(self, name: str, *, suffix: str) -> None:
        self.name, self.suffix = name, suffix
        super().__init__()

    def image_folder(self, options: Options) -> str:
        """Where the images would lie if they were unpacked, named by index; the questions hold them too."""
        return f"{self.name}/images"

    def key_of(self, record: Mapping[str, Any]) -> str:
        """Return the key of the question that an answer record belongs to: index and round."""
        return f"{record['question_id']}#{record.get('round_id', 0)}"

    def read_questions(self, data: Path, options: Options) -> list[Question]:
        """Return a question per row or, with `options.circular`, one per row and rotation of its options."""
        path = self.files["questions"].require(data)
        images: dict[str, bytes] = {}
        questions = []
        for row in read_table(path):
            images[row["index"]] = _read_image(row, images, path)
            questions += [self._question(row, number, images[row["index"]]) for number in _rounds(row, options.circular)]
        return questions

    def _question(self, row: Row, number: int, image: bytes) -> Question:
        choices = row_options(row)
        rotated = [*choices[number:], *choices[:number]]
        letters = [*LETTERS[: len(choices)][number:], *LETTERS[: len(choices)][:number]]
        lines = [row["hint"]] if row.get("hint") else []
        lines += [row["question"], *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, rotated, strict=False))]
        prompt = "\n".join(lines)
        return Question(
            int(row["index"]),
            f"{prompt}\n{self.suffix}",
            f"{row['index']}#{number}",
            image=f"{row['index']}.jpg",
            image_data=image,
            prompt=prompt,
            fields={"round_id": number, "options": rotated, "option_char": letters},
        )

    def _score(self, score: Score, data: Path, answers: Answers, options: Options) -> None:
        if score.note_missing_(data, self.files["questions"]):
            return
        path = self.files["questions"].require(data)
        rows = read_table(path)
        circular = options.circular or any(not key.endswith("#0") for key in answers)
        asked = {f"{row['index']}#{number}": (row, number) for row in rows for number in _rounds(row, circular)}
        score.count_answers_(answers, asked, where=path)
        base.check_prompts(answers, (self._question(row, number, b"") for row, number in asked.values()), where=str(path))
        texts = {key: answers[key]["text"] if key in answers else "" for key in asked}
        score.num_unparsed = sum(first_letter(texts[key], LETTERS) is None for key in asked if key in answers)
        predictions = {row["index"]: answers[key]["text"] for row in rows if (key := f"{row['index']}#0") in answers}
        score.files[f"{self.name}.xlsx"] = write_workbook(rows, predictions)
        score.notes.append(f"upload {self.name}.xlsx to the server of MMBench (OpenCompass) for the number that papers quote")
        if any(row.get("answer") for row in rows):
            score.values = _mmbench_rates(asked, texts, first_letter)
            score.values["letter_in_any_form"] = _mmbench_rates(asked, texts, letter_in_any_form)
            score.headline = score.values["circular"]


def _rounds(row: Row, circular: bool) -> range:
    return range(max(len(row_options(row)), 1) if circular else 1)


def _mmbench_rates(
    asked: Mapping[str, tuple[Row, int]], texts: Mapping[str, str], read: Callable[[str, Sequence[str]], str | None]
) -> dict[str, Any]:
    """Return accuracies in percent over single answers, over questions with all rotations, and the latter per category."""
    single: list[bool] = []
    groups: dict[int, list[bool]] = defaultdict(list)
    categories: dict[int, str] = {}
    for key, (row, number) in asked.items():
        letters = LETTERS[: len(row_options(row))]
        letter = read(texts[key], letters)
        # round n shows the original option n at A, n + 1 at B, ...
        right = letter is not None and letters[(letters.index(letter) + number) % len(letters)] == row["answer"].strip()
        question = int(row["index"]) % ROTATION_STEP
        single.append(right)
        groups[question].append(right)
        categories.setdefault(question, row.get("category", ""))
    by_category = defaultdict(list)
    for question, flags in groups.items():
        by_category[categories[question]].append(all(flags))
    return {
        "circular": base.share_true(all(flags) for flags in groups.values()),
        "single": base.share_true(single),
        "questions": len(groups),
        "per_category": {name: base.share_true(flags) for name, flags in sorted(by_category.items()) if name},
    }


def _read_image(row: Row, earlier: Mapping[str, bytes], path: Path) -> bytes:
    """Decode the image of a row; in newer tables a row may give the index of an earlier one instead."""
    text = row["image"]
    if text in earlier:
        return earlier[text]
    try:
        image = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{path}, index {row['index']}: its image is not base64 ({error}); was the table downloaded whole?") from error
    if not image:
        raise ValueError(f"{path}, index {row['index']} has no image; was the table downloaded whole?")
    return image


MMBENCH = Mmbench("mmbench", suffix=OPTION_LETTER)
MMBENCH_CN = Mmbench("mmbench_cn", suffix="请直接回答选项字母。")
