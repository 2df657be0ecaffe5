"""One record of an annotation file: LLaVA's form is checked and parsed, ours is built."""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from unicode.annotations.templates import DECOMPRESSION, NEXT_ROW, TEXT_TO_IMAGE, UNCONDITIONAL
from unicode.ids.text import CLOSE, OPEN

IMAGE_TO_TEXT, TEXT_ONLY = "image_to_text", "text_only"
TASKS = (IMAGE_TO_TEXT, TEXT_ONLY, TEXT_TO_IMAGE, NEXT_ROW, DECOMPRESSION, UNCONDITIONAL)
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
NO_IDS = "no ids"
BAD_IDS = "malformed ids"
NOT_TEXT = "not Unicode text"
REPEATED = "image taken before"
NOT_CHOSEN = "beyond the share or weight asked for"

_BAD_PATH = re.compile(r"^(/|[A-Za-z]:)|\0")


class RefusedError(Exception):
    """This record is left out and the work goes on: `reason` is one of the phrases above, `detail` says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Conversation:
    """A checked record: turns of human and gpt by turns, beginning with human and ending with gpt."""

    id: str
    images: tuple[str, ...]
    """Keys of the images, relative to the image root, with forward slashes."""
    turns: tuple[str, ...]

    @property
    def caption(self) -> str:
        """The words of a record that describes one image: the single answer, white space made even. RefusedError where it is not that."""
        if not self.images:
            raise RefusedError(NO_IMAGE, "a text-only record")
        if len(self.images) > 1:
            raise RefusedError(NO_CAPTION, f"{len(self.images)} images share the conversation")
        if len(self.turns) != 2:
            raise RefusedError(NO_CAPTION, f"{len(self.turns)} turns, a captioned image has two")
        return " ".join(self.turns[1].split())


def parse_record(record: Any) -> Conversation:
    """Check a record of LLaVA's form.

    Raises:
        RefusedError: it has no conversations, malformed turns, an unknown role, image paths that leave the root, as many image
            tags as it should not have, or text with the tags of ids in it.
    """
    turns = parse_turns(record)
    images = parse_images(record)
    if not all(turn.strip() for turn in turns[1::2]):
        raise RefusedError(NO_CAPTION if images and len(turns) == 2 else MALFORMED_TURNS, "an answer is empty")
    num_tags = sum(turn.count(IMAGE_TAG) for turn in turns[::2])
    if num_tags != len(images):
        raise RefusedError(TAG_MISMATCH, f"{num_tags} {IMAGE_TAG} in the questions, {len(images)} images")
    for turn in turns:
        if OPEN in turn or CLOSE in turn:
            raise RefusedError(RESERVED_TAG, f"{OPEN} or {CLOSE}")
    if any(IMAGE_TAG in turn for turn in turns[1::2]):
        raise RefusedError(TAG_MISMATCH, f"{IMAGE_TAG} in an answer")
    return Conversation(record_id(record, images, turns), images, turns)


def make_record(name: str, task: str, turns: Sequence[str], **fields: str) -> dict[str, Any]:
    """Put a record of our form together; `turns` are spoken by human and gpt by turns, `fields` stand between id and turns."""
    assert task in TASKS, task
    return {"id": name, "task": task, **fields, "conversations": make_turns(turns)}


def make_turns(texts: Sequence[str]) -> list[dict[str, str]]:
    """The value of "conversations" for texts that human and gpt say by turns."""
    assert len(texts) >= 2 and len(texts) % 2 == 0, texts
    return [{"from": (HUMAN, GPT)[number % 2], "value": text} for number, text in enumerate(texts)]


def image_key(path: Any) -> str:
    """A path of an annotation or list -> the key of the image: relative to the image root, normalized, forward slashes.

    Raises:
        RefusedError: it is no path, is absolute, or leaves the image root through "..".
    """
    if not isinstance(path, str) or not path.strip():
        raise RefusedError(BAD_IMAGE, repr(path)[:80])
    key = posixpath.normpath(path.replace("\\", "/"))
    if _BAD_PATH.search(key) or key.split("/", 1)[0] in ("..", "."):
        raise RefusedError(OUTSIDE_ROOT, path[:80])
    return key


def parse_turns(record: Any) -> tuple[str, ...]:
    """The texts of a record's turns, human and gpt by turns. RefusedError where it has none, or roles and order are not those."""
    if not isinstance(record, dict):
        raise RefusedError(NO_CONVERSATIONS, f"a record of type {type(record).__name__}")
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise RefusedError(NO_CONVERSATIONS, f"conversations: {turns!r:.60}")
    values = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("from"), str) or not isinstance(turn.get("value"), str):
            raise RefusedError(MALFORMED_TURNS, f"turn {number} is not {{'from': ..., 'value': ...}} of strings")
        if turn["from"] not in (HUMAN, GPT):
            raise RefusedError(UNKNOWN_ROLE, f"turn {number} is from '{turn['from'][:40]}'; known: {HUMAN}, {GPT}")
        if turn["from"] != (HUMAN, GPT)[number % 2]:
            raise RefusedError(MALFORMED_TURNS, f"turn {number} is from {turn['from']}; {HUMAN} and {GPT} take turns, {HUMAN} begins")
        if number % 2 == 0 and not turn["value"].strip():
            raise RefusedError(MALFORMED_TURNS, f"turn {number}, a question, is empty")
        values.append(turn["value"])
    if len(values) % 2:
        raise RefusedError(MALFORMED_TURNS, f"{len(values)} turns, the last question has no answer")
    return tuple(values)


def record_id(record: dict[str, Any], images: tuple[str, ...], turns: tuple[str, ...]) -> str:
    """The id of a record as text; without one, its first image or a digest of its words stands in."""
    name = record.get("id")
    if name is not None:
        return str(name)
    return images[0] if images else blake2b("\0".join(turns).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def parse_images(record: Any) -> tuple[str, ...]:
    """Keys of the images of a record, none for a text-only one. RefusedError for what is no record or no path below the root."""
    if not isinstance(record, dict):
        raise RefusedError(NO_CONVERSATIONS, f"a record of type {type(record).__name__}")
    images = record.get("image")
    if images is None:
        return ()
    return tuple(image_key(path) for path in (images if isinstance(images, list) else [images]))
