"""Logits -> one token per row: guidance, temperature, top-k, top-p, and noise that does not depend on the batch.

A token is sampled by the Gumbel trick, argmax(logit / temperature + noise), whose noise is a hash of (seed, step, id). An answer or a
picture is therefore the same in every batch, for every choice of computed head rows, and on every device up to rounding.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

_GOLDEN, _MIX1, _MIX2 = -7046029254386353131, -4658895280553007687, -7723592293110705685  # splitmix64 (Steele et al. 2014), signed


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Raises ValueError: a value out of range."""

    temperature: float = 1.0  # Scores are divided by it; 0 takes the likeliest token
    top_k: int = 0  # Draw among so many of the likeliest; 0: all
    top_p: float = 1.0  # Draw among the likeliest that together have this probability, the one that crosses it included; 1: all
    guidance: float = 1.0
    """How far to go from the scores without the prompt to those with it, and beyond (classifier-free guidance); 1: none."""
    candidates: int = 1
    """Pictures drawn for each request; the one most like the others is kept (minimum Bayes risk). Words, and pictures in them, have one."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (always the likeliest token) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (no limit) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (no limit)")
        if not self.guidance >= 0:
            raise ValueError(f"guidance is {self.guidance}; it must be 1 (none) or more; below 1 the prompt counts less")
        if self.candidates < 1:
            raise ValueError(f"candidates is {self.candidates}; it must be 1 or more")

    @property
    def guided(self) -> bool:
        """Whether scores without the prompt are needed."""
        return self.guidance != 1.0

    def values(self) -> dict[str, float]:
        """Return what a card or a folder of drawings keeps; without the candidates where there is one, as older ones have none."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("candidates", 1)}


GREEDY = Sampling(temperature=0.0)


def merge_sampling(stored: Mapping[str, Any] | None, given: Mapping[str, Any] | None = None, *, guided: bool = True) -> Sampling:
    """Return the sampling of `given` values; one that is None is taken from `stored` (of a card), else from `Sampling`.

    `guided`: whether the stored guidance and candidates count. Raises ValueError: a value out of range.
    """
    own = {name: value for name, value in (stored or {}).items() if guided or name not in ("guidance", "candidates")}
    return Sampling(**own | {name: value for name, value in (given or {}).items() if value is not None})


def guide(scores: Tensor, guidance: float) -> Tensor:
    """Scores of a doubled batch (2B, K), with the prompt above and without it below -> (B, K) guided scores (Ho & Salimans 2022)."""
    given, free = scores.chunk(2)
    return free + guidance * (given - free)


def choose(scores: Tensor, ids: Tensor, sampling: Sampling, *, seeds: Tensor, step: int) -> Tensor:
    """Draw one token per row: (B,) int64 vocabulary ids.

    `scores`: (B, K) float32, guided already; -inf for what may not come, but not for all of a row. `ids`: (K,) the vocabulary id of each
    column. `seeds`: (B,) int64, the seed of each row. `step`: number of the token in the answer.
    """
    if sampling.temperature == 0 or sampling.top_k == 1:
        return ids[scores.argmax(-1)]
    scores = scores / sampling.temperature
    columns = ids.expand_as(scores)
    if 0 < sampling.top_k < scores.shape[-1]:
        scores, places = scores.topk(sampling.top_k)
        columns = ids[places]
    if sampling.top_p < 1:
        scores = drop_unlikely(scores, sampling.top_p, is_sorted=0 < sampling.top_k < len(ids))
    best = (scores + gumbel_noise(seeds, step, columns)).argmax(-1, keepdim=True)
    return columns.gather(-1, best)[:, 0]


def drop_unlikely(scores: Tensor, top_p: float, *, is_sorted: bool = False) -> Tensor:
    """Put -inf in place of the scores (B, K) beyond the likeliest that together have probability `top_p` (Holtzman et al. 2020).

    `is_sorted`: whether each row stands in falling order already.
    """
    ordered, places = (scores, None) if is_sorted else scores.sort(-1, descending=True)
    shares = ordered.softmax(-1)
    beyond = shares.cumsum(-1) - shares >= top_p  # what lies before this one is enough; the first one always stays
    beyond[:, 0] = False
    if places is not None:
        beyond = torch.empty_like(beyond).scatter_(-1, places, beyond)
    return scores.masked_fill(beyond, -torch.inf)


def gumbel_noise(seeds: Tensor, step: int, ids: Tensor) -> Tensor:
    """Standard Gumbel noise (B, K) float32, a function of seed, step and id alone. `seeds`: (B,) int64. `ids`: (K,) or (B, K) int64."""
    key = _mix(_mix(seeds + _GOLDEN) + step)[:, None]
    bits = _shift(_mix(ids * _GOLDEN + key), 32)
    share = ((bits + 0.5) * 2.0**-32).clamp_max(1 - 2.0**-24)  # in (0, 1), finest near 0, where the winners come from
    return -torch.log(-torch.log1p(-share.float()))


def _mix(values: Tensor) -> Tensor:
    """The finalizer of splitmix64: int64 -> int64, each bit of the input moves each bit of the output."""
    values = (values ^ _shift(values, 30)) * _MIX1
    values = (values ^ _shift(values, 27)) * _MIX2
    return values ^ _shift(values, 31)


def _shift(values: Tensor, count: int) -> Tensor:
    """Shift int64 to the right as if it had no sign."""
    return (values >> count) & ((1 << (64 - count)) - 1)
