"""Standardization of latents before the search: latents in, latents of zero mean and unit variance per channel out."""

import torch
import torch.nn.functional as F
from torch import nn

NORMALIZATIONS = ("none", "standardize", "match", "sphere", "mean_length")


class LatentNorm(nn.Module):
    """Standardize each channel by running statistics.

    `match` then gives each channel the mean and the deviation that the codebook's rows have in it, so that latents lie where the rows
    lie; `sphere` brings every latent to length one.

    `mean_length` is what UniCode-ECCV24's weights expect: an image whose latents are longer than `length` on average is scaled down
    to that average. There it was the average of the batch, here it is the image's own; for one image alone they are the same.

    The statistics are constants of the forward pass, in training too, and move once per optimizer step together with the
    codebook. So a code never depends on the other images of the batch, and several ranks, or several micro-batches of one
    step, give what one large batch gives. Each level has its own: shared between levels, the statistics fit none of them.

    Args:
        width: channels E of the latents.
        kind: "none" (identity), "standardize" or "sphere".
        decay: share of the old statistics kept per step.
        length: largest mean length for `mean_length`.
        rows: (K, E) the rows that `match` looks at.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    steps: torch.Tensor
    row_mean: torch.Tensor
    row_deviation: torch.Tensor

    def __init__(self, width: int, *, kind: str, decay: float, length: float = 0.0, rows: torch.Tensor | None = None) -> None:
        super().__init__()
        if kind not in NORMALIZATIONS:
            raise ValueError(f"unknown normalization '{kind}'; choose one of {', '.join(NORMALIZATIONS)}")
        self.kind, self.decay, self.length = kind, decay, length
        self.pending: torch.Tensor | None = None
        if kind in ("standardize", "match", "sphere"):
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("variance", torch.ones(width))
            self.register_buffer("steps", torch.zeros(()))
        if kind == "match":
            assert rows is not None
            self.register_buffer("row_mean", rows.mean(0))
            self.register_buffer("row_deviation", rows.std(0, correction=0))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Map (B, n, E) latents to (B, n, E) float32; in training also take their statistics down."""
        if self.kind == "none":
            return latents
        if self.kind == "mean_length":
            mean = latents.float().norm(dim=-1, keepdim=True).mean(dim=-2, keepdim=True)
            return latents * torch.where(mean >= self.length, self.length / mean, 1.0)
        latents = latents.float()
        if self.training:
            self._observe(latents.detach().flatten(0, -2))
        latents = (latents - self.mean) * (self.variance + 1e-5).rsqrt()
        if self.kind == "match":
            return latents * self.row_deviation + self.row_mean
        return F.normalize(latents, dim=-1) if self.kind == "sphere" else latents

    def _observe(self, latents: torch.Tensor) -> None:
        """Add sums and squares of (N, E) latents to what this step has seen."""
        count = torch.full((1, latents.shape[1]), float(len(latents)), device=latents.device)
        # Deviations from the running mean: sums of squares of the raw values would lose digits when the mean is large.
        deviations = latents - self.mean
        seen = torch.cat([count, deviations.sum(0, keepdim=True), deviations.square().sum(0, keepdim=True)])
        self.pending = seen if self.pending is None else self.pending + seen

    def statistics(self) -> list[torch.Tensor]:
        """Return what this step has seen, as tensors to be summed over the ranks in place."""
        return [] if self.pending is None else [self.pending]

    @torch.no_grad()
    def update_(self) -> None:
        """Move the running statistics towards what this step has seen; the first step replaces them."""
        if self.pending is None:
            return
        count, sums, squares = self.pending
        shift = sums / count
        variance = (squares / count - shift.square()).clamp_min(0)
        weight = torch.maximum(1 / (self.steps + 1), torch.full_like(self.steps, 1 - self.decay))
        self.mean += weight * shift
        self.variance.lerp_(variance, weight)
        self.steps += 1
        self.pending = None
