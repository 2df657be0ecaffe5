"""The tiny tuned model, opened to draw."""

import pytest

from unicode.llm.load import LanguageModel, open_model


@pytest.fixture(scope="session")
def drawing_model(tuned) -> LanguageModel:
    """With its adapter added to the weights; pictures of 16 px, 2x2 + 4x4 ids."""
    return open_model(tuned.run, device="cpu", merge=True)
