"""Codebooks: a table of rows with exact search, lookup and EMA statistics, in four modes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from unicode.codebook.embedding_table import LanguageTable
from unicode.codebook.search import NORMALIZATIONS, nearest_rows
from unicode.common.distributed import all_reduce_sum_, rank, world_size

MAX_CANDIDATES = 1024  # latents offered per step to rows that nobody uses


class AverageRows(nn.Module):
    """u_j = decayed sum of latents assigned to j / decayed count of j.

    Kept as the quotient and the count, so that a row that no latent comes to stays where it is however long that lasts.

    Args:
        start: (K, E) the rows at step 0.
        decay: share of the old sum and count kept per optimizer step.
        restart_threshold: rows whose count falls below this share of the mean count are dead and restart at a latent of the
            current step; 0 turns restarting off.
    """

    average: torch.Tensor
    count: torch.Tensor

    def __init__(self, start: torch.Tensor, *, decay: float, restart_threshold: float) -> None:
        super().__init__()
        self.decay, self.restart_threshold = decay, restart_threshold
        self.register_buffer("average", start.clone())
        self.register_buffer("count", torch.zeros(len(start)))
        self.steps = 0  # on the host: the draw of restart candidates needs it every step without waiting for the device
        self.pending: list[torch.Tensor] = []
        self.calls = 0  # of `observe` in this step: levels that share the rows, micro-batches

    @torch.no_grad()
    def observe(self, latents: torch.Tensor, codes: torch.Tensor) -> None:
        """Take down which latents (N, E) went to which rows (N,); may be called several times a step."""
        latents, size = latents.float(), len(self.count)
        if not self.pending:
            candidates = min(size, MAX_CANDIDATES) if self.restart_threshold > 0 else 0
            self.pending = [torch.zeros_like(self.average), torch.zeros_like(self.count), latents.new_zeros(candidates, latents.shape[1])]
        sums, counts, offered = self.pending
        sums.index_add_(0, codes, latents)
        counts += torch.bincount(codes, minlength=size)
        self.calls += 1
        self._offer_(offered, latents)

    def _offer_(self, candidates: torch.Tensor, latents: torch.Tensor) -> None:
        """Put latents of the global batch at random places of `candidates`; each rank fills in those that it holds.

        The draw depends on the step alone, so the sum over the ranks is the same table of candidates everywhere, and the
        same as one rank with the whole batch would draw. The c-th call of a step replaces every c-th candidate: each level
        that shares the rows has its say.
        """
        candidates = candidates[:: self.calls]
        generator = torch.Generator().manual_seed(self.steps * 1009 + self.calls)
        chosen = torch.randint(len(latents) * world_size(), (len(candidates),), generator=generator)
        owner, place = chosen // len(latents), chosen % len(latents)
        mine = (owner == rank()).to(latents.device)
        candidates.copy_(torch.where(mine[:, None], latents[place.to(latents.device)], 0.0))

    def get_extra_state(self) -> torch.Tensor:
        """Return the number of updates so far for the state dict."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Take the number of updates from a state dict."""
        self.steps = int(state)

    def statistics(self) -> list[torch.Tensor]:
        """Return what this step has seen, as tensors to be summed over the ranks in place."""
        return self.pending

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
        if len(candidates):
            self._restart_(candidates)
        self.steps += 1
        self.pending, self.calls = [], 0

    def _restart_(self, candidates: torch.Tensor) -> None:
        """Give the rows with the smallest counts, where these are below the threshold, a candidate and the mean count."""
        mean = self.count.mean()
        smallest, rows = self.count.topk(len(candidates), largest=False)
        dead = (smallest < self.restart_threshold * mean).unsqueeze(1)
        self.average[rows] = torch.where(dead, candidates, self.average[rows])
        self.count[rows] = torch.where(dead.squeeze(1), mean, smallest)


MODES = ("free", "frozen", "language", "projected")


