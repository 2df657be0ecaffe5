"""The order of the training data as a function of the step."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
import torch

from unicode.images.dataset import AugmentedIndex
from unicode.train.config import GROUPINGS

_MIX = 0x9E3779B97F4A7C15  # odd constant of a multiplicative hash
WINDOW = 64  # Batches that are sorted by length together: enough to make neighbours alike, few enough to keep the order random
_EPOCH, _WINDOW = 1, 2  # what a stream of random numbers is for
Item = TypeVar("Item")


@dataclass(kw_only=True, eq=False)
class StepSampler(ABC, Generic[Item]):
    """Lists of what a data set is indexed by, one per forward pass of this rank, from one endless stream that all ranks share.

    Step t takes B items; micro-batches go to the ranks in turn. Nothing has to be saved: the position follows from the step.
    """

    batch_size: int  # Items B per optimizer step, all ranks together
    stop_step: int  # Step to end before
    accumulation: int = 1  # Micro-batches per step and rank
    rank: int = 0  # Index of this rank
    world_size: int = 1  # Number of ranks
    seed: int = 0  # Seed of the order
    start_step: int = 0  # First step to give

    def __post_init__(self) -> None:
        assert self.batch_size % (self.world_size * self.accumulation) == 0, self

    @abstractmethod
    def batch(self, step: int) -> list[Item]:
        """Return the B items of one step."""

    def __iter__(self) -> Iterator[list[Item]]:
        for step in range(self.start_step, self.stop_step):
            yield from self._divide(self.batch(step))[self.rank :: self.world_size]

    def _divide(self, batch: list[Item]) -> list[list[Item]]:
        """Return the micro-batches of a step, those of one forward pass side by side."""
        micro = self.batch_size // (self.world_size * self.accumulation)
        return [batch[begin : begin + micro] for begin in range(0, self.batch_size, micro)]

    def __len__(self) -> int:
        return (self.stop_step - self.start_step) * self.accumulation


class AugmentedSampler(StepSampler[AugmentedIndex]):
    """The `length` pictures of a data set, with the seed of their augmentation; epoch e is a permutation seeded by (seed, e).

    `blocks`: (length,) number of the block from 0 that each picture is read with; the blocks are then shuffled, and the pictures within
    every `window` of them. None: the pictures are shuffled one by one.
    """

    def __init__(self, length: int, *, blocks: np.ndarray | None = None, window: int = 1, **options: int) -> None:
        super().__init__(**options)
        self.length, self.blocks, self.window = length, blocks, window
        self._order = lru_cache(maxsize=1)(self._shuffle)

    def batch(self, step: int) -> list[AugmentedIndex]:
        return [self._draw(number) for number in range(step * self.batch_size, (step + 1) * self.batch_size)]

    def _draw(self, number: int) -> AugmentedIndex:
        epoch, place = divmod(number, self.length)
        return AugmentedIndex(int(self._order(epoch)[place]), ((number + 1) * _MIX + self.seed) % 2**63)

    def _shuffle(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.length, generator=generator)
        if self.blocks is None:
            return order
        places = torch.randperm(int(self.blocks.max()) + 1, generator=generator)[torch.from_numpy(self.blocks)]
        return order[torch.argsort(places[order] // self.window, stable=True)]


class ConversationSampler(StepSampler[int]):
    """Conversations, weighted, shuffled and grouped.

    In an epoch a record of weight w occurs w times on average, always floor(w) or ceil(w) times. With grouping, the stream is cut into
    windows of `WINDOW` batches; each window is sorted (by modality, then length), cut into batches, and the batches are shuffled. Inside
    a batch, micro-batches of equal length go to the ranks at the same time. Without grouping, each batch is drawn at random, sorted by
    length and cut into micro-batches of about as many tokens, not conversations: so they have little padding, and no rank waits for long.

    `lengths`: tokens of each record. `weights`: how often each occurs in an epoch; None: once. `modalities`: a number per record, equal for
    records that may share a batch; None: all alike. `group_by`: "none", "length" or "modality". `options`: as `StepSampler`.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        weights: np.ndarray | None = None,
        modalities: np.ndarray | None = None,
        group_by: str = "length",
        **options: int,
    ) -> None:
        super().__init__(**options)
        assert group_by in GROUPINGS, group_by
        self.lengths, self.group_by = np.asarray(lengths), group_by
        self.modalities = np.zeros(len(self.lengths), np.int64) if modalities is None or group_by == "length" else modalities
        self.cumulated = occurrences(np.ones(len(self.lengths)) if weights is None else weights)
        self._order, self._batches = lru_cache(maxsize=1)(self._shuffle), lru_cache(maxsize=1)(self._sort_window)

    @property
    def epoch_length(self) -> int:
        """Records of one epoch, repetitions counted."""
        return int(self.cumulated[-1])

    def batch(self, step: int) -> list[int]:
        if self.group_by == "none":
            drawn = self._draw(step * self.batch_size, self.batch_size)
            return drawn[np.argsort(self.lengths[drawn], kind="stable")].tolist()
        window, place = divmod(step, WINDOW)
        return self._batches(window)[place].tolist()

    def _divide(self, batch: list[int]) -> list[list[int]]:
        if self.group_by != "none":
            return super()._divide(batch)
        places = np.arange(1, self.world_size * self.accumulation)
        tokens = np.cumsum(self.lengths[batch])
        ends = np.searchsorted(tokens, tokens[-1] * places / (len(places) + 1)).clip(1)
        ends = np.minimum(np.maximum.accumulate(ends - places) + places, len(batch) - places[::-1])  # none is empty
        return [part.tolist() for part in np.split(np.asarray(batch), ends)]

    def _sort_window(self, window: int) -> np.ndarray:
        first = window * WINDOW
        count = min(WINDOW, self.stop_step - first)
        drawn = self._draw(first * self.batch_size, count * self.batch_size)
        rng = np.random.default_rng([self.seed, _WINDOW, window])
        order = np.lexsort((rng.random(len(drawn)), self.lengths[drawn], self.modalities[drawn]))
        return drawn[order].reshape(count, self.batch_size)[rng.permutation(count)]

    def _draw(self, first: int, count: int) -> np.ndarray:
        parts = []
        while count:
            epoch, place = divmod(first, self.epoch_length)
            parts.append(self._order(epoch)[place : place + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, _EPOCH, epoch])
        steps = np.diff(self.cumulated, prepend=0.0)
        order = rng.permutation(len(steps))
        # Systematic sampling: equidistant points on the line of cumulated weights, so that the total is the same in every epoch.
        ends = np.cumsum(steps[order])
        ends[-1] = self.cumulated[-1]
        copies = np.diff(np.floor(ends + rng.random()), prepend=0.0).astype(np.int64)
        return rng.permutation(np.repeat(order, copies))


def occurrences(weights: np.ndarray) -> np.ndarray:
    """Cumulated weights (n,), scaled so that their sum is the nearest whole number, at least 1. Raises ValueError: all weights are 0."""
    total = float(weights.sum())
    if total <= 0:
        raise ValueError("every record has weight 0; give one of data.files or data.task_weights a positive weight")
    whole = max(1, round(total))
    cumulated = np.cumsum(weights, dtype=np.float64) * (whole / total)
    cumulated[-1] = whole
    return cumulated
