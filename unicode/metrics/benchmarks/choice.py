"""ScienceQA, SEED-Bench and MMBench: multiple choice."""

import base64
import binascii
import csv
import io
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openpyxl import Workbook
from openpyxl.cell import WriteOnlyCell
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

from unicode.common.files import read_json
from unicode.metrics.benchmarks.base import (
    EVAL_ARCHIVE,
    FAILED,
    LONG_TOKENS,
    OPTION_LETTER,
    Answers,
    NeededFile,
    Options,
    Question,
    QuestionLines,
    Score,
    check_prompts,
    count_answers_,
    first_letter,
    id_key,
    json_lines,
    known_questions,
    letter_in_any_form,
    published_scores,
    result_text,
    rounded,
    scienceqa_letter,
    share_true,
)

SQA_LETTERS = "ABCDE"
SQA_SOURCE = "download data/scienceqa of the repository lupantech/ScienceQA"


class Sqa:
    """The description of ScienceQA."""

    name = "sqa"
    title = "ScienceQA-IMG"
    max_new_tokens = LONG_TOKENS
    published = published_scores("sqa")
    questions = NeededFile("scienceqa/llava_test_CQM-A.json", EVAL_ARCHIVE)
    images = NeededFile("scienceqa/images/test", "download the test images of ScienceQA (see its repository lupantech/ScienceQA)")
    problems = NeededFile("scienceqa/problems.json", SQA_SOURCE, to_ask=False, to_score=True)
    splits = NeededFile("scienceqa/pid_splits.json", SQA_SOURCE, to_ask=False, to_score=True)

    def image_folder(self, options: Options) -> str:
        """Where the images lie below the data folder."""
        return "scienceqa/images/test"

    def needed_files(self, options: Options) -> list[NeededFile]:
        """Questions, images, and the problems, which hold the answers."""
        return [self.questions, self.images, self.problems, self.splits]

    def key_of(self, record: Mapping[str, Any]) -> str:
        """Key of the question that an answer record belongs to."""
        return id_key(record)

    def read_questions(self, data: Path, options: Options) -> list[Question]:
        """Return the first turn of each conversation; about half of them have no image."""
        path = self.questions.require(data)
        questions: dict[str, Question] = {}
        for number, record in enumerate(read_json(path), 1):
            try:
                stem = record["conversations"][0]["value"].replace("<image>", "").strip()
                text, image = f"{stem}\n{OPTION_LETTER}", record.get("image") or ""
                key = str(record["id"])
                prompt = f"<image>\n{text}" if image else text
                question = Question(record["id"], text, key, image=image, prompt=prompt)
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                raise ValueError(
                    f'{path}, record {number} is not {{"id", "conversations", "image"}} ({error!r}); {EVAL_ARCHIVE}'
                ) from error
            if questions.setdefault(key, question) != question:
                raise ValueError(f"{path}, record {number} has the id {key} of an earlier question; ids must be unique")
        return list(questions.values())

    def score(self, data: Path, answers: Answers, options: Options) -> Score:
        """Return accuracy over all test ids and over the answers whose recorded prompt has an image (the headline), in percent."""
        protocol = "test ids; letter alone, 'B. ...' or one 'The answer is C.' (LLaVA, no random guess); accuracy of prompts with <image>"
        score = Score(self.name, None, "% of questions with image", protocol, num_answered=len(answers))
        missing = [file.message(data) for file in (self.problems, self.splits) if file.find(data) is None]
        if missing:
            score.notes += missing
            return score
        try:
            test_ids = [str(name) for name in read_json(self.splits.require(data))["test"]]
            problems = {name: problem for name, problem in read_json(self.problems.require(data)).items() if name in set(test_ids)}
            gold = {name: SQA_LETTERS[problems[name]["answer"]] for name in test_ids}
            letters = {name: SQA_LETTERS[: len(problems[name]["choices"])] for name in test_ids}
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{self.problems.find(data)} and pid_splits.json do not belong together ({error!r}); {SQA_SOURCE}") from error
        count_answers_(score, answers, gold, where=str(self.splits.find(data)))
        path = self.questions.find(data)
        if path is not None:
            check_prompts(answers, self.read_questions(data, options), where=str(path))
        with_image = {key for key, record in answers.items() if key in gold and "<image>" in str(record.get("prompt", ""))}
        parsed = {key: scienceqa_letter(answers[key]["text"], SQA_LETTERS) if key in answers else FAILED for key in gold}
        relaxed = {key: letter_in_any_form(answers[key]["text"], letters[key]) if key in answers else None for key in gold}
        score.num_unparsed = sum(parsed[key] == FAILED for key in answers if key in gold)
        score.values = {**_sqa_rates(parsed, gold, with_image), "letter_in_any_form": _sqa_rates(relaxed, gold, with_image)}
        score.headline = score.values["img_accuracy"]
        if not with_image:
            score.notes.append("no answer has <image> in its recorded prompt, so there is no accuracy over questions with image")
        printed = {name: score.values[name] for name in ("total", "correct")}
        score.files["sqa.json"] = result_text(
            {**printed, "accuracy": rounded(score.values["accuracy"]), "img_accuracy": rounded(score.values["img_accuracy"])}
        )
        return score