@dataclass
class CodebookConfig:
    """How latents become rows of a table."""

    mode: str = "projected"
    """`free` (averages of latents), `frozen` (rows of the language model), `language` (averages pulled to these rows) or
    `projected` (these rows through one learned matrix)."""
    table: str = ""
    """File with the language model's table, from `unicode.run.export_codebook`; every mode but `free` needs it."""
    num_rows: int = 0
    """Rows K of the codebook; 0 takes every eligible row of the table."""
    width: int = 0
    """Width E of the rows: for `projected` 0 means 16, for `free` 0 means the width of the latents; the others take the table's."""
    normalize: str = "auto"
    """What happens to latents before the search: `none`, `standardize`, `match`, `sphere`, `mean_length`; `auto` is `none` for `free`,
    `match` for `frozen` and `language`, for `projected` `sphere` in an HQ-VAE and `standardize` in an RQ-VAE."""
    mean_length: float = 30.0
    """`mean_length` normalization (weights of UniCode-ECCV24): largest mean length of an image's latents."""
    beta: float = 0.25
    """Weight of the commitment loss."""
    decay: float = 0.99
    """Share of old statistics kept per optimizer step."""
    restart_threshold: float = 0.03
    """Modes with averages: a row used less than this share of the mean restarts at a current latent; 0 is never, which `language`
    does better with on small data."""
    entropy_weight: float = 0.0
    """`projected`: weight of the term that spreads codes over the rows; more of it raises usage and makes ids harder to predict."""
    entropy_temperature: float = 0.1
    """Temperature of the soft assignment in that term."""
    entropy_latents: int = 1024
    """Latents per rank and level that enter the entropy term."""

    def __post_init__(self) -> None:
        """Reject values that make no sense."""
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
    """A table of rows in the space of the latents, with what all modes share.

    Subclasses give the rows and say how they move: `training_rows`, `observe`, `statistics` and `update_`.

    Args:
        rows: (K, E) the table at the start.
        row_ids: (K,) int64 vocabulary id of each row.
        config: see `CodebookConfig`.
        learn_scale: whether s follows the latents (mean |z| over mean |e|); otherwise it stays 1.

    Buffers: `rows` (K, E) the table of inference; `row_ids` (K,); `scale` () s; `ratio` () r of mode `language`; `strength` () how far
    values are quantized in training (1 = fully).
    """

    rows: torch.Tensor
    row_ids: torch.Tensor
    scale: torch.Tensor
    scale_steps: torch.Tensor
    ratio: torch.Tensor
    strength: torch.Tensor

    def __init__(self, rows: torch.Tensor, row_ids: torch.Tensor, config: CodebookConfig, *, learn_scale: bool) -> None:
        super().__init__()
        assert len(rows) == len(row_ids), (rows.shape, row_ids.shape)
        self.config, self.learn_scale = config, learn_scale
        self.register_buffer("rows", rows.detach().float().clone())
        self.register_buffer("row_ids", row_ids.clone())
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("scale_steps", torch.zeros(()))
        self.register_buffer("ratio", torch.zeros(()))
        self.register_buffer("strength", torch.ones(()))
        self.pending_norm: torch.Tensor | None = None
        self.pending_usage: torch.Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows K."""
        return len(self.rows)

    @property
    def width(self) -> int:
        """Width E of a row."""
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

    def observe(self, latents: torch.Tensor, codes: torch.Tensor) -> None:
        """Take down what this training step does: usage per row, lengths of latents. (N, E) latents, (N,) codes."""
        with torch.no_grad():
            usage = torch.bincount(codes, minlength=self.num_rows)
            self.pending_usage = usage if self.pending_usage is None else self.pending_usage + usage
            if self.learn_scale:
                lengths = latents.float().norm(dim=1)
                seen = torch.stack([lengths.sum(), lengths.new_tensor(float(len(lengths)))])
                self.pending_norm = seen if self.pending_norm is None else self.pending_norm + seen

    def statistics(self) -> list[torch.Tensor]:
        """Return the float tensors of this step that `update_codebooks_` sums over the ranks in place."""
        return [] if self.pending_norm is None else [self.pending_norm]

    @torch.no_grad()
    def update_(self) -> None:
        """Move the table and the scale by the statistics of this step, then forget them."""
        if self.pending_norm is None:
            return
        target = self.pending_norm[0] / self.pending_norm[1] / self.rows.norm(dim=1).mean().clamp_min(1e-8)
        weight = torch.maximum(1 / (self.scale_steps + 1), torch.full_like(self.scale_steps, 1 - self.config.decay))
        self.scale.lerp_(target, weight)
        self.scale_steps += 1
        self.pending_norm = None

    def refresh_(self) -> None:
        """Bring `rows` up to date after parameters were changed from outside, by averaged weights for instance."""

    def take_usage(self) -> torch.Tensor:
        """Return how often each row was used in training on this rank since the last call, (K,) int64, and start anew."""
        usage, self.pending_usage = self.pending_usage, None
        return torch.zeros_like(self.row_ids) if usage is None else usage

    def soft_assignment_entropy(self, latents: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the entropy term of (B, n, E) latents: mean entropy per latent minus the entropy of the mean, in nats, scalar.

        Minimizing it makes each latent sure of its row and the latents together use many rows (Luo et al. 2024, Open-MAGVIT2,
        equation 4). At most `entropy_latents` latents enter, the same places of every image. The mean assignment is taken over
        all ranks, so the gradient is that of one large batch.
        """
        batch, cells = latents.shape[:2]
        keep = min(cells, max(1, self.config.entropy_latents // batch))
        places = torch.linspace(0, cells - 1, keep, device=latents.device).round().long()
        flat = latents[:, places].flatten(0, 1).float() / self.scale
        logits = (flat @ rows.float().t() - 0.5 * rows.float().square().sum(1)) / self.config.entropy_temperature
        log_share = F.log_softmax(logits, dim=1)
        share = log_share.exp()
        mean_share = share.mean(0)
        with torch.no_grad():
            everywhere = all_reduce_sum_(mean_share.detach().clone()) / world_size()
            log_everywhere = everywhere.clamp_min(1e-12).log()
        return -(share * log_share).sum(1).mean() + (mean_share * log_everywhere).sum()


def update_codebooks_(parts: list[Codebook | nn.Module]) -> None:
    """Update every codebook and normalization once, after an optimizer step, by what all ranks saw.

    Everything that has to be summed travels in one all-reduce; afterwards each rank computes the same update.
    """
    tensors = [tensor for part in parts for tensor in part.statistics()]  # type: ignore[operator]
    if tensors and world_size() > 1:
        flat = all_reduce_sum_(torch.cat([tensor.flatten() for tensor in tensors]))
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))
    for part in parts:
        part.update_()  # type: ignore[operator]


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
