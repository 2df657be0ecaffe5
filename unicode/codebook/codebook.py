"""Codebooks: latents and a table of rows -> codes, rows and their EMA statistics, in four modes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from unicode.codebook.embedding_table import LanguageTable
from unicode.codebook.search import NORMALIZATIONS, nearest_rows
from unicode.common.distributed import all_reduce_sum_, rank, world_size

MAX_CANDIDATES = 1024  # latents offered per step to unused rows
DEFAULT_PROJECTED_WIDTH = 16
MODES = ("free", "frozen", "language", "projected")


@dataclass
class CodebookConfig:
    """How latents become rows of a table."""

    mode: str = "projected"
    """`free` (EMA of latents), `frozen` (rows of the language model), `language` (EMA pulled to these rows) or `projected` (these rows
    through one learned matrix)."""
    table: str = ""  # File with the language model's table, from `unicode.run.export_codebook`; every mode but `free` needs it
    num_rows: int = 0  # Rows K of the codebook; 0 takes every eligible row of the table
    width: int = 0
    """Width E of the rows: for `projected` 0 means 16, for `free` 0 means the width of the latents; the others take the table's."""
    normalize: str = "auto"
    """What happens to latents before the search: `none`, `standardize`, `match`, `sphere`, `mean_length`; `auto` is `none` for `free`,
    `match` for `frozen` and `language`, for `projected` `sphere` in an HQ-VAE and `standardize` in an RQ-VAE."""
    mean_length: float = 30.0  # `mean_length` normalization (weights of UniCode-ECCV24): largest mean length of an image's latents
    beta: float = 0.25  # Weight of the commitment loss
    decay: float = 0.99  # Share of old statistics kept per optimizer step
    restart_threshold: float = 0.03
    """Modes with an EMA: a row used less than this share of the mean restarts at a current latent; 0: never, which
    suits `language` on small data."""
    entropy_weight: float = 0.0
    """`projected`: weight of the term that spreads codes over the rows; more of it raises usage and makes ids harder to predict."""
    entropy_temperature: float = 0.1  # Temperature of the soft assignment in that term
    entropy_latents: int = 1024  # Latents per rank and level that enter the entropy term

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"model.codebook.mode '{self.mode}' is unknown; choose one of {', '.join(MODES)}")
        if self.mode == "free" and self.num_rows < 1:
            raise ValueError("model.codebook.mode free has no table to take its size from; set model.codebook.num_rows, for example 8192")
        if self.normalize not in ("auto", *NORMALIZATIONS):
            raise ValueError(f"model.codebook.normalize '{self.normalize}' is unknown; choose auto, {', '.join(NORMALIZATIONS)}")
        if self.num_rows < 0 or self.width < 0:
            raise ValueError(f"model.codebook.num_rows ({self.num_rows}) and model.codebook.width ({self.width}) cannot be negative")
        if not 0 < self.decay < 1:
            raise ValueError(f"model.codebook.decay {self.decay} must lie between 0 and 1")
        if not 0 <= self.restart_threshold < 1:
            raise ValueError(f"model.codebook.restart_threshold {self.restart_threshold} must lie in [0, 1)")


