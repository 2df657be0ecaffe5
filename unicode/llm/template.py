"""Conversation templates: turns -> parts of text, each learned or not; text <-> tokens."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

from unicode.annotations.records import IMAGE_TAG
from unicode.ids.text import CLOSE, OPEN

_CACHE_CHARS = 600  # texts up to this length are cached: those of templates recur in every conversation
_encoders: "WeakKeyDictionary[Any, tuple[int, TextEncoder]]" = WeakKeyDictionary()


class TextEncoder:
    """Encodes and decodes stretches of text with a text tokenizer of transformers; made by `text_encoder`.

    Raises ValueError: the tokenizer has no fast backend, or no end token.
    """

    bos_id: int | None  # The start token where the tokenizer begins every text with one
    special_ids: frozenset[int]  # Ids that are no ordinary text
    prefix_after_special: bool  # Whether the tokenizer adds a space in front of text behind a special token, as it may at the beginning
    digest: str  # Of the whole tokenizer; two with the same digest give the same ids

    def __init__(self, text_tokenizer: Any) -> None:
        backend = getattr(text_tokenizer, "backend_tokenizer", None)
        if backend is None:
            kind = type(text_tokenizer).__name__
            raise ValueError(f"the text tokenizer is a {kind} without a tokenizer.json; convert it with AutoTokenizer(...).save_pretrained")
        if text_tokenizer.eos_token_id is None:
            raise ValueError("the text tokenizer has no end token; set eos_token in its tokenizer_config.json")
        self._own = Tokenizer.from_str(backend.to_str())
        self._own.no_truncation()
        self._own.no_padding()
        text = self._own.to_str()
        self.digest = hashlib.sha256(f"{text} {text_tokenizer.eos_token_id}".encode()).hexdigest()[:32]
        state = json.loads(text)
        bare = without_prefix_space(state)
        self._bare = self._own if bare == state else Tokenizer.from_str(json.dumps(bare))
        first = text_tokenizer("a")["input_ids"][:1]
        self.bos_id = first[0] if text_tokenizer.bos_token_id is not None and first == [text_tokenizer.bos_token_id] else None
        added = {index for index, token in self._own.get_added_tokens_decoder().items() if token.special}
        self.special_ids = frozenset(added | set(text_tokenizer.all_special_ids))
        self._cached = lru_cache(maxsize=1024)(self._encode)
        alone, behind_end = (self._encode(text, True, True) for text in ("a", f"{text_tokenizer.eos_token}a"))
        self.prefix_after_special = behind_end[1:] == alone

    def encode(self, text: str, *, prefix: bool = False, control: bool = False) -> list[int]:
        """Return the ids of a stretch of text.

        `prefix`: whether the tokenizer may add a space in front, as it does at the beginning of a text. `control`: whether names of special
        tokens in `text` mean these tokens; in a user's text they are ordinary text.
        """
        encode = self._encode if len(text) > _CACHE_CHARS else self._cached
        return list(encode(text, prefix, control))

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, special tokens by their names; the inverse of `encode(text)`."""
        return self._bare.decode(ids, skip_special_tokens=False)

    def _encode(self, text: str, prefix: bool, control: bool) -> list[int]:
        tokenizer = self._own if prefix else self._bare
        tokenizer.encode_special_tokens = not control
        return tokenizer.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]


def text_encoder(text_tokenizer: Any) -> TextEncoder:
    """Return the cached encoder of a tokenizer; a new one after tokens were added. Errors as `TextEncoder`."""
    size, encoder = _encoders.get(text_tokenizer, (-1, None))
    if encoder is None or size != len(text_tokenizer):
        encoder = TextEncoder(text_tokenizer)
        _encoders[text_tokenizer] = (len(text_tokenizer), encoder)
    return encoder


