"""The chat template of a text tokenizer as a template of ours: its words between the turns, and which of them end an answer.

The template is rendered once with place-holders for the turns; what stands between the place-holders is the template's. So nothing has
to be found again in a rendered text, and a prompt to be answered is the beginning of what was trained on, whatever the template does.
Spaces right before a turn go to the turn, because most tokenizers write a space and the word after it as one token.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from unicode.llm.template import CHAT, CONTROL, END, Part, rounds

# place-holders of characters for private use, which no text of a template holds
_QUESTION, _ANSWER = "\ue000q{}\ue001", "\ue000a{}\ue001"


class ChatTemplate:
    """The template named "chat".

    Args:
        text_tokenizer: a tokenizer of transformers with a chat template.

    Raises:
        ValueError: it has none, it does not print the turns, or ends an answer with no special token.
    """

    name, adds_bos, stop = CHAT, False, ""

    def __init__(self, text_tokenizer: Any) -> None:
        if not getattr(text_tokenizer, "chat_template", None):
            raise ValueError("template is 'chat', but the text tokenizer has no chat template; choose vicuna_v1 or another of ours")
        self._tokenizer = text_tokenizer
        self._scaffold = lru_cache(maxsize=64)(self._render_scaffold)
        specials = set(text_tokenizer.all_special_tokens)
        specials |= {token.content for token in text_tokenizer.added_tokens_decoder.values() if token.special}
        self._specials = sorted(specials, key=len, reverse=True)
        spaced = self._apply(f"\t{_QUESTION}\t", f"\t{_ANSWER}\t", 1)
        self._strips = tuple(f"\t{place.format(0)}\t" not in spaced for place in (_QUESTION, _ANSWER))
        self._end = self._split_tail(self._scaffold(1)[-1])[1]

    def __reduce__(self) -> tuple[type["ChatTemplate"], tuple[Any]]:
        return ChatTemplate, (self._tokenizer,)

    def render(self, turns: Sequence[str | None]) -> list[Part]:
        """As `Template.render`."""
        pairs = rounds(turns)
        scaffold = self._scaffold(len(pairs))
        parts: list[Part] = []
        for number, (question, answer) in enumerate(pairs):
            before, between, behind = scaffold[2 * number : 2 * number + 3]
            parts += _spoken(self._split_tail(before)[2] if number else before, question.strip() if self._strips[0] else question)
            if answer is None:
                parts.append(Part(between.rstrip(" "), kind=CONTROL))
                break
            words, end, rest = self._split_tail(behind)
            parts += _spoken(between, (answer.strip() if self._strips[1] else answer) + words, learned=True)
            parts.append(Part(end, learned=True, kind=END))
            if number + 1 == len(pairs):
                parts.append(Part(rest, kind=CONTROL))
        return [part for part in parts if part.text]

    def end_id(self, text_tokenizer: Any) -> int:
        """As `Template.end_id`: the token that the chat template ends an answer with."""
        return int(text_tokenizer.convert_tokens_to_ids(self._end))

    def _apply(self, question: str, answer: str, count: int) -> str:
        messages = []
        for number in range(count):
            messages.append({"role": "user", "content": question.format(number)})
            messages.append({"role": "assistant", "content": answer.format(number)})
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:  # a template may raise whatever it likes
            raise ValueError(f"the text tokenizer's chat template cannot be rendered ({error}); choose vicuna_v1 or another") from error

    def _render_scaffold(self, count: int) -> list[str]:
        """The 2 * count + 1 texts before, between and behind the turns of a conversation of `count` rounds."""
        rest, texts = self._apply(_QUESTION, _ANSWER, count), []
        for number in range(count):
            for place in (_QUESTION.format(number), _ANSWER.format(number)):
                text, found, rest = rest.partition(place)
                if not found or place in rest:
                    raise ValueError("the text tokenizer's chat template does not print every turn once; choose vicuna_v1 or another")
                texts.append(text)
        return [*texts, rest]

    def _split_tail(self, tail: str) -> tuple[str, str, str]:
        """What follows an answer -> the words up to the end token, the end token, the rest."""
        places = [(tail.find(token), token) for token in self._specials if token in tail]
        if not places:
            raise ValueError(f"the text tokenizer's chat template ends an answer with no special token, but {tail!r}; choose vicuna_v1")
        place = min(at for at, _ in places)
        token = next(token for at, token in places if at == place)
        return tail[:place], token, tail[place + len(token) :]


def _spoken(before: str, words: str, *, learned: bool = False) -> list[Part]:
    """A turn and what the template prints before it."""
    control = before.rstrip(" ")
    return [Part(control, kind=CONTROL), Part(before[len(control) :] + words, learned=learned)]
