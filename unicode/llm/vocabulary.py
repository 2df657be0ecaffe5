"""The vocabulary of a language model: folder or GGUF file -> its tokens, and the ids that must never stand for a piece of an image."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPECIAL = "special or added token"
BYTE = "raw byte or white space"
UNUSED = "reserved or unused token"

# token types of a GGUF file
GGUF_SPECIAL = (2, 3, 4)  # unknown, control, defined by the user
GGUF_UNUSED, GGUF_BYTE = 5, 6

RESERVED_NAME = re.compile(r"[<\[]\|?(?:unused|reserved|extra_id|pad|placeholder|dummy)[^>\]]*[>\]]|madeupword\d+", re.IGNORECASE)
FALLBACK_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a language model.

    Attributes:
        tokens: id -> the token as the tokenizer spells it; ids may be missing.
        marked: reason -> ids that the tokenizer itself marks as no ordinary text.
    """

    tokens: dict[int, str]
    marked: dict[str, frozenset[int]]

    def unfit(self) -> dict[str, list[int]]:
        """Return reason -> ids that are not pieces of ordinary text; an id appears under the first reason that applies."""
        byte_level = spells_bytes(self.tokens.values())
        found: dict[str, list[int]] = {SPECIAL: [], BYTE: [], UNUSED: []}
        for index, token in sorted(self.tokens.items()):
            named = {SPECIAL: False, BYTE: is_raw_byte(token, byte_level=byte_level), UNUSED: bool(RESERVED_NAME.fullmatch(token))}
            for reason, ids in found.items():
                if named[reason] or index in self.marked.get(reason, ()):
                    ids.append(index)
                    break
        return found


def spells_bytes(tokens: Iterable[str]) -> bool:
    """Whether a vocabulary spells every byte as one printable character (GPT-2's way), so that 'Ġ' is a space."""
    tokens = set(tokens)
    return "Ġ" in tokens and "▁" not in tokens


def is_raw_byte(token: str, *, byte_level: bool) -> bool:
    """Whether a token is one byte outside printable ASCII: a byte-fallback token, a control character, a space, part of a character."""
    if FALLBACK_BYTE.fullmatch(token):
        return True
    if not token or token.isspace() or token == "▁":
        return True
    return byte_level and len(token) == 1 and not "!" <= token <= "~"


def first_line(error: BaseException, *, limit: int = 160) -> str:
    """Return the first line of a library's error, cut to `limit` characters; the name of its class when it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Read the vocabulary of a Hugging Face folder or a GGUF file.

    Raises:
        ValueError: the folder holds no tokenizer that transformers can open.
    """
    if Path(path).suffix == ".gguf":
        return _gguf_vocabulary(open_gguf(path))
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # transformers fails in many ways on a folder without a tokenizer
        raise ValueError(f"{path} holds no tokenizer that opens ({first_line(error)}); copy the model's tokenizer files there") from error
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    return Vocabulary(tokens, {SPECIAL: frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)})


def open_gguf(path: str | Path) -> Any:
    """Open a GGUF file without reading its tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no GGUF file, or the package that reads it is not installed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no GGUF file {path}")
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(f"reading {path} needs the package gguf: pip install 'unicode-mllm[gguf]'") from error
    try:
        return GGUFReader(path)
    except Exception as error:  # on damaged bytes the reader fails in whatever way they lead it to
        raise ValueError(f"{path} is damaged or not a GGUF file ({first_line(error)})") from error


def _gguf_vocabulary(reader: Any) -> Vocabulary:
    tokens, types = reader.get_field("tokenizer.ggml.tokens"), reader.get_field("tokenizer.ggml.token_type")
    if tokens is None:
        raise ValueError("the GGUF file holds no vocabulary (tokenizer.ggml.tokens); take one that was made with its tokenizer")
    kinds = types.contents() if types is not None else []
    marked = {
        SPECIAL: frozenset(index for index, kind in enumerate(kinds) if kind in GGUF_SPECIAL),
        BYTE: frozenset(index for index, kind in enumerate(kinds) if kind == GGUF_BYTE),
        UNUSED: frozenset(index for index, kind in enumerate(kinds) if kind == GGUF_UNUSED),
    }
    return Vocabulary(dict(enumerate(tokens.contents())), marked)
