"""Stacked quantizers (HQ, RQ) with straight-through gradients: latent maps -> codes and quantized maps."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from unicode.codebook.codebook import Codebook, update_codebooks_
from unicode.codebook.search import LatentNorm


class _StraightThrough(torch.autograd.Function):
    """Forward: the quantized value, bit for bit. Backward: the gradient goes to the latent unchanged."""

    @staticmethod
    def forward(context: Any, latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        return quantized.detach().to(latents.dtype).view_as(latents)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient, None


def straight_through(latents: torch.Tensor, quantized: torch.Tensor, *, strength: torch.Tensor | None = None) -> torch.Tensor:
    """Return `quantized` with the gradient of `latents` (van den Oord et al. 2017, section 3.2).

    Unlike `z + (q - z).detach()` the value is `quantized` exactly, so that decoding codes equals the forward pass bit for bit.

    Args:
        latents: (..., E) what the encoder said.
        quantized: (..., E) the rows chosen for it.
        strength: scalar in [0, 1]; the value moves from `latents` (0) to `quantized` (1), for fading quantization in.
    """
    if strength is not None:
        quantized = torch.lerp(latents.detach().float(), quantized.detach().float(), strength)
    return _StraightThrough.apply(latents, quantized)  # type: ignore[no-any-return]


def commitment_loss(latents: torch.Tensor, quantized: torch.Tensor, *, beta: float) -> torch.Tensor:
    """Return `beta * |sg[q] - z|^2 + |q - sg[z]|^2`, means over all elements, float32, scalar.

    The second term moves the rows and is there only where rows take gradients (mode `projected`); the other modes
    move theirs by averages.
    """
    latents, quantized = latents.float(), quantized.float()
    loss = beta * F.mse_loss(latents, quantized.detach())
    if quantized.requires_grad:
        loss = loss + F.mse_loss(quantized, latents.detach())
    return loss


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
