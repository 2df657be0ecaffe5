"""One record of an annotation file, of LLaVA's form or ours -> turns and the images in them, checked.

{"image": key or keys, "conversations": [... "<image>\\nWhat is this?" ...]}                       ids by key from a store
{"task": ..., "layout": ..., "tokenizer": ..., "conversations": [... "<vistok>12-7</vistok>" ...]}  ids in the text
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from unicode.annotations.conversation import (
    BAD_IDS,
    IMAGE_TAG,
    IMAGE_TO_TEXT,
    MALFORMED_TURNS,
    TAG_MISMATCH,
    TASKS,
    TEXT_ONLY,
    RefusedError,
    parse_images,
    parse_turns,
    record_id,
)
from unicode.annotations.prompts import TEXT_TO_IMAGE
from unicode.ids.text import CLOSE, OPEN, split_runs
from unicode.llm.supervise import INPUT_MODES

UNKNOWN_TASK = "unknown task"
UNKNOWN_MODE = "unknown input_mode"


@dataclass(frozen=True)
class Sample:
    """A checked record.

    Attributes:
        id: its id as text.
        task: one of annotations' TASKS; where the record names none, what its images tell.
        turns: human and gpt by turns; every image is a tag.
        images: for each tag in order the key of the image, or its ids.
        input_mode: how the record wants its images read, "" for no wish.
        layout, tokenizer: what the record says about its ids, "" for nothing.
    """

    id: str
    task: str
    turns: tuple[str, ...]
    images: tuple[str | np.ndarray, ...]
    input_mode: str
    layout: str
    tokenizer: str

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys among the images."""
        return tuple(image for image in self.images if isinstance(image, str))

    def first_rounds(self, count: int) -> "Sample":
        """Return the sample without what follows its first `count` questions and answers."""
        turns = self.turns[: 2 * count]
        num_images = sum(turn.count(IMAGE_TAG) for turn in turns)
        return Sample(self.id, self.task, turns, self.images[:num_images], self.input_mode, self.layout, self.tokenizer)


def read_sample(record: Any) -> Sample:
    """Check a record and take it apart.

    Raises:
        RefusedError: no or malformed turns, an unknown role, gpt before human, an empty answer, image tags without images or images
            without tags, ids that cannot be read, an unknown task or input_mode.
    """
    turns = parse_turns(record)
    for number, turn in enumerate(turns):
        if number % 2 and not turn.strip():
            raise RefusedError(MALFORMED_TURNS, f"turn {number}, an answer, is empty")
    keys = parse_images(record)
    num_tags = sum(turn.count(IMAGE_TAG) for turn in turns)
    if num_tags != len(keys):
        raise RefusedError(TAG_MISMATCH, f"{num_tags} {IMAGE_TAG} in the conversation, {len(keys)} images")
    images: tuple[str | np.ndarray, ...] = keys
    if any(OPEN in turn or CLOSE in turn for turn in turns):
        turns, images = _take_runs(turns, keys)
    task = record.get("task") or _guess_task(turns)
    if task not in TASKS:
        raise RefusedError(UNKNOWN_TASK, f"'{str(task)[:40]}'; known: {', '.join(TASKS)}")
    mode = record.get("input_mode") or ""
    if mode and mode not in INPUT_MODES:
        raise RefusedError(UNKNOWN_MODE, f"'{str(mode)[:40]}'; known: {', '.join(INPUT_MODES)}")
    layout, tokenizer = (str(record.get(name) or "") for name in ("layout", "tokenizer"))
    return Sample(record_id(record, keys, turns), task, turns, images, mode, layout, tokenizer)


def _take_runs(turns: tuple[str, ...], keys: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str | np.ndarray, ...]]:
    """Turns with a tag in place of each run of ids, and the images of all tags; a run of no ids, a picture not begun, is nothing."""
    images: list[str | np.ndarray] = []
    rest, texts = iter(keys), []
    for number, turn in enumerate(turns):
        try:
            pieces = split_runs(turn, where=f"turn {number}", allow_empty=True)
        except ValueError as error:
            raise RefusedError(BAD_IDS, str(error)) from error
        words = ""
        for piece in pieces:
            if piece.ids is None:
                words += piece.text
                images += [next(rest) for _ in range(piece.text.count(IMAGE_TAG))]
            elif len(piece.ids):
                words += IMAGE_TAG
                images.append(piece.ids)
        texts.append(words)
    return tuple(texts), tuple(images)


def _guess_task(turns: tuple[str, ...]) -> str:
    if any(IMAGE_TAG in answer for answer in turns[1::2]):
        return TEXT_TO_IMAGE
    return IMAGE_TO_TEXT if any(IMAGE_TAG in question for question in turns[::2]) else TEXT_ONLY