class Codebook(nn.Module):
    """A table of rows in the space of the latents; as it is here, the rows stay fixed (mode `frozen`, and every mode in inference).

    With `learn_scale` s follows the latents (mean |z| over mean |e|); otherwise it stays 1.
    """

    def __init__(self, rows: torch.Tensor, row_ids: torch.Tensor, config: CodebookConfig, *, learn_scale: bool) -> None:
        super().__init__()
        assert len(rows) == len(row_ids), (rows.shape, row_ids.shape)
        self.config, self.learn_scale = config, learn_scale
        self.rows = nn.Buffer(rows.detach().float().clone())  # (K, E) the table of inference
        self.row_ids = nn.Buffer(row_ids.clone())  # (K,) int64 vocabulary id of each row
        self.scale = nn.Buffer(torch.ones(()))  # () s
        self.scale_steps = nn.Buffer(torch.zeros(()))  # () updates of s so far
        self.ratio = nn.Buffer(torch.zeros(()))  # () r of mode `language`
        self.strength = nn.Buffer(torch.ones(()))  # () how far values are quantized in training, 1 fully
        self.usage = nn.Buffer(torch.zeros_like(row_ids), persistent=False)  # (K,) int64, see `take_usage`
        self.pending: list[torch.Tensor] = []  # statistics of this step, summed over the ranks by `update_codebooks_`

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    def training_rows(self) -> torch.Tensor:
        """Return the (K, E) rows of this training step; with gradient where the mode learns them by gradient."""
        return self.rows

    def search(self, latents: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return the codes (...) of the rows closest to latents (..., E) over the scale; always in float32."""
        flat = latents.detach().flatten(0, -2).float() / self.scale
        return nearest_rows(flat, (self.rows if rows is None else rows).detach()).view(latents.shape[:-1])

    def lookup(self, codes: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return (..., E) float32 `s * e_j` for codes (...)."""
        return self.scale * F.embedding(codes, self.rows if rows is None else rows)

    @torch.no_grad()
    def accumulate(self, latents: torch.Tensor, codes: torch.Tensor) -> None:
        """Add the statistics of latents (N, E) and their codes (N,) to those of this step; may be called several times a step."""
        self.usage.index_add_(0, codes, torch.ones_like(codes))
        if self.learn_scale:
            lengths = latents.float().norm(dim=1)
            seen = torch.stack([lengths.sum(), torch.full_like(lengths[0], len(lengths))])
            self.pending = [self.pending[0] + seen] if self.pending else [seen]

    @torch.no_grad()
    def update_(self) -> None:
        """Move the scale by the statistics of this step, then forget them; subclasses move their rows first."""
        if not self.pending:
            return
        total, count = self.pending[0]
        target = total / count / self.rows.norm(dim=1).mean().clamp_min(1e-8)
        self.scale.lerp_(target, (1 / (self.scale_steps + 1)).clamp_min(1 - self.config.decay))
        self.scale_steps.add_(1)
        self.pending = []

    def refresh_(self) -> None:
        """Bring `rows` up to date after parameters were changed from outside, for example by averaged weights."""

    def take_usage(self) -> torch.Tensor:
        """Return how often each row was used in training on this rank since the last call, (K,) int64, and reset the counts."""
        usage = self.usage.clone()
        self.usage.zero_()
        return usage

    def soft_assignment_entropy(self, latents: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the entropy term of (B, n, E) latents: mean entropy per latent minus the entropy of the mean, in nats, scalar.

        Minimizing it makes each latent sure of its row and the latents together use many rows (Luo et al. 2024, Open-MAGVIT2,
        equation 4). At most `entropy_latents` latents enter, the same places of every image. The mean assignment is taken over
        all ranks, so the gradient is that of one large batch. It is computed in float32 outside autocast.
        """
        batch, cells = latents.shape[:2]
        keep = min(cells, max(1, self.config.entropy_latents // batch))
        places = torch.linspace(0, cells - 1, keep, device=latents.device).round().long()
        with torch.autocast(latents.device.type, enabled=False):
            flat, rows = latents[:, places].flatten(0, 1).float() / self.scale, rows.float()
            log_share = F.log_softmax((flat @ rows.t() - 0.5 * rows.square().sum(1)) / self.config.entropy_temperature, dim=1)
            share = log_share.exp()
            mean_share = share.mean(0)
            with torch.no_grad():
                log_global = (all_reduce_sum_(mean_share.clone()) / world_size()).clamp_min(1e-12).log()
            return (mean_share * log_global).sum() - (share * log_share).sum(1).mean()


def update_codebooks_(parts: Iterable[nn.Module]) -> None:
    """Update codebooks and normalizations once, after an optimizer step, by the statistics of all ranks.

    All statistics (the tensors in `pending` of the parts and their submodules) are summed in one all-reduce; afterwards each rank
    computes the same update.
    """
    parts = list(parts)
    tensors = [tensor for part in parts for module in part.modules() for tensor in getattr(module, "pending", ())]
    if tensors and world_size() > 1:
        flat = all_reduce_sum_(torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))
    for part in parts:
        part.update_()  # type: ignore[operator]


class RowAverages(nn.Module):
    """u_j = decayed sum of latents assigned to j / decayed count of j.

    The state is the quotient and the count, so a row without latents keeps its place. Rows whose count falls below
    `restart_threshold` of the mean count restart at a latent of the current step; 0 turns restarting off.
    """

    def __init__(self, start: torch.Tensor, *, decay: float, restart_threshold: float) -> None:
        super().__init__()
        self.decay, self.restart_threshold = decay, restart_threshold
        self.average, self.count = nn.Buffer(start.clone()), nn.Buffer(torch.zeros(len(start)))
        self.steps = 0  # on the host: the choice of restart candidates needs it every step without waiting for the device
        self.pending: list[torch.Tensor] = []
        self.calls = 0  # of `accumulate` in this step: levels that share the rows, micro-batches

    @torch.no_grad()
    def accumulate(self, latents: torch.Tensor, codes: torch.Tensor) -> None:
        """Add latents (N, E) and their codes (N,) to the sums and counts of this step."""
        latents = latents.float()
        if not self.pending:
            room = min(len(self.count), MAX_CANDIDATES) if self.restart_threshold > 0 else 0
            self.pending = [torch.zeros_like(self.average), torch.zeros_like(self.count), latents.new_zeros(room, latents.shape[1])]
        sums, counts, candidates = self.pending
        sums.index_add_(0, codes, latents)
        counts.index_add_(0, codes, torch.ones_like(latents[:, 0]))
        self.calls += 1
        # Latents of the global batch become candidates, chosen by the step alone; each rank fills in its own, so the sum over the ranks is
        # what one rank with the whole batch would choose. The c-th call replaces every c-th, so each level that shares rows contributes.
        candidates = candidates[:: self.calls]
        generator = torch.Generator().manual_seed(self.steps * 1009 + self.calls)
        chosen = torch.randint(len(latents) * world_size(), (len(candidates),), generator=generator).to(latents.device, non_blocking=True)
        own = chosen // len(latents) == rank()
        candidates.copy_(torch.where(own[:, None], latents[chosen % len(latents)], 0.0))

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.steps = int(state)

    @torch.no_grad()
    def update_(self) -> None:
        """Move the rows towards the latents of this step, and restart the dead ones."""
        if not self.pending:
            return
        sums, counts, candidates = self.pending
        kept = self.count * self.decay
        self.count.copy_(kept + (1 - self.decay) * counts)
        seen = self.count.clamp_min(torch.finfo(torch.float32).tiny)
        share = torch.where(self.count > 0, kept / seen, 1.0)
        self.average.mul_(share.unsqueeze(1)).add_(sums.mul_(((1 - self.decay) / seen).unsqueeze(1)))
        if len(candidates):  # the rows with the smallest counts, where these are below the threshold, get a candidate and the mean count
            mean = self.count.mean()
            smallest, rows = self.count.topk(len(candidates), largest=False)
            dead = smallest < self.restart_threshold * mean
            self.average[rows] = torch.where(dead.unsqueeze(1), candidates, self.average[rows])
            self.count[rows] = torch.where(dead, mean, smallest)
        self.steps += 1
        self.pending, self.calls = [], 0


class FixedRows(nn.Module):
    """(K, D) rows of the language model that several codebooks share as one submodule; in no checkpoint."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = nn.Buffer(rows, persistent=False)


class EMACodebook(Codebook):
    """Rows are averages of the latents assigned to them, and may be pulled to the language model's rows.

    Without a target this is the codebook of the literature's HQ-VAE and RQ-VAE, at scale 1. With it
    e_j = (1 - r) u_j + r E_{row_ids[j]} (UniCode, ECCV 2024: C' = l C + (1 - l) C_L): r rises from 0 to 1 over training, and at 1
    the codebook *is* the language model's table, to the last bit.
    """

    def __init__(self, rows: torch.Tensor, row_ids: torch.Tensor, config: CodebookConfig, *, target: FixedRows | None) -> None:
        super().__init__(rows, row_ids, config, learn_scale=target is not None)
        self.ema = RowAverages(rows, decay=config.decay, restart_threshold=config.restart_threshold)
        self.target = target

    def accumulate(self, latents: torch.Tensor, codes: torch.Tensor) -> None:
        super().accumulate(latents, codes)
        self.ema.accumulate(latents.float() / self.scale, codes)

    @torch.no_grad()
    def update_(self) -> None:
        self.ema.update_()
        if self.target is not None:  # torch.lerp gives exactly its end at weight 1
            torch.lerp(self.ema.average, self.target.rows, self.ratio, out=self.rows)
        else:
            self.rows.copy_(self.ema.average)
        super().update_()


class ProjectedCodebook(Codebook):
    """Rows are the language model's, standardized per column and mapped by one learned matrix W (D, d) to d dimensions, length one.

    All rows move together when W moves, so unused rows stay near used ones and usage stays high (Zhu et al. 2024, SimVQ; Zhu et al.
    2024, VQGAN-LC). Row j belongs to the language model's id from the first step on.
    """

    def __init__(self, table: FixedRows, row_ids: torch.Tensor, config: CodebookConfig) -> None:
        width = table.rows.shape[1]
        projection = torch.randn(width, config.width or DEFAULT_PROJECTED_WIDTH) / math.sqrt(width)
        super().__init__(F.normalize(table.rows @ projection, dim=1), row_ids, config, learn_scale=True)
        self.table = table
        self.projection = nn.Parameter(projection)

    def training_rows(self) -> torch.Tensor:
        with torch.autocast(self.rows.device.type, enabled=False):
            return F.normalize(self.table.rows @ self.projection, dim=1)

    @torch.no_grad()
    def refresh_(self) -> None:
        self.rows.copy_(self.training_rows())

    def update_(self) -> None:
        self.refresh_()
        super().update_()


def build_codebooks(config: CodebookConfig, table: LanguageTable | None, *, channels: Sequence[int]) -> list[Codebook]:
    """Build the codebooks of a stack for training; they share the rows of the language model's table, which only mode `free` does without.

    `channels`: width of the latents of each codebook, taken by `free` when the config names no width. Raises ValueError: no table, too few
    eligible rows, or a width that the table does not have.
    """
    if config.mode == "free":
        row_ids = torch.arange(config.num_rows)
        starts = (torch.randn(config.num_rows, width) / math.sqrt(width) for width in (config.width or each for each in channels))
        return [EMACodebook(rows, row_ids, config, target=None) for rows in starts]
    if table is None:
        remedy = "set model.codebook.table to a file made by python -m unicode.run.export_codebook --model HF_DIR --out FILE"
        raise ValueError(f"model.codebook.mode {config.mode} needs the embedding table of a language model: {remedy}")
    row_ids = table.select_ids(config.num_rows)
    rows = table.rows[row_ids]
    if config.mode == "projected":
        standardized = FixedRows((rows - rows.mean(0)) / rows.std(0, correction=0).clamp_min(1e-6))
        return [ProjectedCodebook(standardized, row_ids, config) for _ in channels]
    if config.width not in (0, rows.shape[1]):
        remedy = "set model.codebook.width=0, or use model.codebook.mode=projected, which may have any width"
        found = f"model.codebook.width {config.width} differs from the width {rows.shape[1]} of the table of {table.model}"
        raise ValueError(f"{found}; {remedy}")
    if config.mode == "frozen":
        return [Codebook(rows, row_ids, config, learn_scale=True) for _ in channels]
    target = FixedRows(rows)
    return [EMACodebook(rows, row_ids, config, target=target) for _ in channels]
