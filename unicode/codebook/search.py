"""Latents -> standardized latents -> indices of the nearest rows of a table, exactly."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

NORMALIZATIONS = ("none", "standardize", "match", "sphere", "mean_length")


class LatentNorm(nn.Module):
    """Normalize latents before the search.

    `standardize` gives each channel mean 0 and deviation 1 by running statistics; `match` then gives it the mean and the deviation of
    the codebook's rows; `sphere` normalizes every latent to length one. `mean_length` is for UniCode-ECCV24's weights: an image whose
    latents are longer than `length` on average is scaled down to that average. UniCode-ECCV24 takes the average of the batch; here it
    is the image's own, which is equal for a batch of one.

    The statistics are constants of the forward pass, in training too, and move once per optimizer step together with the
    codebook. So a code never depends on the other images of the batch, and several ranks or micro-batches of one step are equal to
    one large batch.
    """

    def __init__(self, width: int, *, kind: str, decay: float, length: float = 0.0, rows: torch.Tensor | None = None) -> None:
        super().__init__()
        self.kind, self.decay, self.length = kind, decay, length
        self.pending: list[torch.Tensor] = []  # statistics of this step, summed over the ranks by `update_codebooks_`
        if kind in ("standardize", "match", "sphere"):
            self.mean, self.variance = nn.Buffer(torch.zeros(width)), nn.Buffer(torch.ones(width))
            self.steps = nn.Buffer(torch.zeros(()))
        if kind == "match":
            assert rows is not None
            self.row_mean, self.row_deviation = nn.Buffer(rows.mean(0)), nn.Buffer(rows.std(0, correction=0))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Map (B, n, E) latents to (B, n, E) float32; in training also accumulate their statistics."""
        if self.kind == "none":
            return latents
        if self.kind == "mean_length":
            mean = latents.float().norm(dim=-1, keepdim=True).mean(dim=-2, keepdim=True)
            return latents * torch.where(mean >= self.length, self.length / mean, 1.0)
        latents = latents.float()
        if self.training:
            self._accumulate(latents.detach().flatten(0, -2))
        latents = (latents - self.mean) * (self.variance + 1e-5).rsqrt()
        if self.kind == "match":
            return latents * self.row_deviation + self.row_mean
        return F.normalize(latents, dim=-1) if self.kind == "sphere" else latents

    def _accumulate(self, latents: torch.Tensor) -> None:
        """Add sums and squares of (N, E) latents to the statistics of this step."""
        count = torch.full((1, latents.shape[1]), float(len(latents)), device=latents.device)
        # Deviations from the running mean: sums of squares of the raw values would lose digits when the mean is large.
        deviations = latents - self.mean
        seen = torch.cat([count, deviations.sum(0, keepdim=True), deviations.square().sum(0, keepdim=True)])
        self.pending = [self.pending[0] + seen] if self.pending else [seen]

    @torch.no_grad()
    def update_(self) -> None:
        """Move the running statistics towards those of this step; the first step replaces them."""
        if not self.pending:
            return
        count, sums, squares = self.pending[0]
        shift = sums / count
        weight = (1 / (self.steps + 1)).clamp_min(1 - self.decay)
        self.mean.add_(weight * shift)
        self.variance.lerp_((squares / count - shift.square()).clamp_min(0), weight)
        self.steps.add_(1)
        self.pending = []


# Vectors x rows scored at once: 16 MiB on a CPU (stays near the caches), 512 MiB on a GPU (keeps every multiprocessor busy).
CPU_TILE = (2048, 2048)
GPU_TILE = (4096, 32768)


@torch.no_grad()
def nearest_rows(vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return, for each vector, the index of the row with the smallest Euclidean distance.

    argmin_j |z - e_j|^2 = argmax_j (z . e_j - |e_j|^2 / 2): the squared length of z is the same for every row, so one fused matrix product
    and a maximum give the exact answer, tile by tile, without a tensor of N x K distances. The search runs in float32 even under autocast:
    in bfloat16 up to one code in six differs. `vectors`: (N, E), any floating type. `rows`: (K, E), any floating type. Returns (N,) int64
    in [0, K); the lowest index where several rows are equally close.
    """
    assert vectors.ndim == 2 and rows.ndim == 2 and vectors.shape[1] == rows.shape[1], (vectors.shape, rows.shape)
    with torch.autocast(vectors.device.type, enabled=False):
        vectors, rows = vectors.float(), rows.float()
        offsets = rows.square().sum(dim=1).mul_(-0.5)
        num_vectors, num_rows = CPU_TILE if vectors.device.type == "cpu" else GPU_TILE
        # One buffer for all tiles: freed and asked for anew, tiles of this size leave holes in the heap as large as all of them.
        scores = vectors.new_empty(min(num_vectors, len(vectors)) * min(num_rows, len(rows)))
        parts = [_nearest(part, rows.split(num_rows), offsets.split(num_rows), scores) for part in vectors.split(num_vectors)]
    return torch.cat(parts)


def _nearest(vectors: torch.Tensor, tiles: Sequence[torch.Tensor], offsets: Sequence[torch.Tensor], scores: torch.Tensor) -> torch.Tensor:
    """Return the best row (n,) of each vector (n, E) over all tiles of the table; `scores` is room for n times a tile's rows."""
    best = torch.full((len(vectors),), -torch.inf, device=vectors.device)
    codes, first = torch.zeros_like(best, dtype=torch.long), 0
    for tile, offset in zip(tiles, offsets, strict=True):
        room = scores[: len(vectors) * len(tile)].view(len(vectors), len(tile))
        score, place = torch.addmm(offset, vectors, tile.t(), out=room).max(dim=1)
        better = score > best  # equally good ones keep the lower index
        best, codes = torch.where(better, score, best), torch.where(better, place + first, codes)
        first += len(tile)
    return codes
