"""One record of an annotation file: the reader of LLaVA's form and ours, and the maker of ours."""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from unicode.annotations.templates import DECOMPRESSION, NEXT_ROW, TEXT_TO_IMAGE, UNCONDITIONAL
from unicode.ids.text import CLOSE, OPEN, split_runs

IMAGE_TO_TEXT, TEXT_ONLY = "image_to_text", "text_only"
TASKS = (IMAGE_TO_TEXT, TEXT_ONLY, TEXT_TO_IMAGE, NEXT_ROW, DECOMPRESSION, UNCONDITIONAL)
INPUT_MODES = ("ids", "sum")  # How images in questions are read: all their ids one after another, or one position per coarse cell
HUMAN, GPT = "human", "gpt"
IMAGE_TAG = "<image>"

# Why a record is left out: the keys of a report's counts.
NO_CONVERSATIONS = "no conversations"
MALFORMED_TURNS = "malformed turns"
UNKNOWN_ROLE = "unknown role"
BAD_IMAGE = "malformed image field"
OUTSIDE_ROOT = "image path leaves the root"
TAG_MISMATCH = "image tags do not match images"
RESERVED_TAG = "reserved tag in text"
NO_IMAGE = "no image"
NO_CAPTION = "no caption"
BAD_LABEL = "label out of range"
DAMAGED_GROUP = "damaged row group"
NO_IDS = "no ids"
BAD_IDS = "malformed ids"
NOT_TEXT = "not Unicode text"
UNKNOWN_TASK = "unknown task"
UNKNOWN_MODE = "unknown input_mode"
REPEATED = "image taken before"
NOT_CHOSEN = "beyond the share or weight asked for"

_BAD_PATH = re.compile(r"^(/|[A-Za-z]:)|\0")


class RefusedError(Exception):
    """Leaves one record out: `reason` is one of the phrases above, `detail` is what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Record:
    """A checked record: alternating turns of human and gpt; human begins, gpt ends.

    Attributes:
        id: its id as text; without one, its first image or a digest of its words.
        turns: every image is an <image> tag (in the form "written" runs of ids stay in the text).
        images: for each tag in order the key of the image, relative to the image root, or its ids, int64 (n,).
        task: one of TASKS; where the record names none, derived from its images (in the form "any" only).
        input_mode: how images are read, one of INPUT_MODES; "" where the record does not set it.
        layout, tokenizer: of its ids; "" where the record does not name them.
    """

    id: str
    turns: tuple[str, ...]
    images: tuple[str | np.ndarray, ...] = ()
    task: str = ""
    input_mode: str = ""
    layout: str = ""
    tokenizer: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys among the images."""
        return tuple(image for image in self.images if isinstance(image, str))

    @property
    def runs(self) -> tuple[np.ndarray, ...]:
        """The ids among the images."""
        return tuple(image for image in self.images if not isinstance(image, str))

    @property
    def caption(self) -> str:
        """The single answer of a record about one image, white space normalized. RefusedError for any other record."""
        if not self.images:
            raise RefusedError(NO_IMAGE, "a text-only record")
        if len(self.images) > 1:
            raise RefusedError(NO_CAPTION, f"{len(self.images)} images share the conversation")
        if len(self.turns) != 2:
            raise RefusedError(NO_CAPTION, f"{len(self.turns)} turns, a captioned image has two")
        return " ".join(self.turns[1].split())

    def first_rounds(self, count: int) -> "Record":
        """The record without what follows its first `count` questions and answers."""
        turns = self.turns[: 2 * count]
        return replace(self, turns=turns, images=self.images[: sum(turn.count(IMAGE_TAG) for turn in turns)])


