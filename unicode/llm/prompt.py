"""Templates: turns of a conversation -> parts of text, each either masked or learned.

The texts of all parts join to the prompt that LLaVA's templates of the same names print. The space before an answer belongs to the
learned part (" No"), so a prompt to be answered ends with "ASSISTANT:" and the model writes " No".
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

_POLITE = "The assistant gives helpful, detailed, and polite answers to the {}'s questions."
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  Your answers should "
    "not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your responses are "
    "socially unbiased and positive in nature.\n\nIf a question does not make any sense, or is not factually coherent, explain why "
    "instead of answering something not correct. If you don't know the answer to a question, please don't share false information."
)
_LLAVA_LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist "
    "the user with a variety of tasks using natural language."
)


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


@dataclass(frozen=True)
class RoundTemplate:
    """A template of fixed words around each question and answer; `later` and `first` stand before a question, `middle` behind it."""

    name: str
    first: str
    later: str
    middle: str
    answer: str
    restart: bool = False
    """Whether the start token is printed again before each later question."""
    adds_bos: bool = True
    stop: str = ""

    def render(self, turns: Sequence[str | None]) -> list[Part]:
        """As `Template.render`."""
        parts: list[Part] = []
        for number, (question, answer) in enumerate(rounds(turns)):
            if number and self.restart:
                parts.append(Part("<s>", kind=START))
            parts.append(Part(f"{self.later if number else self.first}{question}{self.middle}"))
            if answer is not None:
                parts += [Part(self.answer.format(answer), learned=True), Part("</s>", learned=True, kind=END)]
        return parts

    def end_id(self, text_tokenizer: Any) -> int:
        """As `Template.end_id`: the tokenizer's own end token."""
        return int(text_tokenizer.eos_token_id)


@dataclass(frozen=True)
class PlainTemplate:
    """LLaVA's pre-training form: of a question only its images, then the caption and a line break; no end token.

    A question without images keeps its words.
    """

    name: str = "plain"
    adds_bos: bool = True
    stop: str = "\n"

    def render(self, turns: Sequence[str | None]) -> list[Part]:
        """As `Template.render`."""
        parts: list[Part] = []
        for question, answer in rounds(turns):
            parts.append(Part("".join(IMAGE.findall(question)) or question))
            if answer is not None:
                parts.append(Part(f"{answer}\n", learned=True))
        return parts

    def end_id(self, text_tokenizer: Any) -> int:
        """As `Template.end_id`; never printed by this template, kept as a second stop."""
        return int(text_tokenizer.eos_token_id)


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        RoundTemplate(
            "vicuna_v1",
            first=f"A chat between a curious user and an artificial intelligence assistant. {_POLITE.format('user')} USER: ",
            later="USER: ",
            middle=" ASSISTANT:",
            answer=" {}",
        ),
        RoundTemplate(
            "llava_v1",
            first=f"A chat between a curious human and an artificial intelligence assistant. {_POLITE.format('human')} USER: ",
            later="USER: ",
            middle=" ASSISTANT:",
            answer=" {}",
        ),
        RoundTemplate("llama_2", f"[INST] <<SYS>>\n{_LLAMA_2}\n<</SYS>>\n\n", "[INST] ", " [/INST]", " {} ", restart=True),
        RoundTemplate("llava_llama_2", f"[INST] <<SYS>>\n{_LLAVA_LLAMA_2}\n<</SYS>>\n\n", "[INST] ", " [/INST]", " {} ", restart=True),
        PlainTemplate(),
    )
}


def get_template(name: str, text_tokenizer: Any = None) -> Template:
    """Return a template by name; "chat" is the text tokenizer's own.

    Raises:
        ValueError: an unknown name, or a tokenizer without a chat template that can be used.
    """
    if name == CHAT:
        from unicode.llm.chat_template import ChatTemplate

        return ChatTemplate(text_tokenizer)
    if name not in TEMPLATES:
        raise ValueError(f"template is '{name}'; known: {', '.join(TEMPLATES)}, {CHAT} (the text tokenizer's own)")
    return TEMPLATES[name]


def rounds(turns: Sequence[str | None]) -> list[tuple[str, str | None]]:
    """Return (question, answer) pairs; the answer of the last one is None when it is to be written.

    Raises:
        ValueError: no turns, or a turn missing before the last answer.
    """
    texts = [*turns, None] if len(turns) % 2 else list(turns)
    if not texts or any(text is None for text in texts[:-1]):
        raise ValueError(f"a conversation needs a question, and answers to all questions but the last; got {len(turns)} turns")
    return [(str(texts[index]), texts[index + 1]) for index in range(0, len(texts), 2)]
