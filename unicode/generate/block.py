"""The ids of one image block for a batch of prompts, step by step, all rows inside the block: no mask of words, no wait for the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unicode.generate.decoder import CachedDecoder, HeadRows
from unicode.generate.sampling import Sampling, choose, guide


@dataclass(frozen=True)
class BlockRows:
    """The part of the output head that matters inside a block.

    Attributes:
        head: rows of all ids that may stand on any level.
        levels: (n,) level of each place of a block.
        masks: (L, K) 0 or -inf, which of the rows each level may take; None where all levels take all.
    """

    head: HeadRows
    levels: Tensor
    masks: Tensor | None

    def allowed(self, scores: Tensor, places: Tensor) -> Tensor:
        """Scores (B, K) at the places (B,) of a block -> the same with -inf for ids of other levels."""
        return scores if self.masks is None else scores + self.masks[self.levels[places.clamp_max(len(self.levels) - 1)]]


def block_rows(decoder: CachedDecoder, level_ids: Sequence[Tensor], levels: Tensor) -> BlockRows:
    """Cut the rows out of the head of `decoder`: `level_ids` as `unicode.generate.constraint.checked_level_ids` gives them, levels (n,)."""
    together = torch.cat(list(level_ids)).unique()
    masks = None
    if len(level_ids) > 1:
        masks = torch.stack([torch.where(torch.isin(together, ids), 0.0, -torch.inf) for ids in level_ids]).to(decoder.device)
    return BlockRows(decoder.rows(together), levels.to(decoder.device), masks)


@torch.no_grad()
def draw_block(
    decoder: CachedDecoder,
    features: Tensor,
    rows: BlockRows,
    *,
    places: Tensor,
    count: int,
    sampling: Sampling,
    seeds: Tensor,
    step: int,
) -> tuple[Tensor, Tensor]:
    """Draw the next ids of blocks that every row is inside of.

    Args:
        decoder: with the prompts in its cache; twice as many rows as are drawn where `sampling` is guided, those without prompt below.
        features: (R, D) of the last token.
        places: (B,) number of the next id within its block.
        count: how many ids to draw for each row.
        seeds: (B,) int64.
        step: number of the first of these ids for the noise.

    Returns:
        (B, count) int64 ids, and the features (R, D) of the last id but one: the last is not in the cache yet.
    """
    drawn: list[Tensor] = []
    for number in range(count):
        if number:
            features = decoder.step(drawn[-1].repeat(2) if sampling.guided else drawn[-1])
        scores = rows.head.scores(features)
        if sampling.guided:
            scores = guide(scores, sampling.guidance)
        scores = rows.allowed(scores, places + number)
        drawn.append(choose(scores, rows.head.ids, sampling, seeds=seeds, step=step + number))
    return torch.stack(drawn, dim=1), features
