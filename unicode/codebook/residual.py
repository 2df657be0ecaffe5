"""Residual quantization (RQ): each pass names the row closest to what the passes before it left over.

Follows RQ-VAE (Lee et al. 2022, section 3.1.2): the passes run on detached residuals, commitment is taken against every partial
sum, and the straight-through step spans the whole sum.
"""

import torch

from unicode.codebook.base import Codebook
from unicode.codebook.normalize import LatentNorm
from unicode.codebook.stack import Stack, Stacked, to_cells, to_map, width_change
from unicode.codebook.straight_through import commitment_loss, straight_through


class ResidualQuantizer(Stack):
    """`depth` passes over one grid.

    Args:
        channels: channels C of the map that enters and leaves.
        codebooks: one per pass, or one that all passes share.
        norm: normalization before the first pass.
        depth: number of passes D.
    """

    def __init__(self, channels: int, codebooks: list[Codebook], norm: LatentNorm, *, depth: int) -> None:
        super().__init__(codebooks, [norm])
        assert len(codebooks) in (1, depth), (len(codebooks), depth)
        self.num_levels, self.out_channels = depth, channels
        self.into = width_change(channels, codebooks[0].width)
        self.out = width_change(codebooks[0].width, channels)

    def forward(self, latents: torch.Tensor) -> Stacked:
        """Quantize a map of latents (B, C, h, w)."""
        cells = self.norms[0](to_cells(self.into(latents)))
        left, total = cells.float(), torch.zeros((), device=cells.device)
        codes, commitments, entropies = [], [], []
        for level in range(self.num_levels):
            level_codes, vectors, entropy = self.quantize_cells(level, left)
            left, total = left - vectors.detach(), total + vectors
            codes.append(level_codes)
            commitments.append(commitment_loss(cells, total, beta=self.beta()))
            entropies.append(entropy)
        values = straight_through(cells, total, strength=self.strength(0))
        features = self.out(to_map(values, (latents.shape[2], latents.shape[3])))
        return Stacked(features, codes, torch.stack(commitments), torch.stack(entropies).mean())

    def decode(self, codes: list[torch.Tensor], grids: list[tuple[int, int]]) -> torch.Tensor:
        """Return the features (B, C, h, w) of codes (B, n) per pass; missing last passes add nothing."""
        total: torch.Tensor | None = None
        for level, level_codes in enumerate(codes):
            vectors = self.codebooks[level % len(self.codebooks)].lookup(level_codes)  # type: ignore[operator, union-attr]
            total = vectors if total is None else total + vectors
        assert total is not None
        return self.out(to_map(total, grids[0]))  # type: ignore[no-any-return]
