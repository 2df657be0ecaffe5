"""Hierarchical quantization (HQ): a coarse map first, then what it leaves over on the next finer grid, and so on.

Follows HQ-VAE (You et al. 2022, section 3.1) with any number of levels; a level's residual is taken against the *detached* word of
the coarser levels, so that every level's commitment reaches the encoder.
"""

import torch
from torch import nn

from unicode.codebook.base import Codebook
from unicode.codebook.normalize import LatentNorm
from unicode.codebook.stack import Stack, Stacked, to_cells, to_map, width_change
from unicode.codebook.straight_through import commitment_loss, straight_through

RESAMPLINGS = ("pixelshuffle", "average", "conv")
COMBINATIONS = ("concat", "sum")
FACTOR = 2  # cells per side that a coarse cell holds on the next grid


class Resample(nn.Module):
    """The way from one grid to the next coarser one, and back: `down` (B, c, 2h, 2w) -> (B, c', h, w), `up` its counterpart.

    c' is 4 c for `pixelshuffle`, where no value is lost, and c otherwise.
    """

    def __init__(self, channels: int, *, kind: str) -> None:
        super().__init__()
        self.down: nn.Module
        self.up: nn.Module
        if kind == "pixelshuffle":
            self.down, self.up = nn.PixelUnshuffle(FACTOR), nn.PixelShuffle(FACTOR)
        elif kind == "average":
            self.down, self.up = nn.AvgPool2d(FACTOR), nn.Upsample(scale_factor=FACTOR, mode="nearest")
        elif kind == "conv":
            self.down, self.up = nn.Conv2d(channels, channels, FACTOR, FACTOR), nn.ConvTranspose2d(channels, channels, FACTOR, FACTOR)
        else:
            raise ValueError(f"unknown resampling '{kind}'; choose one of {', '.join(RESAMPLINGS)}")


def level_channels(channels: int, levels: int, *, resample: str) -> list[int]:
    """Return the channels of the map of each level, coarse to fine, when the finest has `channels`."""
    growth = FACTOR**2 if resample == "pixelshuffle" else 1
    return [channels * growth ** (levels - 1 - level) for level in range(levels)]


class HierarchicalQuantizer(Stack):
    """A codebook per level, coarse to fine.

    Args:
        channels: channels C of the map that enters.
        codebooks: one per level, coarse to fine.
        norms: one per level.
        resample: how grids are made coarser and finer, see `RESAMPLINGS`.
        combine: `concat` gives the decoder the levels side by side (out_channels = L C), `sum` their sum (C).
    """

    def __init__(self, channels: int, codebooks: list[Codebook], norms: list[LatentNorm], *, resample: str, combine: str) -> None:
        super().__init__(codebooks, norms)
        if combine not in COMBINATIONS:
            raise ValueError(f"unknown combination '{combine}'; choose one of {', '.join(COMBINATIONS)}")
        self.num_levels, self.channels, self.combine = len(codebooks), channels, combine
        self.out_channels = channels * len(codebooks) if combine == "concat" else channels
        widths = level_channels(channels, len(codebooks), resample=resample)
        self.into = nn.ModuleList(width_change(width, codebook.width) for width, codebook in zip(widths, codebooks, strict=True))
        self.out = nn.ModuleList(width_change(codebook.width, width) for width, codebook in zip(widths, codebooks, strict=True))
        self.resamples = nn.ModuleList(Resample(width, kind=resample) for width in widths[1:])

    def forward(self, latents: torch.Tensor) -> Stacked:
        """Quantize a map of latents (B, C, H, W), the finest grid; H and W must be divisible by 2^(L-1)."""
        maps = [latents]
        for resample in reversed(self.resamples):
            maps.insert(0, resample.down(maps[0]))  # type: ignore[operator, union-attr]
        parts: list[torch.Tensor] = []
        codes, commitments, entropies = [], [], []
        said: torch.Tensor | None = None  # what the coarser levels say about this grid
        for level, here in enumerate(maps):
            left = here if said is None else here - said
            cells = self.norms[level](to_cells(self.into[level](left)))
            level_codes, vectors, entropy = self.quantize_cells(level, cells)
            values = straight_through(cells, vectors, strength=self.strength(level))
            part = self.out[level](to_map(values, (here.shape[2], here.shape[3])))
            parts.append(part)
            codes.append(level_codes)
            commitments.append(commitment_loss(cells, vectors, beta=self.beta()))
            entropies.append(entropy)
            said = part.detach() if said is None else said + part.detach()
            if level < self.num_levels - 1:
                said = self.resamples[level].up(said).detach()  # type: ignore[operator, union-attr]
        return Stacked(self.assemble(parts), codes, torch.stack(commitments), torch.stack(entropies).mean())

    def decode(self, codes: list[torch.Tensor], grids: list[tuple[int, int]]) -> torch.Tensor:
        """Return the features (B, out_channels, H, W) of codes (B, n) per level; missing finer levels count as zeros."""
        parts = []
        for level, (level_codes, grid) in enumerate(zip(codes, grids, strict=False)):
            vectors = self.codebooks[level].lookup(level_codes)  # type: ignore[operator, union-attr]
            parts.append(self.out[level](to_map(vectors, grid)))
        return self.assemble(parts)

    def assemble(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Bring the levels' maps to the finest grid and combine them; `parts` may end early."""
        if self.combine == "sum":
            total = parts[0]
            for level, resample in enumerate(self.resamples):
                total = resample.up(total)  # type: ignore[operator, union-attr]
                if level + 1 < len(parts):
                    total = total + parts[level + 1]
            return total
        finest = [self._to_finest(part, level) for level, part in enumerate(parts)]
        finest += [torch.zeros_like(finest[0])] * (self.num_levels - len(parts))
        return torch.cat(finest, dim=1)

    def _to_finest(self, part: torch.Tensor, level: int) -> torch.Tensor:
        for resample in self.resamples[level:]:  # type: ignore[union-attr]
            part = resample.up(part)  # type: ignore[operator, union-attr]
        return part
