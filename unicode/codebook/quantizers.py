"""Stacked quantizers (HQ, RQ) with straight-through gradients: latent maps -> codes and quantized maps."""

from dataclasses import dataclass
from functools import reduce
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

    Unlike `z + (q - z).detach()` the value is `quantized` exactly, so that decoding codes equals the forward pass bit for bit. Both are
    (..., E). `strength`: scalar in [0, 1]; the value moves from `latents` (0) to `quantized` (1), for fading quantization in.
    """
    if strength is not None:
        quantized = torch.lerp(latents.detach().float(), quantized.detach().float(), strength)
    return _StraightThrough.apply(latents, quantized)  # type: ignore[no-any-return]


def commitment_loss(latents: torch.Tensor, quantized: torch.Tensor, *, beta: float) -> torch.Tensor:
    """Return `beta * |sg[q] - z|^2 + |q - sg[z]|^2`, means over all elements, float32, scalar.

    The second term moves the rows; it is there only in mode `projected`, whose rows take gradients.
    """
    latents, quantized = latents.float(), quantized.float()
    loss = beta * F.mse_loss(latents, quantized.detach())
    if quantized.requires_grad:
        loss = loss + F.mse_loss(quantized, latents.detach())
    return loss


@dataclass
class Stacked:
    """Output of a stacked quantizer."""

    features: torch.Tensor  # (B, C, H, W) for the decoder, with straight-through gradient
    codes: list[torch.Tensor]  # one (B, n) int64 per level
    commitment: torch.Tensor  # (L,) commitment loss per level, beta included
    entropy: torch.Tensor  # () mean entropy term over the levels, 0 where it is off
    latents: list[torch.Tensor]  # one (B, n, E) per level: what its codebook searched, with gradient


class Stack(nn.Module):
    """Codebooks, one per level or one for all levels, and the normalizations before their search; subclasses chain the levels."""

    def __init__(self, codebooks: list[Codebook], norms: list[LatentNorm]) -> None:
        super().__init__()
        self.codebooks, self.norms = nn.ModuleList(codebooks), nn.ModuleList(norms)

    def codebook(self, level: int) -> Codebook:
        return self.codebooks[level % len(self.codebooks)]  # type: ignore[return-value]

    def quantize_level(self, level: int, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return codes (B, n), vectors (B, n, E) and the entropy term of normalized latents (B, n, E) at one level.

        In training the codebook also accumulates the statistics of the latents.
        """
        codebook = self.codebook(level)
        rows = codebook.training_rows() if self.training else codebook.rows
        codes = codebook.search(latents, rows)
        entropy = latents.new_zeros((), dtype=torch.float32)
        if self.training:
            codebook.accumulate(latents.detach().flatten(0, 1), codes.flatten())
            if codebook.config.entropy_weight > 0:
                entropy = codebook.soft_assignment_entropy(latents, rows)
        return codes, codebook.lookup(codes, rows), entropy

    def straight_through(self, level: int, latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        """Return quantized values with straight-through gradient, in training at the codebook's scheduled strength."""
        return straight_through(latents, quantized, strength=self.codebook(level).strength if self.training else None)

    def update_(self) -> None:
        """Update codebooks and normalizations once, after an optimizer step; the same on every rank."""
        update_codebooks_([*self.codebooks, *self.norms])

    @torch.no_grad()
    def set_schedule_(self, *, ratio: float, strength: float) -> None:
        """Set r of mode `language` and the strength of quantization, both in [0, 1]."""
        for level in range(len(self.codebooks)):
            self.codebook(level).ratio.fill_(ratio)
            self.codebook(level).strength.fill_(strength)


def to_map(latents: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(B, h w, E) -> (B, E, h, w)."""
    return rearrange(latents, "b (h w) e -> b e h w", h=grid[0], w=grid[1])


def width_change(channels_in: int, channels_out: int) -> nn.Module:
    """Return a 1x1 convolution between two widths, or nothing where they are equal."""
    return nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)


RESAMPLINGS = ("pixelshuffle", "average", "conv")
COMBINATIONS = ("concat", "sum")
FACTOR = 2  # cells per side that a coarse cell holds on the next grid


def resampling(channels: int, *, kind: str) -> nn.ModuleDict:
    """Return `down` (B, c, 2h, 2w) -> (B, c', h, w) and its counterpart `up`; c' is 4 c for `pixelshuffle`, which is lossless, else c."""
    if kind == "pixelshuffle":
        return nn.ModuleDict({"down": nn.PixelUnshuffle(FACTOR), "up": nn.PixelShuffle(FACTOR)})
    if kind == "average":
        return nn.ModuleDict({"down": nn.AvgPool2d(FACTOR), "up": nn.Upsample(scale_factor=FACTOR, mode="nearest")})
    down, up = nn.Conv2d(channels, channels, FACTOR, FACTOR), nn.ConvTranspose2d(channels, channels, FACTOR, FACTOR)
    return nn.ModuleDict({"down": down, "up": up})


def level_channels(channels: int, levels: int, *, resample: str) -> list[int]:
    """Return the channels of the map of each level, coarse to fine, when the finest has `channels`."""
    growth = FACTOR**2 if resample == "pixelshuffle" else 1
    return [channels * growth ** (levels - 1 - level) for level in range(levels)]


class HierarchicalQuantizer(Stack):
    """A codebook per level, coarse to fine; each level quantizes what the coarser ones leave.

    `into` and `out`, the projections to and from the codebooks' width, keep these names in saved weights. `channels`: C of the map that
    enters. `resample`: how grids are made coarser and finer, see `RESAMPLINGS`. `combine`: `concat` gives the decoder the levels side by
    side (out_channels = L C), `sum` their sum (C).
    """

    def __init__(self, channels: int, codebooks: list[Codebook], norms: list[LatentNorm], *, resample: str, combine: str) -> None:
        super().__init__(codebooks, norms)
        self.num_levels, self.combine = len(codebooks), combine
        self.out_channels = channels * len(codebooks) if combine == "concat" else channels
        widths = level_channels(channels, len(codebooks), resample=resample)
        self.into = nn.ModuleList(width_change(width, codebook.width) for width, codebook in zip(widths, codebooks, strict=True))
        self.out = nn.ModuleList(width_change(codebook.width, width) for width, codebook in zip(widths, codebooks, strict=True))
        self.resamples = nn.ModuleList(resampling(width, kind=resample) for width in widths[1:])

    def forward(self, latents: torch.Tensor) -> Stacked:
        """Quantize a map of latents (B, C, H, W), the finest grid; H and W must be divisible by 2^(L-1)."""
        maps = [latents]
        for resample in reversed(self.resamples):
            maps.insert(0, resample["down"](maps[0]))  # type: ignore[index]
        parts, codes, commitments, entropies, searched = [], [], [], [], []
        coarse_recon: torch.Tensor | None = None  # what the coarser levels give for this grid, upsampled
        for level, level_map in enumerate(maps):
            residual = level_map if coarse_recon is None else level_map - coarse_recon
            normalized = self.norms[level](rearrange(self.into[level](residual), "b e h w -> b (h w) e"))
            level_codes, vectors, entropy = self.quantize_level(level, normalized)
            values = self.straight_through(level, normalized, vectors)
            part = self.out[level](to_map(values, (level_map.shape[2], level_map.shape[3])))
            parts.append(part)
            codes.append(level_codes)
            searched.append(normalized)
            commitments.append(commitment_loss(normalized, vectors, beta=self.codebook(level).config.beta))
            entropies.append(entropy)
            coarse_recon = part.detach() if coarse_recon is None else coarse_recon + part.detach()
            if level < self.num_levels - 1:
                coarse_recon = self.resamples[level]["up"](coarse_recon).detach()  # type: ignore[index]
        return Stacked(self.assemble(parts), codes, torch.stack(commitments), torch.stack(entropies).mean(), searched)

    def decode(self, codes: list[torch.Tensor], grids: list[tuple[int, int]]) -> torch.Tensor:
        """Return the features (B, out_channels, H, W) of codes (B, n) per level; missing finer levels count as zeros."""
        vectors = [self.codebook(level).lookup(level_codes) for level, level_codes in enumerate(codes)]
        return self.assemble([out(to_map(part, grid)) for out, part, grid in zip(self.out, vectors, grids, strict=False)])

    def assemble(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Bring the levels' maps to the finest grid and combine them; `parts` may end early."""
        if self.combine == "sum":
            total = parts[0]
            for level, resample in enumerate(self.resamples):
                total = resample["up"](total)  # type: ignore[index]
                if level + 1 < len(parts):
                    total = total + parts[level + 1]
            return total
        finest = []
        for level, part in enumerate(parts):
            for resample in self.resamples[level:]:  # type: ignore[union-attr]
                part = resample["up"](part)  # type: ignore[index]
            finest.append(part)
        return torch.cat(finest + [torch.zeros_like(finest[0])] * (self.num_levels - len(parts)), dim=1)


class ResidualQuantizer(Stack):
    """`depth` passes over one grid of `channels`; each quantizes what the passes before leave, with its own codebook or a shared one."""

    def __init__(self, channels: int, codebooks: list[Codebook], norm: LatentNorm, *, depth: int) -> None:
        super().__init__(codebooks, [norm])
        assert len(codebooks) in (1, depth), (len(codebooks), depth)
        self.num_levels, self.out_channels = depth, channels
        self.into = width_change(channels, codebooks[0].width)
        self.out = width_change(codebooks[0].width, channels)

    def forward(self, latents: torch.Tensor) -> Stacked:
        """Quantize a map of latents (B, C, h, w)."""
        normalized = self.norms[0](rearrange(self.into(latents), "b e h w -> b (h w) e"))
        residual, total = normalized.float(), torch.zeros((), device=normalized.device)
        codes, commitments, entropies, searched = [], [], [], []
        for level in range(self.num_levels):
            level_codes, vectors, entropy = self.quantize_level(level, residual)
            searched.append(residual)
            residual, total = residual - vectors.detach(), total + vectors
            codes.append(level_codes)
            commitments.append(commitment_loss(normalized, total, beta=self.codebook(level).config.beta))
            entropies.append(entropy)
        values = self.straight_through(0, normalized, total)
        features = self.out(to_map(values, (latents.shape[2], latents.shape[3])))
        return Stacked(features, codes, torch.stack(commitments), torch.stack(entropies).mean(), searched)

    def decode(self, codes: list[torch.Tensor], grids: list[tuple[int, int]]) -> torch.Tensor:
        """Return the features (B, C, h, w) of codes (B, n) per pass; missing last passes add nothing."""
        vectors = (self.codebook(level).lookup(level_codes) for level, level_codes in enumerate(codes))
        return self.out(to_map(reduce(torch.add, vectors), grids[0]))  # type: ignore[no-any-return]
