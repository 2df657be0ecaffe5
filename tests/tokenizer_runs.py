"""What tests of tokenizer trainings share: a run from settings, the state in its checkpoint, differences between states."""

from pathlib import Path
from typing import Any

import torch

from unicode.common.config import load_config
from unicode.train.config import TrainTokenizerConfig
from unicode.train.tokenizer import STATE_FILE, TokenizerTrainer


def train(overrides: list[str], *changes: str) -> Path:
    return TokenizerTrainer(load_config(TrainTokenizerConfig, None, [*overrides, *changes])).run()


def state_of(checkpoint: Path | None) -> dict[str, Any]:
    assert checkpoint is not None
    return torch.load(checkpoint / STATE_FILE, weights_only=True)  # type: ignore[no-any-return]


def largest_difference(first: Any, second: Any) -> float:
    """Return the largest absolute difference of two nested structures of tensors."""
    if isinstance(first, torch.Tensor):
        return float((first.double() - second.double()).abs().max()) if first.numel() else 0.0
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        return max((largest_difference(first[key], second[key]) for key in first), default=0.0)
    if isinstance(first, list | tuple):
        return max((largest_difference(a, b) for a, b in zip(first, second, strict=True)), default=0.0)
    assert first == second or isinstance(first, float)
    return 0.0
