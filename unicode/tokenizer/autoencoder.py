"""The convolutional encoder and decoder of the VQGAN family: (B, 3, H, W) <-> (B, C, H / stride, W / stride)."""

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Return the family's normalization: 32 groups, or groups of about four where 32 does not divide the channels."""
    groups = 32 if channels % 32 == 0 else math.gcd(channels, max(1, channels // 4))
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Two normalized 3x3 convolutions beside a skip, which is a 1x1 convolution where the channels change."""

    def __init__(self, channels_in: int, channels_out: int, *, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)  # type: ignore[no-any-return]


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions beside a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (rearrange(project(h), "b c h w -> b 1 (h w) c").contiguous() for project in (self.q, self.k, self.v))
        h = rearrange(F.scaled_dot_product_attention(q, k, v), "b 1 (h w) c -> b c h w", h=x.shape[2])
        return x + self.proj_out(h)  # type: ignore[no-any-return]


@dataclass
class AutoencoderConfig:
    """Widths and depths of encoder and decoder."""

    channels: int = 128  # Channels at full resolution; level i has `channels * multipliers[i]`
    multipliers: list[int] = field(default_factory=lambda: [1, 2, 4, 4])
    """One per resolution, finest first; each but the last is followed by a halving."""
    num_res_blocks: int = 2  # Residual blocks per resolution in the encoder; the decoder has one more
    latent_channels: int = 256  # Channels of the latent map
    downsample_input: bool = True
    """Halve the sides in the very first convolution too (4x4, stride 2), which saves the cost of full resolution."""
    encoder_attention: list[int] = field(default_factory=list)
    """Sides of feature maps, at the config's image size, after whose blocks the encoder attends; the middle always does."""
    decoder_attention: list[int] = field(default_factory=lambda: [16])  # The same for the decoder
    encoder_tile: int = 0
    """Side in pixels of the tiles that are encoded one at a time, so that equal content gets equal codes in every place; a multiple of a
    coarse cell. 0: the image is encoded as a whole. The decoder always reads all codes."""
    dropout: float = 0.0  # Dropout in residual blocks

    def __post_init__(self) -> None:
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"model.autoencoder.multipliers {list(self.multipliers)} must be one or more positive whole numbers")
        if self.channels < 1 or self.num_res_blocks < 1 or self.latent_channels < 1:
            raise ValueError("model.autoencoder.channels, num_res_blocks and latent_channels must be at least 1")
        if self.encoder_tile < 0 or self.encoder_tile % self.stride:
            raise ValueError(f"model.autoencoder.encoder_tile {self.encoder_tile} must be 0 or a multiple of the stride {self.stride}")

    @property
    def stride(self) -> int:
        """Pixels per latent cell and side."""
        return int(2 ** (len(self.multipliers) - 1 + int(self.downsample_input)))

    @property
    def widths(self) -> list[int]:
        """Channels at each resolution, finest first."""
        return [self.channels * multiplier for multiplier in self.multipliers]

    def side(self, image_size: int, level: int) -> int:
        """Side of the feature maps at a resolution, 0 the finest."""
        return image_size // 2 ** (level + int(self.downsample_input))


class Stage(nn.Module):
    """Blocks of one resolution, each with attention where the stage attends, then a change of size where there is one."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, *, attend: bool, dropout: float) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.block = nn.ModuleList(ResBlock(a, b, dropout=dropout) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(channels_out) for _ in range(blocks if attend else 0))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block, attention in zip_longest(self.block, self.attn):
            x = block(x) if attention is None else attention(block(x))
        for resize in filter(None, (self.downsample, self.upsample)):
            x = resize(x)
        return x


def middle(channels: int, *, dropout: float) -> nn.Module:
    """Return block, attention, block of the coarsest resolution."""
    before, attention = ResBlock(channels, channels, dropout=dropout), AttnBlock(channels)
    return nn.Sequential(OrderedDict(block_1=before, attn_1=attention, block_2=ResBlock(channels, channels, dropout=dropout)))


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> latent map (B, latent_channels, H / stride, W / stride)."""

    def __init__(self, config: AutoencoderConfig, *, image_size: int) -> None:
        super().__init__()
        self.tile = config.encoder_tile
        widths, dropout = config.widths, config.dropout
        kernel, stride = (4, 2) if config.downsample_input else (3, 1)
        self.conv_in = nn.Conv2d(3, config.channels, kernel, stride=stride, padding=1)
        self.down = nn.Sequential()
        for level, (before, width) in enumerate(pairwise([config.channels, *widths])):
            attend = config.side(self.tile or image_size, level) in config.encoder_attention
            stage = Stage(before, width, config.num_res_blocks, attend=attend, dropout=dropout)
            if level < len(widths) - 1:  # halves the sides, padded on the right and at the bottom only
                halve = nn.Conv2d(width, width, 3, stride=2)
                stage.downsample = nn.Sequential(OrderedDict(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=halve))
            self.down.append(stage)
        self.mid = middle(widths[-1], dropout=dropout)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, latent_channels, H / stride, W / stride)."""
        if not self.tile:
            return self._encode(images)
        size = {"y": images.shape[2] // self.tile, "x": images.shape[3] // self.tile}
        tiles = rearrange(images, "b c (y h) (x w) -> (b y x) c h w", **size)
        return rearrange(self._encode(tiles), "(b y x) c h w -> b c (y h) (x w)", **size)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        h = self.mid(self.down(self.conv_in(images)))
        return self.conv_out(F.silu(self.norm_out(h)))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latent map (B, latent_channels, h, w) -> images (B, 3, h * stride, w * stride)."""

    def __init__(self, config: AutoencoderConfig, *, image_size: int) -> None:
        super().__init__()
        widths, dropout = config.widths, config.dropout
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1], dropout=dropout)
        self.up = nn.ModuleList()
        for level, (width, before) in enumerate(pairwise([*widths, widths[-1]])):
            attend = config.side(image_size, level) in config.decoder_attention
            stage = Stage(before, width, config.num_res_blocks + 1, attend=attend, dropout=dropout)
            if level > 0 or config.downsample_input:
                repeat = nn.Upsample(scale_factor=2.0, mode="nearest")
                stage.upsample = nn.Sequential(OrderedDict(repeat=repeat, conv=nn.Conv2d(width, width, 3, padding=1)))
            self.up.append(stage)
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def features(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, latent_channels, h, w) -> (B, channels, h * stride, w * stride), the input of the last convolution."""
        h = self.mid(self.conv_in(latents))
        for stage in reversed(self.up):
            h = stage(h)
        return F.silu(self.norm_out(h))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, latent_channels, h, w) -> (B, 3, h * stride, w * stride), about [-1, 1], not clamped."""
        return self.conv_out(self.features(latents))  # type: ignore[no-any-return]
