"""The tiny tuned model, opened to draw: id by id, and cell by cell."""

import pytest

from unicode.llm.load import LanguageModel, open_model


@pytest.fixture(scope="session")
def drawing_model(tuned) -> LanguageModel:
    """With its adapter added to the weights; pictures of 16 px, 2x2 + 4x4 ids."""
    return open_model(tuned.run, device="cpu", merge=True)


@pytest.fixture(scope="session")
def cells_model(tuned_cells) -> LanguageModel:
    """The same with a random cell head: 4 cells of 5 ids."""
    return open_model(tuned_cells.run, device="cpu", merge=True)
