"""A language model's vocabulary, image markers and embedding table, from a Hugging Face folder or a GGUF file."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import AddedToken

from unicode.common.extras import require
from unicode.common.files import read_json, read_tensors
from unicode.common.hub import find_folder

SPECIAL = "special or added token"
BYTE = "raw byte or white space"
UNUSED = "reserved or unused token"

GGUF_KINDS = {SPECIAL: (2, 3, 4), BYTE: (6,), UNUSED: (5,)}
"""Token types of a GGUF file; special are unknown, control and user-defined ones."""

RESERVED_NAME = re.compile(r"[<\[]\|?(?:unused|reserved|extra_id|pad|placeholder|dummy)[^>\]]*[>\]]|madeupword\d+", re.IGNORECASE)
FALLBACK_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a language model."""

    tokens: dict[int, str]  # Id -> the token as the tokenizer spells it; ids may be missing
    marked: dict[str, frozenset[int]]  # Reason -> ids that the tokenizer itself marks as no ordinary text

    def unfit(self) -> dict[str, list[int]]:
        """Return reason -> ids that are not pieces of ordinary text; an id appears under the first reason that applies."""
        byte_level = spells_bytes(self.tokens.values())
        found: dict[str, list[int]] = {SPECIAL: [], BYTE: [], UNUSED: []}
        for index, token in sorted(self.tokens.items()):
            named = {BYTE: is_raw_byte(token, byte_level=byte_level), UNUSED: bool(RESERVED_NAME.fullmatch(token))}
            reason = next((reason for reason in found if named.get(reason) or index in self.marked.get(reason, ())), None)
            if reason is not None:
                found[reason].append(index)
        return found


def spells_bytes(tokens: Iterable[str]) -> bool:
    """Whether a vocabulary spells every byte as one printable character (GPT-2's way), so that 'Ġ' is a space."""
    tokens = set(tokens)
    return "Ġ" in tokens and "▁" not in tokens


def is_raw_byte(token: str, *, byte_level: bool) -> bool:
    """Whether a token is one byte outside printable ASCII: a byte-fallback token, a control character, a space, part of a character."""
    blank = not token.strip() or token == "▁"
    return blank or bool(FALLBACK_BYTE.fullmatch(token)) or (byte_level and len(token) == 1 and not "!" <= token <= "~")


def first_line(error: BaseException, *, limit: int = 160) -> str:
    """Return the first line of a library's error, cut to `limit` characters; the name of its class when it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Read the vocabulary of a Hugging Face folder or a GGUF file.

    Raises ValueError: the folder holds no tokenizer that transformers can open, or the file no vocabulary.
    """
    if Path(path).suffix != ".gguf":
        tokenizer = open_text_tokenizer(path)
        tokens = {index: token for token, index in tokenizer.get_vocab().items()}
        return Vocabulary(tokens, {SPECIAL: frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)})
    reader = open_gguf(path)
    found, types = reader.get_field("tokenizer.ggml.tokens"), reader.get_field("tokenizer.ggml.token_type")
    if found is None:
        raise ValueError(f"{path} holds no vocabulary (tokenizer.ggml.tokens); take a GGUF file that was made with its tokenizer")
    kinds = types.contents() if types is not None else []
    marked = {reason: frozenset(index for index, kind in enumerate(kinds) if kind in of_reason) for reason, of_reason in GGUF_KINDS.items()}
    return Vocabulary(dict(enumerate(found.contents())), marked)


def open_text_tokenizer(path: str | Path, **options: Any) -> Any:
    """Open the text tokenizer of a folder, without the network and without code from the folder; `options` as `from_pretrained`.

    Raises ValueError: the folder holds no tokenizer that transformers can open.
    """
    from transformers import AutoTokenizer

    return open_pretrained(AutoTokenizer, path, f"{path} holds no tokenizer that opens; copy the model's tokenizer files there", **options)


