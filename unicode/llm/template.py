"""What a template is: turns of a conversation -> parts of text, each either masked or learned.

The texts of all parts join to the prompt that is printed. The space before an answer belongs to the learned part (" No"), so a prompt to be
answered ends with "ASSISTANT:" and the model writes " No".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from unicode.annotations.conversation import IMAGE_TAG
from unicode.ids.text import CLOSE, OPEN

TEXT, CONTROL, START, END = "text", "control", "start", "end"
"""Kinds of parts: words; words of a chat template, special tokens in them; the model's start token; the end token of an answer."""
CHAT = "chat"
IMAGE = re.compile(rf"{re.escape(IMAGE_TAG)}|{OPEN}[^<]*{CLOSE}")
"""What stands for an image in a turn: a tag, or a run of ids."""


@dataclass(frozen=True)
class Part:
    """A stretch of a rendered conversation.

    Attributes:
        text: what the template prints; for `start` and `end` the name of a token, for which the model's own token is taken.
        learned: whether the model is to learn to write it.
        kind: TEXT, CONTROL, START or END.
    """

    text: str
    learned: bool = False
    kind: str = TEXT


class Template(Protocol):
    """How conversations are put into words."""

    @property
    def name(self) -> str:
        """The name in configs."""

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer's start token, if it has the habit of one, is put before everything."""

    @property
    def stop(self) -> str:
        """Text that ends an answer where no end token does; "" where one does."""

    def render(self, turns: Sequence[str | None]) -> list[Part]:
        """Return the parts of a conversation.

        Args:
            turns: human and gpt by turns, beginning with human; a last answer that is None or missing is to be written.

        Raises:
            ValueError: no turns, or an answer missing before the last.
        """

    def end_id(self, text_tokenizer: Any) -> int:
        """Return the id of the token that ends an answer."""


def rounds(turns: Sequence[str | None]) -> list[tuple[str, str | None]]:
    """Return (question, answer) pairs; the answer of the last one is None when it is to be written.

    Raises:
        ValueError: no turns, or a turn missing before the last answer.
    """
    texts = [*turns, None] if len(turns) % 2 else list(turns)
    if not texts or any(text is None for text in texts[:-1]):
        raise ValueError(f"a conversation needs a question, and answers to all questions but the last; got {len(turns)} turns")
    return [(str(texts[index]), texts[index + 1]) for index in range(0, len(texts), 2)]
