"""What the two stacked quantizers share: their result, the step from latents to rows of one level, maps to cells and back."""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import nn

from unicode.codebook.base import Codebook, update_codebooks_
from unicode.codebook.normalize import LatentNorm


@dataclass
class Stacked:
    """What a stacked quantizer makes of a batch.

    Attributes:
        features: (B, C, H, W) for the decoder, with straight-through gradient.
        codes: one (B, n) int64 per level.
        commitment: (L,) commitment loss per level, beta included.
        entropy: () mean entropy term over the levels, 0 where it is off.
    """

    features: torch.Tensor
    codes: list[torch.Tensor]
    commitment: torch.Tensor
    entropy: torch.Tensor


class Stack(nn.Module):
    """A stack of codebooks; subclasses say how their levels follow each other.

    Args:
        codebooks: one per level, or one for all levels.
        norms: the normalizations before the search.
    """

    codebooks: nn.ModuleList
    norms: nn.ModuleList
    out_channels: int
    num_levels: int

    def __init__(self, codebooks: list[Codebook], norms: list[LatentNorm]) -> None:
        super().__init__()
        self.codebooks, self.norms = nn.ModuleList(codebooks), nn.ModuleList(norms)

    def forward(self, latents: torch.Tensor) -> Stacked:
        """Quantize a map of latents (B, C, H, W)."""
        raise TypeError("a Stack is quantized by its subclasses")

    def decode(self, codes: list[torch.Tensor], grids: list[tuple[int, int]]) -> torch.Tensor:
        """Return the features (B, out_channels, H, W) of codes (B, n) per level; missing last levels count as nothing."""
        raise TypeError("a Stack is decoded by its subclasses")

    def quantize_cells(self, level: int, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return codes (B, n), vectors (B, n, E) and the entropy term of normalized latents (B, n, E) at one level.

        In training the codebook also takes the latents down for its update.
        """
        codebook: Any = self.codebooks[level % len(self.codebooks)]
        rows = codebook.training_rows() if self.training else codebook.rows
        codes = codebook.search(latents, rows)
        entropy = latents.new_zeros((), dtype=torch.float32)
        if self.training:
            codebook.observe(latents.detach().flatten(0, 1), codes.flatten())
            if codebook.config.entropy_weight > 0:
                entropy = codebook.soft_assignment_entropy(latents, rows)
        return codes, codebook.lookup(codes, rows), entropy

    def strength(self, level: int) -> torch.Tensor | None:
        """Return how far values are quantized at a level; None (fully) outside training."""
        return self.codebooks[level % len(self.codebooks)].strength if self.training else None  # type: ignore[return-value]

    def beta(self) -> float:
        """Weight of the commitment loss."""
        return self.codebooks[0].config.beta  # type: ignore[union-attr, return-value]

    def update_(self) -> None:
        """Update codebooks and normalizations once, after an optimizer step; the same on every rank."""
        update_codebooks_([*self.codebooks, *self.norms])

    @torch.no_grad()
    def set_schedule_(self, *, ratio: float, strength: float) -> None:
        """Set r of mode `language` and how far values are quantized, both in [0, 1]."""
        for codebook in self.codebooks:
            codebook.ratio.fill_(ratio)  # type: ignore[union-attr, operator]
            codebook.strength.fill_(strength)  # type: ignore[union-attr, operator]


def to_cells(maps: torch.Tensor) -> torch.Tensor:
    """(B, E, h, w) -> (B, h w, E)."""
    return rearrange(maps, "b e h w -> b (h w) e")


def to_map(cells: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(B, h w, E) -> (B, E, h, w)."""
    return rearrange(cells, "b (h w) e -> b e h w", h=grid[0], w=grid[1])


def width_change(channels_in: int, channels_out: int) -> nn.Module:
    """Return a 1x1 convolution between two widths, or nothing where they are equal."""
    return nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)
