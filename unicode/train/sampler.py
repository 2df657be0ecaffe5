"""The order of the training data, as a function of the step: the same for any number of ranks, workers, nodes and restarts."""

from collections.abc import Iterator

import torch

from unicode.images.datasets import Draw

_MIX = 0x9E3779B97F4A7C15  # odd constant of a multiplicative hash


class StepSampler:
    """Lists of `Draw`, one per forward pass of this rank, from one endless shuffled stream that all ranks share.

    Optimizer step t takes draws t B ... (t + 1) B - 1 of the stream; rank r has the r-th part of them, cut into micro-batches.
    Epoch e is a permutation of the data set seeded by (seed, e); no picture is left out between epochs. Nothing has to be saved:
    the position follows from the step.

    Args:
        length: pictures of the data set.
        batch_size: draws B per optimizer step, all ranks together.
        accumulation: micro-batches per step and rank.
        rank: index of this rank.
        world_size: number of ranks.
        seed: seed of the permutations and of every picture's augmentation.
        start_step: first step to give.
        stop_step: step to end before.
    """

    def __init__(
        self, length: int, *, batch_size: int, accumulation: int, rank: int, world_size: int, seed: int, start_step: int, stop_step: int
    ) -> None:
        assert batch_size % (world_size * accumulation) == 0, (batch_size, world_size, accumulation)
        self.length, self.batch_size, self.accumulation = length, batch_size, accumulation
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.start_step, self.stop_step = start_step, stop_step
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __iter__(self) -> Iterator[list[Draw]]:
        share = self.batch_size // self.world_size
        micro = share // self.accumulation
        for step in range(self.start_step, self.stop_step):
            first = step * self.batch_size + self.rank * share
            for begin in range(first, first + share, micro):
                yield [self._draw(number) for number in range(begin, begin + micro)]

    def __len__(self) -> int:
        return (self.stop_step - self.start_step) * self.accumulation

    def _draw(self, number: int) -> Draw:
        epoch, place = divmod(number, self.length)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.length, generator=generator)
        return Draw(int(self._order[place]), ((number + 1) * _MIX + self.seed) % 2**63)
