"""Small tokenizers with a language model's table."""

from collections.abc import Callable

import pytest
import torch

from unicode.codebook.codebook import CodebookConfig
from unicode.codebook.embedding_table import LanguageTable, row_digest
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.model import ImageTokenizer


@pytest.fixture
def table() -> LanguageTable:
    """90 rows of width 20, the first ten excluded."""
    rows = 0.1 * torch.randn(90, 20, generator=torch.Generator().manual_seed(3))
    return LanguageTable(rows, torch.arange(10), "tiny", row_digest(rows))


@pytest.fixture
def make(table: LanguageTable) -> Callable[..., ImageTokenizer]:
    """Build a 16 px tokenizer of stride 4; keyword arguments change its config, `book` that of its codebook."""

    def build(book: dict[str, object] | None = None, **changes: object) -> ImageTokenizer:
        torch.manual_seed(0)
        autoencoder = AutoencoderConfig(
            channels=8, multipliers=[1, 2], num_res_blocks=1, latent_channels=12, encoder_attention=[8], decoder_attention=[8]
        )
        codebook = CodebookConfig(**({"mode": "projected", "width": 6} | (book or {})))  # type: ignore[arg-type]
        config = TokenizerConfig(**({"type": "hqvae", "image_size": 16, "autoencoder": autoencoder, "codebook": codebook} | changes))  # type: ignore[arg-type]
        return ImageTokenizer(config, None if codebook.mode == "free" else table)

    return build