def without_prefix_space(state: Any) -> Any:
    """Return a copy of a tokenizer's JSON in which encoding adds no space in front of a text and decoding removes none."""
    if isinstance(state, list):
        return [without_prefix_space(part) for part in state if not _only_adds_space(part)]
    if not isinstance(state, dict):
        return state
    kept = {key: {"prepend_scheme": "never", "add_prefix_space": False}.get(key, value) for key, value in state.items()}
    for key in state.keys() & {"normalizer", "normalizers", "pre_tokenizer", "pretokenizers", "decoder", "decoders"}:
        kept[key] = None if _only_adds_space(state[key]) else without_prefix_space(state[key])
    return kept


def _only_adds_space(part: Any) -> bool:
    """Whether a part of a tokenizer only adds a space in front of a text, or only removes it in decoding."""
    return isinstance(part, dict) and (part.get("type") == "Prepend" or (part.get("type") == "Strip" and "content" in part))


TEXT, CONTROL, START, END = "text", "control", "start", "end"
"""Kinds of parts: text; text of a chat template with special tokens in it; the model's start token; the end token of an answer."""
CHAT = "chat"
IMAGE = re.compile(rf"{re.escape(IMAGE_TAG)}|{OPEN}[^<]*{CLOSE}")  # What stands for an image in a turn: a tag, or a run of ids


@dataclass(frozen=True)
class Part:
    """A stretch of a rendered conversation."""

    text: str  # What the template prints; for START and END the name of a token, for which the model's own token is taken
    learned: bool = False  # Whether the model is trained to write it
    kind: str = TEXT  # TEXT, CONTROL, START or END


class Template(ABC):
    """How a conversation is written as text."""

    name: str  # The name in configs
    adds_bos: bool = True  # Whether the tokenizer's start token, if it adds one to every text, comes first
    stop: str = ""  # Text that ends an answer where no end token does; "" where one does

    @abstractmethod
    def render(self, turns: Sequence[str | None]) -> list[Part]:
        """Return the parts of a conversation.

        `turns`: human and gpt by turns, beginning with human; the last answer is None or missing in a prompt. Raises ValueError: no turns,
        or an answer missing before the last.
        """

    def end_id(self, text_tokenizer: Any) -> int:
        """Return the id of the token that ends an answer."""
        return int(text_tokenizer.eos_token_id)


def rounds(turns: Sequence[str | None]) -> list[tuple[str, str | None]]:
    """Return (question, answer) pairs; the answer of the last one is None in a prompt.

    Raises ValueError: no turns, or a turn missing before the last answer.
    """
    texts = [*turns, None] if len(turns) % 2 else list(turns)
    if not texts or any(text is None for text in texts[:-1]):
        raise ValueError(f"a conversation needs a question, and answers to all questions but the last; got {len(turns)} turns")
    return [(str(texts[index]), texts[index + 1]) for index in range(0, len(texts), 2)]


# placeholders of private-use characters, which no template contains
_QUESTION, _ANSWER = "\ue000q{}\ue001", "\ue000a{}\ue001"


class ChatTemplate(Template):
    """The template named "chat": the text tokenizer's own.

    `text_tokenizer`: a tokenizer of transformers with a chat template. Raises ValueError: it has none, it does not print the turns, or ends
    an answer with no special token.
    """

    name, adds_bos = CHAT, False

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
        pairs = rounds(turns)
        scaffold = self._scaffold(len(pairs))
        parts: list[Part] = []
        for number, (question, answer) in enumerate(pairs):
            before, between, behind = scaffold[2 * number : 2 * number + 3]
            parts += _turn(self._split_tail(before)[2] if number else before, question.strip() if self._strips[0] else question)
            if answer is None:
                parts.append(Part(between.rstrip(" "), kind=CONTROL))
                break
            words, end, rest = self._split_tail(behind)
            parts += _turn(between, (answer.strip() if self._strips[1] else answer) + words, learned=True)
            parts.append(Part(end, learned=True, kind=END))
            if number + 1 == len(pairs):
                parts.append(Part(rest, kind=CONTROL))
        return [part for part in parts if part.text]

    def end_id(self, text_tokenizer: Any) -> int:
        return int(text_tokenizer.convert_tokens_to_ids(self._end))

    def _apply(self, question: str, answer: str, count: int) -> str:
        turns = [(role, text.format(number)) for number in range(count) for role, text in (("user", question), ("assistant", answer))]
        messages = [{"role": role, "content": text} for role, text in turns]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:  # a template may raise anything
            raise ValueError(f"the text tokenizer's chat template cannot be rendered ({error}); choose vicuna_v1 or another") from error

    def _render_scaffold(self, count: int) -> list[str]:
        """Return the 2 * count + 1 texts before, between and behind the turns of a conversation of `count` rounds."""
        pieces = re.split("(\ue000[qa][0-9]+\ue001)", self._apply(_QUESTION, _ANSWER, count))
        if pieces[1::2] != [place.format(number) for number in range(count) for place in (_QUESTION, _ANSWER)]:
            raise ValueError("the text tokenizer's chat template does not print every turn once; choose vicuna_v1 or another")
        return pieces[::2]

    def _split_tail(self, tail: str) -> tuple[str, str, str]:
        """Split what follows an answer into the text before the end token, the end token, and the rest."""
        found = min((token for token in self._specials if token in tail), key=tail.find, default=None)  # the longest of equal places
        if found is None:
            raise ValueError(f"the text tokenizer's chat template ends an answer with no special token, but {tail!r}; choose vicuna_v1")
        return tail.partition(found)