def open_pretrained(kind: Any, path: str | Path, fault: str, **options: Any) -> Any:
    """Open a folder by a class of transformers, without network and code from the folder. ValueError that begins with `fault`: it fails."""
    try:
        return kind.from_pretrained(path, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # transformers fails in many ways on a folder of something else
        raise ValueError(f"{fault} ({first_line(error, limit=300)})") from error


def open_gguf(path: str | Path) -> Any:
    """Open a GGUF file without reading its tensors.

    Raises FileNotFoundError: there is no such file. Raises ValueError: it is no GGUF file, or the package that reads it is not installed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no GGUF file {path}")
    gguf = require("gguf", extra="gguf")
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # on damaged bytes the reader fails in whatever way they lead it to
        raise ValueError(f"{path} is damaged or not a GGUF file ({first_line(error)})") from error


NAMES = ("<image_start>", "<image_end>", "<compressed_start>", "<compressed_end>")
_ROLES = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id")


@dataclass(frozen=True)
class Markers:
    """Vocabulary ids of the marker tokens. Raises ValueError: two markers are one token."""

    image_start: int  # Before the ids of an image or of some of its rows
    image_end: int
    compressed_start: int  # Before a compressed image, one position per coarse cell
    compressed_end: int
    added: tuple[int, ...] = ()  # Those of the four whose rows have to be appended to the embedding table

    def __post_init__(self) -> None:
        object.__setattr__(self, "added", tuple(self.added))
        if len(set(self.ids())) < 4:
            raise ValueError(f"the markers are the tokens {self.ids()}; they must be four different ones")

    def ids(self) -> tuple[int, ...]:
        """Return the four ids: start and end of an image, start and end of a compressed one."""
        return self.image_start, self.image_end, self.compressed_start, self.compressed_end

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Markers":
        """Inverse of `dataclasses.asdict`. ValueError for missing or unknown keys."""
        expected = {one.name for one in fields(cls)}
        if not isinstance(values, dict) or set(values) != expected:
            raise ValueError(f"markers have the keys {sorted(expected)}; found {sorted(values) if isinstance(values, dict) else values}")
        return cls(**values)


def choose_markers(text_tokenizer: Any, *, table_rows: int) -> Markers:
    """Find four tokens for the markers: those of their names, else reserved tokens of the vocabulary, else new ones.

    Reserved tokens are taken in ascending order, without padding, tokens of another role and tokens of the chat template. New tokens are
    added to `text_tokenizer`, a tokenizer of transformers. The same tokenizer always gives the same markers. `table_rows`: rows of the
    model's embedding table. Markers beyond it are in `Markers.added`; the table has to grow for them.
    """
    vocabulary: dict[str, int] = text_tokenizer.get_vocab()
    roles = {getattr(text_tokenizer, role, None) for role in _ROLES}
    template = str(getattr(text_tokenizer, "chat_template", None) or "")
    reserved = {index: token for token, index in vocabulary.items() if RESERVED_NAME.fullmatch(token) and "pad" not in token.lower()}
    spare = iter(sorted(i for i, token in reserved.items() if i < table_rows and i not in roles and token not in template))
    chosen: list[int] = []
    for name in NAMES:
        index = vocabulary[name] if name in vocabulary else next(spare, -1)
        if index < 0:
            text_tokenizer.add_tokens([AddedToken(name, special=True, normalized=False)], special_tokens=True)
            index = text_tokenizer.convert_tokens_to_ids(name)
        chosen.append(index)
    start, end, compressed_start, compressed_end = chosen
    return Markers(start, end, compressed_start, compressed_end, added=tuple(index for index in chosen if index >= table_rows))


NO_TOKEN = "row without a token"
NEAR_ZERO = "row near zero"
REPEATED = "row equal to another"
NEAR_ZERO_NORM = 0.01  # a row this much shorter than the median row was never trained

# names of the table in published architectures
TABLE_NAMES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
GGUF_TABLE = "token_embd.weight"
# the weights of a folder are one file, or several with an index
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Embedding:
    """The input-embedding table of a language model."""

    model: str  # Name of the folder or file
    rows: torch.Tensor  # (V, E) float32
    tokens: dict[int, str]  # Id -> token, for the ids that the tokenizer names
    excluded: dict[str, list[int]]  # Reason -> ids below V that must not stand for a piece of an image, under the first that applies

    def excluded_ids(self) -> torch.Tensor:
        """Return all excluded ids, ascending, (M,) int64."""
        return torch.tensor(sorted(index for ids in self.excluded.values() for index in ids), dtype=torch.long)


def load_embedding(path: str | Path) -> Embedding:
    """Read the table and the vocabulary of a language model; of the weights only the file that holds the table.

    Raises FileNotFoundError: there is no such folder or file. Raises ValueError: it holds no language model, or one without tokenizer; the
    table is not finite.
    """
    path = find_model(path)
    rows = read_rows(path)
    if not torch.isfinite(rows).all():
        raise ValueError(f"the embedding table of {path} holds values that are not finite; the weights are damaged")
    vocabulary, norms = read_vocabulary(path), rows.norm(dim=1)
    by_reason = vocabulary.unfit() | {
        NO_TOKEN: [index for index in range(len(rows)) if index not in vocabulary.tokens],
        NEAR_ZERO: (norms <= NEAR_ZERO_NORM * norms.median()).nonzero().flatten().tolist(),
        REPEATED: repeated_rows(rows),
    }
    seen: set[int] = set()
    excluded = {}
    for reason, ids in by_reason.items():
        excluded[reason] = [index for index in ids if index < len(rows) and index not in seen]
        seen.update(ids)
    name = path.resolve().stem if path.suffix == ".gguf" else path.resolve().name
    return Embedding(name, rows, vocabulary.tokens, excluded)


def find_model(path: str | Path) -> Path:
    """Return the folder of a Hugging Face model, here or on a hub, or the GGUF file (the only one of a folder without config.json).

    Raises FileNotFoundError: there is nothing at `path`. Raises ValueError: there is something else.
    """
    path = find_folder(path, otherwise="give the folder of a model")
    if path.suffix == ".gguf" or (path / "config.json").is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"no model {path}; download one to a folder (hf download NAME --local-dir DIR) and give that folder")
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(files) == 1:
        return files[0]
    if (path / "adapter_config.json").is_file():
        raise ValueError(f"{path} holds a LoRA adapter; give the folder of the model that it was trained on, or merge it first")
    raise ValueError(f"{path} is no language model: expected a folder with config.json and weights, or a .gguf file")


def read_rows(path: Path) -> torch.Tensor:
    """Return the input-embedding table, (V, E) float32."""
    if path.suffix == ".gguf":
        tensor = next((tensor for tensor in open_gguf(path).tensors if tensor.name == GGUF_TABLE), None)
        if tensor is None:
            raise ValueError(f"{path} holds no tensor {GGUF_TABLE}; is it the first part of a split model?")
        from gguf import dequantize

        return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
    files = weight_files(path)
    name = table_name(list(files))
    if name is None:
        return _read_through_the_model(path)
    if files[name].suffix == ".safetensors":
        with safe_open(str(files[name]), "pt") as content:
            rows = content.get_tensor(name)
    else:
        rows = read_tensors(files[name], wanted=f"the tensor {name}")[name]
    return rows.float() if rows.ndim == 2 and rows.is_floating_point() else _read_through_the_model(path)


def weight_files(path: Path) -> dict[str, Path]:
    """Return tensor name -> file for a Hugging Face folder; empty when its weights lie in files of other names.

    Raises FileNotFoundError: the index names a file that is not there. Raises ValueError: a file is damaged.
    """
    for name in INDEX_FILES:
        if (path / name).is_file():
            files = {tensor: path / file for tensor, file in read_json(path / name)["weight_map"].items()}
            for file in set(files.values()):
                if not file.is_file():
                    raise FileNotFoundError(f"no file {file}, which {path / name} names; the download is not complete")
            return files
    file = next((path / name for name in SINGLE_FILES if (path / name).is_file()), None)
    if file is None:
        return {}
    if file.suffix == ".bin":
        return dict.fromkeys(read_tensors(file, wanted="the weights of a language model"), file)
    try:
        with safe_open(str(file), "pt") as content:
            return dict.fromkeys(content.keys(), file)
    except Exception as error:  # safetensors has an error type of its own
        raise ValueError(f"{file} is damaged or not a safetensors file ({first_line(error)}); download it again") from error


def table_name(names: list[str]) -> str | None:
    """Return the tensor among `names` that is the input-embedding table: the known name nearest to the root, None if unclear."""
    known = sorted((name.count("."), name) for name in names if any(f".{name}".endswith(f".{end}") for end in TABLE_NAMES))
    clear = len(known) == 1 or (len(known) > 1 and known[0][0] < known[1][0])
    return known[0][1] if clear else None


def repeated_rows(rows: torch.Tensor) -> list[int]:
    """Return the ids of rows that equal another row bit for bit: copies of one start value, never trained."""
    weights = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=torch.Generator().manual_seed(0))
    keys = torch.cat([(part.contiguous().view(torch.int32).long() * weights).sum(dim=1) for part in rows.split(4096)])
    _, group, counts = keys.unique(return_inverse=True, return_counts=True)
    return (counts[group] > 1).nonzero().flatten().tolist()


def _read_through_the_model(path: Path) -> torch.Tensor:
    """Return the table of the loaded model: slow, but right for architectures that name their weights in another way."""
    from transformers import AutoModelForCausalLM

    model = open_pretrained(AutoModelForCausalLM, path, f"{path} is no causal language model that transformers opens", dtype="auto")
    return model.get_input_embeddings().get_parameter("weight").detach().float()