def _sqa_rates(letters: Mapping[str, str | None], gold: Mapping[str, str], with_image: set[str]) -> dict[str, Any]:
    """A letter beyond the choices of its question is simply not the gold one. Missing answers count in `total`, not in `img_total`."""
    right = {key: letters[key] == letter for key, letter in gold.items()}
    return {
        "total": len(gold),
        "correct": sum(right.values()),
        "accuracy": share_true(right.values()),
        "img_total": len(with_image),
        "img_correct": sum(right[key] for key in with_image),
        "img_accuracy": share_true(right[key] for key in with_image),
    }


LETTERS = "ABCD"
SEED_SOURCE = "download SEED-Bench.json of SEED-Bench (AILab-CVC/SEED-Bench, DATASET.md)"


class Seed(QuestionLines):
    """The description of SEED-Bench."""

    name = "seed"
    title = "SEED-Bench"
    published = published_scores("seed")
    questions = NeededFile(("seed_bench/llava-seed-bench.jsonl", "seed_bench/llava-seed-bench_1.jsonl"), EVAL_ARCHIVE)
    images = NeededFile("seed_bench", "put SEED-Bench-image and SEED-Bench-video-image (middle frames) there, see SEED-Bench's DATASET.md")
    gold = NeededFile("seed_bench/SEED-Bench.json", SEED_SOURCE, to_ask=False, to_score=True)

    def needed_files(self, options: Options) -> list[NeededFile]:
        """Questions, images, and the official questions, which hold the answers."""
        return [self.questions, self.images, self.gold]

    def score(self, data: Path, answers: Answers, options: Options) -> Score:
        """Return accuracy in percent in total (the headline), of pictures, of videos and per type; a missing answer is wrong."""
        score = Score(
            self.name, None, "% of pictures and videos", "the answer is exactly the gold letter, all questions", num_answered=len(answers)
        )
        asked = known_questions(data, self.questions, self.key_of)
        if asked is not None:
            check_prompts(answers, asked.values(), where=str(self.questions.find(data)))
        path = self.gold.find(data)
        if path is None:
            score.notes.append(self.gold.message(data))
            return score
        content = read_json(path)
        try:
            questions = {str(question["question_id"]): question for question in content["questions"]}
            names = {number: name for name, number in content["question_type"].items()}
            right = {key: key in answers and answers[key]["text"] == question["answer"] for key, question in questions.items()}
            relaxed = {
                key: key in answers and letter_in_any_form(answers[key]["text"], LETTERS) == question["answer"]
                for key, question in questions.items()
            }
            count_answers_(score, answers, questions, where=str(path))
            score.values = _seed_rates(questions.values(), right, names)
            score.values["letter_in_any_form"] = _seed_rates(questions.values(), relaxed, names)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not SEED-Bench.json of the first SEED-Bench ({error!r}); {SEED_SOURCE}") from error
        score.num_unparsed = sum(answers[key]["text"] not in tuple(LETTERS) for key in questions if key in answers)
        score.headline = score.values["total"]
        per_type = {name: rounded(value) for name, value in score.values["per_type"].items()}
        totals = {
            f"{name} accuracy": rounded(score.values[key]) for key, name in (("total", "Total"), ("image", "image"), ("video", "video"))
        }
        score.files["seed.json"] = result_text(per_type | totals)
        score.files["seed_upload.jsonl"] = json_lines(
            [
                {"question_id": question["question_id"], "prediction": answers.get(key, {}).get("text", "")}
                for key, question in questions.items()
            ]
        )
        return score


