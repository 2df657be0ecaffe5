"""Markers: the four tokens that say where an image begins and ends, whole or compressed."""

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken

from unicode.llm.vocabulary import RESERVED_NAME

NAMES = ("<image_start>", "<image_end>", "<compressed_start>", "<compressed_end>")
_ROLES = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id")


@dataclass(frozen=True)
class Markers:
    """Vocabulary ids of the marker tokens.

    Attributes:
        image_start, image_end: around the ids of an image or of some of its rows.
        compressed_start, compressed_end: around a compressed image, one position per coarse cell.
        added: those of the four whose rows have to be appended to the embedding table.

    Raises:
        ValueError: two markers are one token.
    """

    image_start: int
    image_end: int
    compressed_start: int
    compressed_end: int
    added: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "added", tuple(self.added))
        if len(set(self.ids())) < 4:
            raise ValueError(f"the markers are the tokens {self.ids()}; they must be four different ones")

    def ids(self) -> tuple[int, ...]:
        """Return the four ids: start and end of an image, start and end of a compressed one."""
        return self.image_start, self.image_end, self.compressed_start, self.compressed_end

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` inverts it."""
        return {name.strip("<>"): index for name, index in zip(NAMES, self.ids(), strict=True)} | {"added": list(self.added)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Markers":
        """Inverse of `to_dict`. ValueError for missing or unknown keys."""
        expected = {*(name.strip("<>") for name in NAMES), "added"}
        if not isinstance(values, dict) or set(values) != expected:
            raise ValueError(f"markers have the keys {sorted(expected)}; found {sorted(values) if isinstance(values, dict) else values}")
        return cls(**values)


def choose_markers(text_tokenizer: Any, *, table_rows: int) -> Markers:
    """Find four tokens for the markers: those of their names, else reserved tokens of the vocabulary, else new ones.

    New tokens are added to `text_tokenizer`. The same tokenizer always gives the same markers.

    Args:
        text_tokenizer: a tokenizer of transformers; changed where tokens are added.
        table_rows: rows of the model's embedding table. Markers beyond it are in `Markers.added`; the table has to grow for them.
    """
    vocabulary: dict[str, int] = text_tokenizer.get_vocab()
    spare = iter(reserved_tokens(text_tokenizer, table_rows=table_rows))
    chosen: list[int] = []
    for name in NAMES:
        index = vocabulary.get(name, -1)
        if index < 0:
            index = next(spare, -1)
        if index < 0:
            text_tokenizer.add_tokens([AddedToken(name, special=True, normalized=False)], special_tokens=True)
            index = text_tokenizer.convert_tokens_to_ids(name)
        chosen.append(index)
    start, end, compressed_start, compressed_end = chosen
    return Markers(start, end, compressed_start, compressed_end, added=tuple(index for index in chosen if index >= table_rows))


def reserved_tokens(text_tokenizer: Any, *, table_rows: int) -> list[int]:
    """Return ids of tokens that the vocabulary keeps for uses like this one, ascending; without padding and other roles."""
    roles = {getattr(text_tokenizer, role, None) for role in _ROLES}
    template = str(getattr(text_tokenizer, "chat_template", None) or "")
    return sorted(
        index
        for token, index in text_tokenizer.get_vocab().items()
        if RESERVED_NAME.fullmatch(token)
        and "pad" not in token.lower()
        and index < table_rows
        and index not in roles
        and token not in template
    )
