"""The language model's embedding table on disk, and which of its rows may become image ids."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from unicode.common.files import atomic_write, stable_bytes

FORMAT = "unicode-table-1"


@dataclass(frozen=True)
class LanguageTable:
    """The input-embedding table of a language model."""

    rows: torch.Tensor  # (V, E) float32, row v belongs to vocabulary id v
    excluded_ids: torch.Tensor  # (M,) int64, ids that never stand for a piece of an image: special, added, byte and unused ones
    model: str  # name of the model that the table comes from
    digest: str  # sha256 of the rows' bytes, hexadecimal

    def select_ids(self, count: int) -> torch.Tensor:
        """Return `count` ids, ascending int64, that may stand for a piece of an image, spread evenly over the vocabulary; all for 0.

        Raises ValueError: the table has fewer eligible rows than asked for.
        """
        eligible = torch.ones(len(self.rows), dtype=torch.bool).index_fill(0, self.excluded_ids, False).nonzero().flatten()
        if count > len(eligible):
            found = f"the table of {self.model} has {len(eligible)} eligible rows of {len(self.rows)}, but {count} were asked for"
            raise ValueError(f"{found}; set model.codebook.num_rows to at most {len(eligible)}, or to 0 for all of them")
        return eligible[torch.linspace(0, len(eligible) - 1, count).round().long()] if count else eligible


def row_digest(rows: torch.Tensor) -> str:
    """Return the sha256 of a tensor's bytes."""
    return hashlib.sha256(rows.contiguous().view(torch.uint8).numpy().data).hexdigest()


def save_table(path: str | Path, rows: torch.Tensor, excluded_ids: torch.Tensor, *, model: str) -> None:
    """Write (V, E) rows and (M,) int64 excluded ids of a table as safetensors, atomically and with the same bytes each time."""
    rows = rows.detach().float().cpu().contiguous()
    metadata = {"format": FORMAT, "model": model, "vocab_size": str(len(rows)), "width": str(rows.shape[1]), "sha256": row_digest(rows)}
    content = stable_bytes({"rows": rows, "excluded_ids": excluded_ids.long().cpu().contiguous()}, metadata)
    with atomic_write(path, "wb") as file:
        file.write(content)


def load_table(path: str | Path) -> LanguageTable:
    """Read a table that `unicode.run.export_codebook` wrote.

    Raises FileNotFoundError: there is no such file. Raises ValueError: the file is not such a table.
    """
    remedy = f"make one with: python -m unicode.run.export_codebook --model HF_DIR --out {path}"
    if not Path(path).is_file():
        raise FileNotFoundError(f"no embedding table '{path}'; {remedy}")
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, expected {FORMAT!r}")
            rows, excluded = file.get_tensor("rows").float(), file.get_tensor("excluded_ids")
    except Exception as error:  # safetensors has an error type of its own for damaged files
        raise ValueError(f"{path} is not an embedding table ({error}); {remedy}") from error
    return LanguageTable(rows, excluded, metadata.get("model", "unknown"), metadata.get("sha256", ""))