def _seed_rates(questions: Iterable[Mapping[str, Any]], right: Mapping[str, bool], names: Mapping[int, str]) -> dict[str, Any]:
    listed = [(question, right[str(question["question_id"])]) for question in questions]
    types = sorted({question["question_type_id"] for question, _ in listed})
    return {
        "total": share_true(flag for _, flag in listed),
        "image": share_true(flag for question, flag in listed if question["data_type"] == "image"),
        "video": share_true(flag for question, flag in listed if question["data_type"] == "video"),
        "per_type": {names[kind]: share_true(flag for question, flag in listed if question["question_type_id"] == kind) for kind in types},
    }


Row = Mapping[str, str]
REQUIRED = ("index", "question", "A", "B", "image")
MAY_BE_EMPTY = ("hint", *LETTERS, "answer")
NOT_UPLOADED = frozenset({"hint", "category", "source", "image", "comment", "l2-category"})
PREDICTION_COLUMN = 6
"""Where LLaVA puts the prediction among the columns that are left: after index, question and A to D."""
NO_VALUE = frozenset({"", "#n/a", "#n/a n/a", "n/a", "na", "<na>", "#na", "null", "nan", "-nan", "none"})
"""Cells, in lower case, that stand for nothing: what LLaVA's reader takes for empty."""


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows by column; cells of `MAY_BE_EMPTY` that stand for nothing are "".

    Raises:
        ValueError: a column is not there, a row is cut off, an index is no number or is there twice; the message names it.
    """
    csv.field_size_limit(sys.maxsize)  # a picture is one cell
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
    """Return the xlsx file for the server: the table without pictures and categories, with `prediction` as its seventh column.

    Args:
        predictions: the raw answer by index; a row without one gets an empty cell.
    """
    columns = [name for name in rows[0] if name not in NOT_UPLOADED]
    columns.insert(PREDICTION_COLUMN, "prediction")
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    sheet.append(columns)
    for row in rows:
        texts = {**row, "prediction": predictions.get(row["index"], "")}
        cells = []
        for name in columns:
            cell = WriteOnlyCell(sheet, None)
            if name == "index":
                cell.value = int(texts[name])
            elif texts[name]:
                cell.value = ILLEGAL_CHARACTERS_RE.sub("", texts[name])
                cell.data_type = "s"  # an answer that begins with "=" is no formula
            cells.append(cell)
        sheet.append(cells)
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


ROTATION_STEP = 1_000_000
"""The server's tables hold rotations of a question under its index plus a multiple of this."""
OPTION_LETTER_CN = "请直接回答选项字母。"


