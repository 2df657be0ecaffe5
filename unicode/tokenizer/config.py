"""The config of a tokenizer, from which its class, its stack of codebooks and its layout of ids follow."""

import math
from dataclasses import dataclass, field

from unicode.codebook.codebook import CodebookConfig
from unicode.codebook.quantizers import COMBINATIONS, FACTOR, RESAMPLINGS
from unicode.ids.layout import Layout
from unicode.tokenizer.autoencoder import AutoencoderConfig

TYPES = ("hqvae", "rqvae")


@dataclass
class TokenizerConfig:
    """Everything that shapes a tokenizer."""

    type: str = "hqvae"  # `hqvae` (a coarse map, then finer ones) or `rqvae` (several passes over one map)
    image_size: int = 256  # Side of the square training images in pixels; other sizes that the stride divides work too
    levels: int = 2  # `hqvae`: number of grids, each twice as fine as the one before; the last has image_size / stride cells a side
    depth: int = 4  # `rqvae`: passes over the grid
    resample: str = "pixelshuffle"  # `hqvae`: how a grid is made coarser: `pixelshuffle`, `average` or `conv`
    combine: str = "concat"  # `hqvae`: whether the decoder gets the levels side by side (`concat`) or their `sum`
    code_channels: int = 0  # Channels of the finest quantized map, between encoder and codebooks; 0 means `autoencoder.latent_channels`
    share_codebook: bool = False
    """`rqvae`: one codebook, with one scale, for all passes; otherwise each pass has its own statistics and scale."""
    order: str = ""  # Order of ids; empty means `nested` for `hqvae`, `depth` for `rqvae`; `rows` is UniCode-ECCV24's
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)  # Encoder and decoder
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    """The codebooks; all levels share this config and the language model's rows."""

    def __post_init__(self) -> None:
        for name, allowed in (("type", TYPES), ("resample", RESAMPLINGS), ("combine", COMBINATIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name} '{getattr(self, name)}' is unknown; choose one of {', '.join(allowed)}")
        if self.type == "hqvae" and self.levels < 2:
            raise ValueError(f"model.levels {self.levels}: an HQ-VAE has at least 2 levels")
        if self.type == "rqvae" and self.depth < 1:
            raise ValueError(f"model.depth {self.depth}: an RQ-VAE has at least 1 pass")
        try:
            self.layout(self.image_size, self.image_size)
        except ValueError as error:
            raise ValueError(f"model.image_size: {error}") from error

    @property
    def map_channels(self) -> int:
        """Channels of the finest quantized map."""
        return self.code_channels or self.autoencoder.latent_channels

    @property
    def stride(self) -> int:
        """Pixels per side that an image's sides must be multiples of: a cell of the coarsest grid, or a tile of the encoder."""
        coarse = self.autoencoder.stride * (FACTOR ** (self.levels - 1) if self.type == "hqvae" else 1)
        return math.lcm(coarse, self.autoencoder.encoder_tile or 1)

    def layout(self, height: int, width: int) -> Layout:
        """Return the layout of an image of that many pixels. Raises ValueError: the stride does not divide a side."""
        for side in (height, width):
            if side < self.stride or side % self.stride:
                nearest = max(self.stride, round(side / self.stride) * self.stride)
                found = f"an image side of {side} pixels is not a multiple of this tokenizer's stride {self.stride}"
                raise ValueError(f"{found}; the nearest is {nearest}")
        fine = (height // self.autoencoder.stride, width // self.autoencoder.stride)
        if self.type == "rqvae":
            return Layout(kind="residual", grids=(fine,), depth=self.depth, order=self.order)
        grids = tuple((fine[0] // FACTOR**up, fine[1] // FACTOR**up) for up in reversed(range(self.levels)))
        return Layout(kind="hierarchical", grids=grids, order=self.order)
