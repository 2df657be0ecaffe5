"""Exponential moving average of a tokenizer's parameters, for evaluation and saving."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from unicode.tokenizer.model import ImageTokenizer


class WeightAverage:
    """Averages of every parameter; buffers (codebooks, statistics) are averages of their own and stay the live ones.

    Args:
        tokenizer: the live model.
        decay: share of the old average kept per step, for example 0.999.
    """

    def __init__(self, tokenizer: ImageTokenizer, *, decay: float) -> None:
        self.tokenizer, self.decay = tokenizer, decay
        self.averages = {name: parameter.detach().clone() for name, parameter in tokenizer.named_parameters()}

    @torch.no_grad()
    def update_(self) -> None:
        """Move the averages towards the live parameters, after an optimizer step."""
        live = [parameter.detach() for parameter in self.tokenizer.parameters()]
        torch._foreach_lerp_(list(self.averages.values()), live, 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in the model for the length of a block, then the live parameters back."""
        with torch.no_grad():
            live = {name: parameter.detach().clone() for name, parameter in self.tokenizer.named_parameters()}
            self._put_(self.averages)
            try:
                yield
            finally:
                self._put_(live)

    def _put_(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.tokenizer.named_parameters():
            parameter.copy_(values[name])
        for codebook in self.tokenizer.codebooks:
            codebook.refresh_()

    def load_(self, averages: dict[str, torch.Tensor]) -> None:
        """Take averages from a checkpoint."""
        for name, average in self.averages.items():
            average.copy_(averages[name])
