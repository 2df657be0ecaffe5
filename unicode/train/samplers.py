"""The order of the training data as a function of the step."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from unicode.images.dataset import AugmentedIndex
from unicode.train.config import GROUPINGS

_MIX = 0x9E3779B97F4A7C15  # odd constant of a multiplicative hash


class StepSampler:
    """Lists of `AugmentedIndex`, one per forward pass of this rank, from one endless shuffled stream that all ranks share.

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

    def __iter__(self) -> Iterator[list[AugmentedIndex]]:
        share = self.batch_size // self.world_size
        micro = share // self.accumulation
        for step in range(self.start_step, self.stop_step):
            first = step * self.batch_size + self.rank * share
            for begin in range(first, first + share, micro):
                yield [self._draw(number) for number in range(begin, begin + micro)]

    def __len__(self) -> int:
        return (self.stop_step - self.start_step) * self.accumulation

    def _draw(self, number: int) -> AugmentedIndex:
        epoch, place = divmod(number, self.length)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.length, generator=generator)
        return AugmentedIndex(int(self._order[place]), ((number + 1) * _MIX + self.seed) % 2**63)


WINDOW = 64
"""Batches that are sorted by length together: enough to make neighbours alike, few enough to keep the order random."""
_EPOCH, _WINDOW = 1, 2  # what a stream of random numbers is for


class ConversationSampler:
    """Lists of indices, one per forward pass of this rank, from one endless weighted and shuffled stream that all ranks share.

    In an epoch a record of weight w occurs w times on average, always floor(w) or ceil(w) times. Step t learns from one batch of B
    records. With grouping, the stream is cut into windows of `WINDOW` batches, each window sorted (by modality, then length), cut into
    batches, and the batches shuffled; inside a batch, micro-batches of equal length go to the ranks at the same time.
    Nothing has to be saved: the position follows from the step.

    Args:
        lengths: tokens of each record.
        weights: how often each record occurs in an epoch; None: once.
        modalities: a number per record, the same for records that may share a batch; None: all alike.
        batch_size: records B per optimizer step, all ranks together.
        accumulation: micro-batches per step and rank.
        rank: index of this rank.
        world_size: number of ranks.
        seed: of the order.
        group_by: "none", "length" or "modality".
        start_step: first step to give.
        stop_step: step to end before.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        weights: np.ndarray | None = None,
        modalities: np.ndarray | None = None,
        batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        group_by: str = "length",
        start_step: int = 0,
        stop_step: int,
    ) -> None:
        assert batch_size % (world_size * accumulation) == 0, (batch_size, world_size, accumulation)
        assert group_by in GROUPINGS, group_by
        self.lengths = np.asarray(lengths)
        self.modalities = np.zeros(len(self.lengths), np.int64) if modalities is None or group_by == "length" else modalities
        self.cumulated = occurrences(np.ones(len(self.lengths)) if weights is None else weights)
        self.batch_size, self.accumulation, self.rank, self.world_size = batch_size, accumulation, rank, world_size
        self.seed, self.group_by, self.start_step, self.stop_step = seed, group_by, start_step, stop_step
        self._epoch, self._order = -1, np.empty(0, np.int64)
        self._window, self._batches = -1, np.empty((0, 0), np.int64)

    @property
    def epoch_length(self) -> int:
        """Records of one epoch, repetitions counted."""
        return int(self.cumulated[-1])

    def __iter__(self) -> Iterator[list[int]]:
        micro = self.batch_size // (self.world_size * self.accumulation)
        for step in range(self.start_step, self.stop_step):
            batch = self.batch(step)
            for index in range(self.accumulation):
                begin = (index * self.world_size + self.rank) * micro
                yield batch[begin : begin + micro].tolist()

    def __len__(self) -> int:
        return (self.stop_step - self.start_step) * self.accumulation

    def batch(self, step: int) -> np.ndarray:
        """(B,) indices of one step; under grouping sorted by modality and length."""
        if self.group_by == "none":
            return self._draw(step * self.batch_size, self.batch_size)
        window, place = divmod(step, WINDOW)
        if window != self._window:
            self._window, self._batches = window, self._sort_window(window)
        return self._batches[place]

    def _sort_window(self, window: int) -> np.ndarray:
        """(batches, B) indices of the steps of a window."""
        first = window * WINDOW
        count = min(WINDOW, self.stop_step - first)
        drawn = self._draw(first * self.batch_size, count * self.batch_size)
        rng = np.random.default_rng([self.seed, _WINDOW, window])
        order = np.lexsort((rng.random(len(drawn)), self.lengths[drawn], self.modalities[drawn]))
        return drawn[order].reshape(count, self.batch_size)[rng.permutation(count)]

    def _draw(self, first: int, count: int) -> np.ndarray:
        """`count` records of the stream from place `first` on."""
        parts = []
        while count:
            epoch, place = divmod(first, self.epoch_length)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self._shuffle(epoch)
            parts.append(self._order[place : place + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)

    def _shuffle(self, epoch: int) -> np.ndarray:
        """(epoch_length,) the records of an epoch, each as often as its weight says, in random order."""
        rng = np.random.default_rng([self.seed, _EPOCH, epoch])
        steps = np.diff(self.cumulated, prepend=0.0)
        order = rng.permutation(len(steps))
        # Systematic sampling: equidistant points on the line of cumulated weights, so that the total is the same in every epoch.
        ends = np.cumsum(steps[order])
        ends[-1] = self.cumulated[-1]
        copies = np.diff(np.floor(ends + rng.random()), prepend=0.0).astype(np.int64)
        return rng.permutation(np.repeat(order, copies))


def occurrences(weights: np.ndarray) -> np.ndarray:
    """Cumulated weights (n,), scaled so that their sum is the nearest whole number, at least 1.

    Raises:
        ValueError: all weights are 0.
    """
    total = float(weights.sum())
    if total <= 0:
        raise ValueError("every record has weight 0; give one of data.files or data.task_weights a positive weight")
    whole = max(1, round(total))
    cumulated = np.cumsum(weights, dtype=np.float64) * (whole / total)
    cumulated[-1] = whole
    return cumulated


def padding_share(lengths: np.ndarray, micro_batches: Sequence[Sequence[int]]) -> float:
    """Share of the positions of padded micro-batches that hold no token."""
    padded = sum(len(batch) * int(lengths[list(batch)].max()) for batch in micro_batches)
    return 1 - sum(int(lengths[list(batch)].sum()) for batch in micro_batches) / padded
