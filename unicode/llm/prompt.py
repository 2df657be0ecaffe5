"""The templates by name: those that print what LLaVA's of the same names print, and the text tokenizer's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unicode.llm.chat_template import ChatTemplate
from unicode.llm.template import CHAT, END, IMAGE, START, Part, Template, rounds

__all__ = ["CHAT", "TEMPLATES", "PlainTemplate", "RoundTemplate", "Template", "get_template"]

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
        return ChatTemplate(text_tokenizer)
    if name not in TEMPLATES:
        raise ValueError(f"template is '{name}'; known: {', '.join(TEMPLATES)}, {CHAT} (the text tokenizer's own)")
    return TEMPLATES[name]
