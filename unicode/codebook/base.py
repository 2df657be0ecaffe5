"""What every codebook is: a table of rows, a scale, exact search, lookup, and statistics that move it once per optimizer step.

    codes    j* = argmin_j |z / s - e_j|        z (N, E) latents, s > 0 one scale per codebook, e (K, E) the rows
    vectors  z_q = s * e_{j*}
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from unicode.codebook.nearest import nearest_rows
from unicode.codebook.normalize import NORMALIZATIONS
from unicode.common.ranks import all_reduce_sum_, world_size

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
