"""The tiny tuned model, opened to draw: id by id, and cell by cell."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unicode.llm.card import read_card, write_card
from unicode.llm.cell_head import CellHead, CellSettings, save_cell_head
from unicode.llm.load import LanguageModel, open_model
from unicode.tokenizer.load import load_tokenizer


@pytest.fixture(scope="session")
def drawing_model(tuned) -> LanguageModel:
    """With its adapter added to the weights; pictures of 16 px, 2x2 + 4x4 ids."""
    return open_model(tuned.run, device="cpu", merge=True)


@pytest.fixture(scope="session")
def cells_run(tuned, tmp_path_factory) -> Path:
    """The run folder of a model that draws by cells, 4 of 5 ids, with a random head."""
    folder = tmp_path_factory.mktemp("cells") / "run"
    shutil.copytree(tuned.run, folder)
    card, rows = read_card(folder), load_tokenizer(tuned.image_tokenizer).row_ids
    torch.manual_seed(0)
    head = CellHead(CellSettings(width=24, heads=2), hidden_size=32, table_width=32, layout=card.layout, row_ids=rows)
    fingerprint = head.fingerprint(card.base_fingerprint)
    save_cell_head(folder, head.state_dict(), fingerprint=fingerprint)
    write_card(folder, replace(card, output_mode="cells", cells=head.describe() | {"fingerprint": fingerprint}))
    return folder


@pytest.fixture(scope="session")
def cells_model(cells_run) -> LanguageModel:
    """Its model, with the adapter added to the weights."""
    return open_model(cells_run, device="cpu", merge=True)
