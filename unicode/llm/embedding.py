"""The input-embedding table of a language model: a Hugging Face folder or a GGUF file -> rows, and the ids that are no image ids."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from unicode.common.records import read_json
from unicode.common.tensors import read_tensors
from unicode.llm.vocabulary import Vocabulary, first_line, open_gguf, read_vocabulary

NO_TOKEN = "row without a token"
NEAR_ZERO = "row near zero"
REPEATED = "row equal to another"

# a row this much shorter than the median row was never trained
NEAR_ZERO_NORM = 0.01

# how the published architectures call the table
TABLE_NAMES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
GGUF_TABLE = "token_embd.weight"

# where the weights of a folder may lie: one file, or an index of several
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Embedding:
    """The input-embedding table of a language model.

    Attributes:
        model: name of the folder or file.
        rows: (V, E) float32.
        tokens: id -> token, as far as the tokenizer has one.
        excluded: reason -> ids below V that must not stand for a piece of an image; no id appears twice.
    """

    model: str
    rows: torch.Tensor
    tokens: dict[int, str]
    excluded: dict[str, list[int]]

    def excluded_ids(self) -> torch.Tensor:
        """Return all excluded ids, ascending, (M,) int64."""
        return torch.tensor(sorted(index for ids in self.excluded.values() for index in ids), dtype=torch.long)


def load_embedding(path: str | Path) -> Embedding:
    """Read the table and the vocabulary of a language model; of the weights only the file that holds the table.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: it holds no language model, or one without tokenizer; the table is not finite.
    """
    path = find_model(path)
    rows = read_rows(path)
    if not torch.isfinite(rows).all():
        raise ValueError(f"the embedding table of {path} holds values that are not finite; the weights are damaged")
    vocabulary = read_vocabulary(path)
    name = path.resolve().stem if path.suffix == ".gguf" else path.resolve().name
    return Embedding(name, rows, vocabulary.tokens, find_excluded(rows, vocabulary))


def find_model(path: str | Path) -> Path:
    """Return the folder of a Hugging Face model, or the GGUF file (the only one of a folder without config.json).

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: there is something else.
    """
    path = Path(path)
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
        return _read_gguf(path)
    files = weight_files(path)
    name = table_name(list(files))
    if name is None:
        return _read_through_the_model(path)
    file = files[name]
    if file.suffix == ".safetensors":
        with safe_open(str(file), "pt") as content:
            rows = content.get_tensor(name)
    else:
        rows = read_tensors(file, wanted=f"the tensor {name}")[name]
    if rows.ndim != 2 or not rows.is_floating_point():
        return _read_through_the_model(path)
    return rows.float()


def weight_files(path: Path) -> dict[str, Path]:
    """Return tensor name -> file for a Hugging Face folder; empty when its weights lie in files of other names.

    Raises:
        FileNotFoundError: the index names a file that is not there.
        ValueError: a file is damaged.
    """
    for name in INDEX_FILES:
        if (path / name).is_file():
            files = {tensor: path / file for tensor, file in read_json(path / name)["weight_map"].items()}
            for file in set(files.values()):
                if not file.is_file():
                    raise FileNotFoundError(f"no file {file}, which {path / name} names; the download is not complete")
            return files
    for name in SINGLE_FILES:
        file = path / name
        if not file.is_file():
            continue
        if file.suffix == ".bin":
            return dict.fromkeys(read_tensors(file, wanted="the weights of a language model"), file)
        try:
            with safe_open(str(file), "pt") as content:
                return dict.fromkeys(content.keys(), file)
        except Exception as error:  # safetensors has an error type of its own
            raise ValueError(f"{file} is damaged or not a safetensors file ({first_line(error)}); download it again") from error
    return {}


def table_name(names: list[str]) -> str | None:
    """Return the tensor among `names` that is the input-embedding table: the known name nearest to the root, None if unclear."""
    known = sorted((name.count("."), name) for name in names if any(f".{name}".endswith(f".{end}") for end in TABLE_NAMES))
    if not known or (len(known) > 1 and known[0][0] == known[1][0]):
        return None
    return known[0][1]


def find_excluded(rows: torch.Tensor, vocabulary: Vocabulary) -> dict[str, list[int]]:
    """Return reason -> ids that must not stand for a piece of an image; an id appears under the first reason that applies.

    Args:
        rows: (V, E) float32.
        vocabulary: its tokens; ids from V on have no row and are left out.
    """
    excluded = {reason: [index for index in ids if index < len(rows)] for reason, ids in vocabulary.unfit().items()}
    norms = rows.norm(dim=1)
    by_row = {
        NO_TOKEN: [index for index in range(len(rows)) if index not in vocabulary.tokens],
        NEAR_ZERO: (norms <= NEAR_ZERO_NORM * norms.median()).nonzero().flatten().tolist(),
        REPEATED: repeated_rows(rows),
    }
    seen = {index for ids in excluded.values() for index in ids}
    for reason, ids in by_row.items():
        excluded[reason] = [index for index in ids if index not in seen]
        seen.update(ids)
    return excluded


def repeated_rows(rows: torch.Tensor) -> list[int]:
    """Return the ids of rows that equal another row bit for bit: copies of one start value, never trained."""
    weights = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=torch.Generator().manual_seed(0))
    keys = torch.cat([(part.contiguous().view(torch.int32).long() * weights).sum(dim=1) for part in rows.split(4096)])
    _, group, counts = keys.unique(return_inverse=True, return_counts=True)
    return (counts[group] > 1).nonzero().flatten().tolist()


def _read_gguf(path: Path) -> torch.Tensor:
    reader = open_gguf(path)
    from gguf import dequantize

    for tensor in reader.tensors:
        if tensor.name == GGUF_TABLE:
            return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
    raise ValueError(f"{path} holds no tensor {GGUF_TABLE}; is it the first part of a split model?")


def _read_through_the_model(path: Path) -> torch.Tensor:
    """Load the whole model and ask it for its table: slow, but right for architectures whose weights have names of their own."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    except Exception as error:  # transformers fails in many ways on a folder that is no model
        raise ValueError(f"{path} is no causal language model that transformers opens ({first_line(error)})") from error
    return model.get_input_embeddings().get_parameter("weight").detach().float()