def _turn(before: str, words: str, *, learned: bool = False) -> list[Part]:
    """Return what the template prints before a turn, and the turn."""
    control = before.rstrip(" ")
    return [Part(control, kind=CONTROL), Part(before[len(control) :] + words, learned=learned)]


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
class RoundTemplate(Template):
    """A template of fixed text around each question and answer; `first` and `later` stand before a question, `middle` behind it."""

    name: str
    first: str
    later: str
    middle: str
    answer: str
    restart: bool = False  # Whether the start token is printed again before each later question

    def render(self, turns: Sequence[str | None]) -> list[Part]:
        parts: list[Part] = []
        for number, (question, answer) in enumerate(rounds(turns)):
            if number and self.restart:
                parts.append(Part("<s>", kind=START))
            parts.append(Part(f"{self.later if number else self.first}{question}{self.middle}"))
            if answer is not None:
                parts += [Part(self.answer.format(answer), learned=True), Part("</s>", learned=True, kind=END)]
        return parts


class PlainTemplate(Template):
    """LLaVA's pre-training form: of a question only its images, then the caption and a line break; no end token.

    A question without images keeps its text.
    """

    name, stop = "plain", "\n"

    def render(self, turns: Sequence[str | None]) -> list[Part]:
        parts: list[Part] = []
        for question, answer in rounds(turns):
            parts.append(Part("".join(IMAGE.findall(question)) or question))
            if answer is not None:
                parts.append(Part(f"{answer}\n", learned=True))
        return parts


def _user_assistant(name: str, user: str) -> RoundTemplate:
    system = f"A chat between a curious {user} and an artificial intelligence assistant. "
    polite = f"The assistant gives helpful, detailed, and polite answers to the {user}'s questions."
    return RoundTemplate(name, f"{system}{polite} USER: ", "USER: ", " ASSISTANT:", " {}")


def _inst(name: str, system: str) -> RoundTemplate:
    return RoundTemplate(name, f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n", "[INST] ", " [/INST]", " {} ", restart=True)


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        _user_assistant("vicuna_v1", "user"),
        _user_assistant("llava_v1", "human"),
        _inst("llama_2", _LLAMA_2),
        _inst("llava_llama_2", _LLAVA_LLAMA_2),
        PlainTemplate(),
    )
}


def get_template(name: str, text_tokenizer: Any = None) -> Template:
    """Return a template by name; "chat" is the text tokenizer's own.

    Raises ValueError: an unknown name, or a tokenizer without a chat template that can be used.
    """
    if name == CHAT:
        return ChatTemplate(text_tokenizer)
    if name not in TEMPLATES:
        raise ValueError(f"template is '{name}'; known: {', '.join(TEMPLATES)}, {CHAT} (the text tokenizer's own)")
    return TEMPLATES[name]
