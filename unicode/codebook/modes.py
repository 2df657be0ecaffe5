"""The four modes: where the rows of a codebook come from and how they move."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from unicode.codebook.average import AverageRows
from unicode.codebook.base import Codebook, CodebookConfig
from unicode.codebook.table import LanguageTable

DEFAULT_PROJECTED_WIDTH = 16


class AverageCodebook(Codebook):
    """Rows are averages of the latents assigned to them, and may be pulled to the language model's rows.

    Without a pull this is the codebook of the literature's HQ-VAE and RQ-VAE, at scale 1. With it
    e_j = (1 - r) u_j + r E_{row_ids[j]} (UniCode, ECCV 2024: C' = l C + (1 - l) C_L): r rises from 0 to 1 over training, and at 1
    the codebook *is* the language model's table, to the last bit.

    Args:
        rows: (K, E) the rows at the start.
        row_ids: (K,) their vocabulary ids.
        config: decay and restart threshold.
        pull: whether `rows` stay the target that the averages are pulled to.
    """

    target: torch.Tensor

    def __init__(self, rows: torch.Tensor, row_ids: torch.Tensor, config: CodebookConfig, *, pull: bool) -> None:
        super().__init__(rows, row_ids, config, learn_scale=pull)
        self.ema = AverageRows(rows, decay=config.decay, restart_threshold=config.restart_threshold)
        self.pull = pull
        if pull:
            self.register_buffer("target", rows.clone(), persistent=False)

    def observe(self, latents: torch.Tensor, codes: torch.Tensor) -> None:
        """Take down what this step does, the sums of latents per row too."""
        super().observe(latents, codes)
        self.ema.observe(latents.float() / self.scale, codes)

    def statistics(self) -> list[torch.Tensor]:
        """Return what this step has seen, as tensors to be summed over the ranks in place."""
        return super().statistics() + self.ema.statistics()

    @torch.no_grad()
    def update_(self) -> None:
        """Move the averages, take them (pulled by r) as rows, then move the scale."""
        self.ema.update_()
        if self.pull:  # torch.lerp gives exactly its end at weight 1
            torch.lerp(self.ema.average, self.target, self.ratio, out=self.rows)
        else:
            self.rows.copy_(self.ema.average)
        super().update_()


class ProjectedCodebook(Codebook):
    """Rows are the language model's, standardized per column and mapped by one learned matrix W (D, d) to d dimensions, length one.

    All rows move together when W moves, so rows that nobody uses stay near those that are used and usage stays high (Zhu et al.
    2024, SimVQ; Zhu et al. 2024, VQGAN-LC). Row j belongs to the language model's id from the first step on.

    Args:
        table_rows: (K, D) rows of the language model.
        row_ids: (K,) their vocabulary ids.
        config: the width d.
    """

    table_rows: torch.Tensor

    def __init__(self, table_rows: torch.Tensor, row_ids: torch.Tensor, config: CodebookConfig) -> None:
        standardized = (table_rows - table_rows.mean(0)) / table_rows.std(0, correction=0).clamp_min(1e-6)
        projection = torch.randn(table_rows.shape[1], config.width or DEFAULT_PROJECTED_WIDTH) / math.sqrt(table_rows.shape[1])
        super().__init__(F.normalize(standardized @ projection, dim=1), row_ids, config, learn_scale=True)
        self.register_buffer("table_rows", standardized, persistent=False)
        self.projection = nn.Parameter(projection)

    def training_rows(self) -> torch.Tensor:
        """Return the (K, d) rows under the current projection, with gradient to it."""
        with torch.autocast(self.rows.device.type, enabled=False):
            return F.normalize(self.table_rows @ self.projection, dim=1)

    @torch.no_grad()
    def refresh_(self) -> None:
        """Take the rows of the current projection."""
        self.rows.copy_(self.training_rows())

    def update_(self) -> None:
        """Take the rows of the new projection, then move the scale."""
        self.refresh_()
        super().update_()


def _language_rows(config: CodebookConfig, table: LanguageTable | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the vocabulary ids (K,) of a codebook and their rows (K, D) of the language model's table."""
    if table is None:
        raise ValueError(
            f"model.codebook.mode {config.mode} needs the embedding table of a language model: "
            "set model.codebook.table to a file made by python -m unicode.run.export_codebook --model HF_DIR --out FILE"
        )
    row_ids = table.select_ids(config.num_rows)
    if config.mode != "projected" and config.width not in (0, table.rows.shape[1]):
        raise ValueError(
            f"model.codebook.width {config.width} differs from the width {table.rows.shape[1]} of the table of {table.model}; "
            "set model.codebook.width=0, or use model.codebook.mode=projected, which may have any width"
        )
    return row_ids, table.rows[row_ids]


def _free(config: CodebookConfig, table: LanguageTable | None, channels: int) -> Codebook:
    width = config.width or channels
    return AverageCodebook(torch.randn(config.num_rows, width) / math.sqrt(width), torch.arange(config.num_rows), config, pull=False)


def _frozen(config: CodebookConfig, table: LanguageTable | None, channels: int) -> Codebook:
    row_ids, rows = _language_rows(config, table)
    return Codebook(rows, row_ids, config, learn_scale=True)


def _language(config: CodebookConfig, table: LanguageTable | None, channels: int) -> Codebook:
    row_ids, rows = _language_rows(config, table)
    return AverageCodebook(rows, row_ids, config, pull=True)


def _projected(config: CodebookConfig, table: LanguageTable | None, channels: int) -> Codebook:
    row_ids, rows = _language_rows(config, table)
    return ProjectedCodebook(rows, row_ids, config)


CODEBOOKS: dict[str, Callable[[CodebookConfig, LanguageTable | None, int], Codebook]] = {
    "free": _free,
    "frozen": _frozen,
    "language": _language,
    "projected": _projected,
}


def build_codebook(config: CodebookConfig, table: LanguageTable | None, *, channels: int) -> Codebook:
    """Build one codebook for training.

    Args:
        config: mode and numbers.
        table: the language model's table; None for mode `free`.
        channels: width of the latents it will serve, taken by `free` when the config names no width.

    Raises:
        ValueError: no table, too few eligible rows, or a width that the table does not have.
    """
    return CODEBOOKS[config.mode](config, table, channels)
