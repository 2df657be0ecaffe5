"""A small model that draws: random weights, four markers, an image tokenizer on rows of its table; pictures of 32 px, 2x2 + 4x4 ids."""

from pathlib import Path

import pytest
import torch

from unicode.codebook.base import CodebookConfig
from unicode.codebook.table import LanguageTable, row_digest
from unicode.images.shapes import world_text
from unicode.llm.base import BaseConfig, build_model, train_tokenizer
from unicode.llm.card import Card, fingerprint_base, write_card
from unicode.llm.embedding import load_embedding
from unicode.llm.language_model import LanguageModel
from unicode.llm.load import open_model
from unicode.llm.markers import choose_markers
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.model import ImageTokenizer


@pytest.fixture(scope="session")
def drawing_folder(tmp_path_factory) -> Path:
    """The folder of a model, its image tokenizer in the folder `images` beside it."""
    root = tmp_path_factory.mktemp("drawing")
    folder = root / "model"
    config = BaseConfig(vocab_size=256, width=32, hidden=48, layers=2, heads=2, context=400)
    text = train_tokenizer(world_text(200), vocab_size=config.vocab_size)
    torch.manual_seed(0)
    lm = build_model(config, text)
    with torch.no_grad():  # untrained weights are so small that no prompt would matter
        for weight in lm.parameters():
            weight *= 8 if weight.ndim == 2 else 1
    lm.save_pretrained(folder)
    text.save_pretrained(folder)
    table = load_embedding(folder)
    excluded = table.excluded_ids()
    autoencoder = AutoencoderConfig(
        channels=8, multipliers=[1, 2, 2], num_res_blocks=1, latent_channels=12, encoder_attention=[], decoder_attention=[]
    )
    shape = TokenizerConfig(image_size=32, autoencoder=autoencoder, codebook=CodebookConfig(mode="projected", width=6, num_rows=64))
    torch.manual_seed(0)
    images = ImageTokenizer(shape, LanguageTable(table.rows, excluded, "tiny", row_digest(table.rows)))
    images.save_pretrained(root / "images")
    images = ImageTokenizer.from_pretrained(root / "images")
    card = Card(
        kind="full", base=str(folder), base_fingerprint=fingerprint_base(folder), template="vicuna_v1", layout=images.layout.to_dict(),
        image_tokenizer={"path": str(root / "images"), "fingerprint": images.fingerprint},
        markers=choose_markers(text, table_rows=config.vocab_size).to_dict(),
    )  # fmt: skip
    write_card(folder, card)
    return folder


@pytest.fixture(scope="session")
def drawing_model(drawing_folder) -> LanguageModel:
    """That model, opened."""
    return open_model(drawing_folder, device="cpu")
