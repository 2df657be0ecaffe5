"""Answer files (JSON Lines) -> answer records by key; what is damaged, doubled or foreign is counted and named."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unicode.metrics.benchmarks.entry import Answers, Question, Score

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
