"""LLaVA's question files (JSON Lines) -> questions: what nine of the twelve benchmarks share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unicode.common.records import read_jsonl
from unicode.metrics.benchmarks.entry import NeededFile, Options, Question

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
