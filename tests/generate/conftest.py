"""The tiny tuned model, opened to draw: id by id, and cell by cell."""

from dataclasses import replace

import pytest
import torch

from unicode.llm.cell_head import CellHead, CellSettings
from unicode.llm.load import LanguageModel, open_model


@pytest.fixture(scope="session")
def drawing_model(tuned) -> LanguageModel:
    """With its adapter added to the weights; pictures of 16 px, 2x2 + 4x4 ids."""
    return open_model(tuned.run, device="cpu", merge=True)


@pytest.fixture(scope="session")
def cells_model(drawing_model) -> LanguageModel:
    """The same with a random cell head: 4 cells of 5 ids."""
    torch.manual_seed(0)
    rows, settings = drawing_model.images.row_ids, CellSettings(width=24, heads=2)
    head = CellHead(settings, hidden_size=32, table_width=32, layout=drawing_model.layout, row_ids=rows).eval()
    model = replace(drawing_model)
    model.cell_head = head
    return model