def read_record(record: Any, *, form: Literal["any", "llava", "written"] = "any") -> Record:
    """Check and parse a record of an annotation file.

    `record`: the value read from JSON. `form`: "any": LLaVA's records and ours; runs of ids become <image> tags. "llava": images are named
    and stand in questions only. "written": prompts, whose answers are only references; turns stay as written; answers, tags, runs and task
    are not checked. Raises RefusedError: no or malformed turns, an unknown role, an empty question or answer, an image path that leaves the
    root, image tags without images or images without tags, ids that cannot be read, an unknown task or input_mode.
    """
    turns, keys = _read_turns(record), read_keys(record)
    images: tuple[str | np.ndarray, ...] = keys
    if form != "written":
        for number, answer in enumerate(turns[1::2]):
            if not answer.strip():
                reason = NO_CAPTION if keys and len(turns) == 2 else MALFORMED_TURNS
                raise RefusedError(reason, f"turn {2 * number + 1}, an answer, is empty")
        turns, images = _read_images(turns, keys, llava=form == "llava")
    named = {name: record.get(name) or "" for name in ("task", "input_mode", "layout", "tokenizer")}
    if form == "any":
        named["task"] = named["task"] or _guess_task(turns)
        for name, known, reason in (("task", TASKS, UNKNOWN_TASK), ("input_mode", ("", *INPUT_MODES), UNKNOWN_MODE)):
            if named[name] not in known:
                raise RefusedError(reason, f"'{str(named[name])[:40]}'; known: {', '.join(filter(None, known))}")
    name = record.get("id")
    if name is None:
        name = keys[0] if keys else blake2b("\0".join(turns).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return Record(str(name), turns, images, **{name: str(value) for name, value in named.items()})


def make_record(name: str, task: str, turns: Sequence[str], **fields: str) -> dict[str, Any]:
    """Build a record of our form; `turns` alternate between human and gpt, `fields` stand between id and turns."""
    assert task in TASKS, task
    return {"id": name, "task": task, **fields, "conversations": make_turns(turns)}


def make_turns(texts: Sequence[str]) -> list[dict[str, str]]:
    """The value of "conversations" for texts that alternate between human and gpt."""
    assert len(texts) >= 2 and len(texts) % 2 == 0, texts
    return [{"from": (HUMAN, GPT)[number % 2], "value": text} for number, text in enumerate(texts)]


def image_key(path: Any) -> str:
    """A path of an annotation or list -> the key of the image: relative to the image root, normalized, forward slashes.

    Raises RefusedError: it is no path, is absolute, or leaves the image root through "..".
    """
    if not isinstance(path, str) or not path.strip():
        raise RefusedError(BAD_IMAGE, repr(path)[:80])
    key = posixpath.normpath(path.replace("\\", "/"))
    if _BAD_PATH.search(key) or key.split("/", 1)[0] in ("..", "."):
        raise RefusedError(OUTSIDE_ROOT, path[:80])
    return key


def read_keys(record: Any) -> tuple[str, ...]:
    """Keys of the images that a record names. RefusedError for what is no record, or no path below the image root."""
    if not isinstance(record, dict):
        raise RefusedError(NO_CONVERSATIONS, f"a record of type {type(record).__name__}")
    images = record.get("image")
    if images is None:
        return ()
    return tuple(image_key(path) for path in (images if isinstance(images, list) else [images]))


def _read_turns(record: Any) -> tuple[str, ...]:
    turns = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(turns, list) or not turns:
        found = f"conversations: {turns!r:.60}" if isinstance(record, dict) else f"a record of type {type(record).__name__}"
        raise RefusedError(NO_CONVERSATIONS, found)
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("from"), str) or not isinstance(turn.get("value"), str):
            raise RefusedError(MALFORMED_TURNS, f"turn {number} is not {{'from': ..., 'value': ...}} of strings")
        if turn["from"] not in (HUMAN, GPT):
            raise RefusedError(UNKNOWN_ROLE, f"turn {number} is from '{turn['from'][:40]}'; known: {HUMAN}, {GPT}")
        if turn["from"] != (HUMAN, GPT)[number % 2]:
            raise RefusedError(MALFORMED_TURNS, f"turn {number} is from {turn['from']}; {HUMAN} and {GPT} take turns, {HUMAN} begins")
        if number % 2 == 0 and not turn["value"].strip():
            raise RefusedError(MALFORMED_TURNS, f"turn {number}, a question, is empty")
    if len(turns) % 2:
        raise RefusedError(MALFORMED_TURNS, f"{len(turns)} turns, the last question has no answer")
    return tuple(turn["value"] for turn in turns)


def _read_images(turns: tuple[str, ...], keys: tuple[str, ...], *, llava: bool) -> tuple[tuple[str, ...], tuple[str | np.ndarray, ...]]:
    """Turns with a tag for each image, and the images of the tags. A run of no ids, an image without rows so far, is dropped."""
    has_runs = any(OPEN in turn or CLOSE in turn for turn in turns)
    if llava and has_runs:
        raise RefusedError(RESERVED_TAG, f"{OPEN} or {CLOSE}")
    num_tags = sum(turn.count(IMAGE_TAG) for turn in turns)
    if num_tags != len(keys):
        raise RefusedError(TAG_MISMATCH, f"{num_tags} {IMAGE_TAG} in the conversation, {len(keys)} images")
    if llava and any(IMAGE_TAG in answer for answer in turns[1::2]):
        raise RefusedError(TAG_MISMATCH, f"{IMAGE_TAG} in an answer")
    if not has_runs:
        return turns, keys
    images: list[str | np.ndarray] = []
    rest, texts = iter(keys), []
    for number, turn in enumerate(turns):
        try:
            pieces = split_runs(turn, where=f"turn {number}", allow_empty=True)
        except ValueError as error:
            raise RefusedError(BAD_IDS, str(error)) from error
        for piece in pieces:
            images += [next(rest) for _ in range(piece.text.count(IMAGE_TAG))] if piece.ids is None else [piece.ids] * (len(piece.ids) > 0)
        texts.append("".join(piece.text if piece.ids is None else IMAGE_TAG if len(piece.ids) else "" for piece in pieces))
    return tuple(texts), tuple(images)


def _guess_task(turns: tuple[str, ...]) -> str:
    if any(IMAGE_TAG in answer for answer in turns[1::2]):
        return TEXT_TO_IMAGE
    return IMAGE_TO_TEXT if any(IMAGE_TAG in question for question in turns[::2]) else TEXT_ONLY
