"""MMBench and MMBench-CN: multiple choice from a table that holds its pictures; scored by a server, on dev also here."""

import base64
import binascii
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unicode.metrics.benchmarks.answers import check_prompts, count_answers_
from unicode.metrics.benchmarks.entry import Answers, NeededFile, Options, Question, Score
from unicode.metrics.benchmarks.letters import first_letter, letter_in_any_form
from unicode.metrics.benchmarks.mmbench_table import LETTERS, Row, read_table, row_options, write_workbook
from unicode.metrics.benchmarks.published import published_scores
from unicode.metrics.benchmarks.questions import LONG_TOKENS, OPTION_LETTER
from unicode.metrics.benchmarks.rates import share_true

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
            score.values = _rates(asked, texts, first_letter) | {"letter_in_any_form": _rates(asked, texts, letter_in_any_form)}
            score.headline = score.values["circular"]
        return score


def _rounds(row: Row, circular: bool) -> range:
    return range(max(len(row_options(row)), 1) if circular else 1)


def _rates(
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