class Mmbench:
    """The description of MMBench or, with `name` "mmbench_cn", of its Chinese translation."""

    max_new_tokens = LONG_TOKENS

    def __init__(self, name: str, *, title: str, tables: tuple[str, ...], suffix: str) -> None:
        self.name, self.title, self.suffix = name, title, suffix
        self.published = published_scores(name)
        self.table = NeededFile(tables, f"download {Path(tables[0]).name} of MMBench (OpenCompass)", to_score=True)

    def image_folder(self, options: Options) -> str:
        """Where the pictures would lie if they were unpacked, named by index; the questions hold them too."""
        return f"{self.name}/images"

    def needed_files(self, options: Options) -> list[NeededFile]:
        """The table has everything."""
        return [self.table]

    def key_of(self, record: Mapping[str, Any]) -> str:
        """Key of the question that an answer record belongs to: index and round."""
        return f"{record['question_id']}#{record.get('round_id', 0)}"

    def read_questions(self, data: Path, options: Options) -> list[Question]:
        """Return a question per row or, with `options.circular`, one per row and rotation of its options."""
        path = self.table.require(data)
        rows = read_table(path)
        pictures: dict[str, bytes] = {}
        questions = []
        for row in rows:
            pictures[row["index"]] = _picture(row, pictures, path)
            questions += [self._question(row, number, pictures[row["index"]]) for number in _rounds(row, options.circular)]
        return questions

    def _question(self, row: Row, number: int, picture: bytes) -> Question:
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
            image_data=picture,
            prompt=prompt,
            fields={"round_id": number, "options": rotated, "option_char": letters},
        )

    def score(self, data: Path, answers: Answers, options: Options) -> Score:
        """Return the workbook for the server; where the table has answers, also first-letter accuracies in percent.

        The headline is circular: a question is right if all its rotations are, those of the table and those that were asked.
        """
        protocol = "first letter of the answer, all rotations of a question must be right (the server reads answers with an LLM instead)"
        score = Score(self.name, None, "% of questions, first letter", protocol, num_answered=len(answers))
        path = self.table.find(data)
        if path is None:
            score.notes.append(self.table.message(data))
            return score
        rows = read_table(path)
        circular = options.circular or any(not key.endswith("#0") for key in answers)
        asked = {f"{row['index']}#{number}": (row, number) for row in rows for number in _rounds(row, circular)}
        count_answers_(score, answers, asked, where=str(path))
        check_prompts(answers, (self._question(row, number, b"") for row, number in asked.values()), where=str(path))
        texts = {key: answers[key]["text"] if key in answers else "" for key in asked}
        score.num_unparsed = sum(first_letter(texts[key], LETTERS) is None for key in asked if key in answers)
        predictions = {row["index"]: answers[key]["text"] for row in rows if (key := f"{row['index']}#0") in answers}
        score.files[f"{self.name}.xlsx"] = write_workbook(rows, predictions)
        score.notes.append(f"upload {self.name}.xlsx to the server of MMBench (OpenCompass) for the number that papers quote")
        if any(row.get("answer") for row in rows):
            score.values = _mmbench_rates(asked, texts, first_letter)
            score.values["letter_in_any_form"] = _mmbench_rates(asked, texts, letter_in_any_form)
            score.headline = score.values["circular"]
        return score


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
        "circular": share_true(all(flags) for flags in groups.values()),
        "single": share_true(single),
        "questions": len(groups),
        "per_category": {name: share_true(flags) for name, flags in sorted(by_category.items()) if name},
    }


def _picture(row: Row, earlier: Mapping[str, bytes], path: Path) -> bytes:
    """Decode the picture of a row; in newer tables a row may give the index of an earlier one instead."""
    text = row["image"]
    if text in earlier:
        return earlier[text]
    try:
        picture = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{path}, index {row['index']}: its picture is not base64 ({error}); was the table downloaded whole?") from error
    if not picture:
        raise ValueError(f"{path}, index {row['index']} has no picture; was the table downloaded whole?")
    return picture


MMBENCH = Mmbench("mmbench", title="MMBench", tables=("mmbench/mmbench_dev_20230712.tsv",), suffix=OPTION_LETTER)
MMBENCH_CN = Mmbench(
    "mmbench_cn",
    title="MMBench-CN",
    tables=("mmbench_cn/mmbench_dev_cn_20231003.tsv", "mmbench/mmbench_dev_cn_20231003.tsv"),
    suffix=OPTION_LETTER_CN,
)
