"""Pieces of text <-> tokens: a piece is encoded as it stands inside a longer text, and decodes to itself character by character.

A sequence is put together from pieces (words of the template, words of the user, an answer), because only then is it known for every
token whether it is to be learned. Tokenizers of the SentencePiece kind put a space before whatever they are given; a piece in the
middle of a text must not get one. So two encoders are kept: the tokenizer's own, and a copy of it that adds no space.
"""

import hashlib
import json
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer

START, AFTER_SPECIAL, INSIDE = "start", "after special token", "inside"
"""Places where a piece may stand: first of all, behind a token that is no text, behind other text."""

_CACHE_CHARS = 600  # pieces up to this length are remembered: those of templates come again and again
_encoders: "WeakKeyDictionary[Any, tuple[int, PieceEncoder]]" = WeakKeyDictionary()


class PieceEncoder:
    """Encodes and decodes pieces with the vocabulary of a text tokenizer of transformers; made by `piece_encoder`.

    Attributes:
        bos_id: the start token where the tokenizer begins every text with one, else None.
        eos_id: the end token.
        special_ids: ids that are no ordinary text.
        digest: of the whole tokenizer; two with the same digest give the same ids.

    Raises:
        ValueError: the tokenizer has no fast backend, or no end token.
    """

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
        self.bos_id: int | None = first[0] if text_tokenizer.bos_token_id is not None and first == [text_tokenizer.bos_token_id] else None
        self.eos_id: int = text_tokenizer.eos_token_id
        added = {index for index, token in self._own.get_added_tokens_decoder().items() if token.special}
        self.special_ids = frozenset(added | set(text_tokenizer.all_special_ids))
        eos, alone = text_tokenizer.eos_token, self._ids(self._own, "a", control=True)
        self._prefix_after_special = self._ids(self._own, f"{eos}a", control=True)[1:] == alone
        self._remember = lru_cache(maxsize=1024)(self._encode)

    def encode(self, text: str, *, place: str = INSIDE, control: bool = False) -> list[int]:
        """Return the ids of a piece.

        Args:
            text: the piece.
            place: START, AFTER_SPECIAL or INSIDE; at the first two the tokenizer's own habit of adding a space is kept.
            control: whether names of special tokens in `text` mean these tokens; in the words of a user they are words.
        """
        own = place == START or (place == AFTER_SPECIAL and self._prefix_after_special)
        if len(text) > _CACHE_CHARS:
            return self._encode(text, own, control)
        return list(self._remember(text, own, control))

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, special tokens by their names; the inverse of `encode(text, place=INSIDE)`."""
        return self._bare.decode(ids, skip_special_tokens=False)

    def _encode(self, text: str, own: bool, control: bool) -> list[int]:
        return self._ids(self._own if own else self._bare, text, control=control)

    @staticmethod
    def _ids(tokenizer: Tokenizer, text: str, *, control: bool) -> list[int]:
        tokenizer.encode_special_tokens = not control
        return tokenizer.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]


def piece_encoder(text_tokenizer: Any) -> PieceEncoder:
    """Return the encoder of a tokenizer, made once and again when tokens were added.

    Raises:
        ValueError: as `PieceEncoder`.
    """
    size, encoder = _encoders.get(text_tokenizer, (-1, None))
    if encoder is None or size != len(text_tokenizer):
        encoder = PieceEncoder(text_tokenizer)
        _encoders[text_tokenizer] = (len(text_tokenizer), encoder)
    return encoder


def without_prefix_space(state: Any) -> Any:
    """Return a copy of a tokenizer's JSON in which nothing adds a space before a text and nothing takes one away in decoding."""
    if isinstance(state, list):
        return [without_prefix_space(part) for part in state if not _only_adds_space(part)]
    if not isinstance(state, dict):
        return state
    kept = {}
    for key, value in state.items():
        if key in ("normalizer", "pre_tokenizer", "decoder"):
            kept[key] = None if _only_adds_space(value) else without_prefix_space(value)
        elif key in ("normalizers", "pretokenizers", "decoders"):
            kept[key] = without_prefix_space(value)
        elif key == "prepend_scheme":
            kept[key] = "never"
        elif key == "add_prefix_space":
            kept[key] = False
        else:
            kept[key] = value
    return kept


def _only_adds_space(part: Any) -> bool:
    """Whether a part of a tokenizer does nothing but add a space before the text, or take it away when decoding."""
    if not isinstance(part, dict):
        return False
    return part.get("type") == "Prepend" or (part.get("type") == "Strip" and "content" in part)
