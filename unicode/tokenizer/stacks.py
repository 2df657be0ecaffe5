"""From a config to its stack of codebooks, for training (with the language model's table) or for use (shapes only)."""

import torch

from unicode.codebook.base import Codebook
from unicode.codebook.hierarchical import HierarchicalQuantizer, level_channels
from unicode.codebook.modes import build_codebook
from unicode.codebook.normalize import LatentNorm
from unicode.codebook.residual import ResidualQuantizer
from unicode.codebook.stack import Stack
from unicode.codebook.table import LanguageTable
from unicode.tokenizer.config import TokenizerConfig


def normalization(config: TokenizerConfig) -> str:
    """Return what `codebook.normalize` means for this tokenizer once `auto` is resolved."""
    book = config.codebook
    if book.normalize != "auto":
        return book.normalize
    if book.mode == "projected":
        # The passes of an RQ-VAE see what is left over, whose length must stay free to shrink.
        return "sphere" if config.type == "hqvae" else "standardize"
    return "none" if book.mode == "free" else "match"


def build_stack(config: TokenizerConfig, table: LanguageTable | None, *, training: bool, widths: list[int] | None = None) -> Stack:
    """Build the stacked quantizer of a tokenizer.

    Args:
        config: the tokenizer.
        table: the language model's table, for training in a mode that needs one.
        training: build codebooks that can learn; otherwise plain tables to be filled from saved weights.
        widths: widths E of the rows per codebook, given when `training` is off.

    Raises:
        ValueError: see `build_codebook`; or another number of widths than of codebooks.
    """
    channels, book = config.map_channels, config.codebook
    if config.type == "hqvae":
        channel_list = level_channels(channels, config.levels, resample=config.resample)
    else:
        channel_list = [channels] * (1 if config.share_codebook else config.depth)
    if training:
        codebooks = [build_codebook(book, table, channels=width) for width in channel_list]
    else:
        if widths is None or len(widths) != len(channel_list):
            raise ValueError(f"widths {widths} of codebooks, but the config describes {len(channel_list)} codebooks")
        empty = torch.zeros(book.num_rows, dtype=torch.long)
        codebooks = [Codebook(torch.zeros(book.num_rows, width), empty, book, learn_scale=False) for width in widths]
    kind = normalization(config)
    norms = [LatentNorm(each.width, kind=kind, decay=book.decay, length=book.mean_length, rows=each.rows) for each in codebooks]
    if config.type == "hqvae":
        return HierarchicalQuantizer(channels, codebooks, norms, resample=config.resample, combine=config.combine)
    return ResidualQuantizer(channels, codebooks, norms[0], depth=config.depth)
