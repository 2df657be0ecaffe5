"""Answers in which words and pictures take turns: a batch of prompts -> tokens, words by the whole head, blocks by its image rows.

While every unfinished row is inside a block, `draw_block` runs for as many steps as that is certain to last. Otherwise a few steps run
under the constraint's mask, rows in text and rows in an image side by side, before the host asks once how things stand.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unicode.generate.block import block_rows, draw_block
from unicode.generate.constraint import ImageConstraint
from unicode.generate.decoder import CachedDecoder
from unicode.generate.sampling import GREEDY, Sampling, choose

CHUNK = 16  # steps in text between two looks at what is finished


@torch.no_grad()
def write_answers(
    decoder: CachedDecoder,
    features: Tensor,
    constraint: ImageConstraint,
    *,
    num_tokens: int,
    end_ids: Sequence[int],
    seeds: Tensor,
    words: Sampling = GREEDY,
    pictures: Sampling | None = None,
) -> Tensor:
    """Write the answers to the prompts that `decoder` has read.

    Args:
        features: (B, D), what `decoder.start` gave.
        constraint: begun with the same prompts.
        num_tokens: longest answer, markers and image ids included.
        end_ids: tokens that end an answer; the first also fills what comes after.
        seeds: (B,) int64.
        words: how tokens outside of images are drawn.
        pictures: how ids inside are drawn; without guidance, for which every image would need a second prompt.

    Returns:
        (B, n) int64 with n <= `num_tokens`.

    Raises:
        ValueError: guidance was asked for.
    """
    pictures = pictures or Sampling()
    if words.guided or pictures.guided:
        raise ValueError(f"guidance {pictures.guidance} was asked for, but only a picture drawn by itself can be guided; set it to 1")
    constraint.limit(num_tokens)
    rows = block_rows(decoder, constraint.level_ids, constraint.levels)
    everything = torch.arange(decoder.vocab_size, device=features.device)
    answers = _Answers(constraint, torch.tensor(list(end_ids), device=features.device), len(features))
    while (left := num_tokens - len(answers.tokens)) > 0:
        done, certain = constraint.survey(answers.finished)
        if done:
            break
        if certain:
            ids, _ = draw_block(
                decoder, features, rows, places=constraint.step.clamp_min(0), count=min(certain, left),
                sampling=pictures, seeds=seeds, step=len(answers.tokens),
            )  # fmt: skip
            for tokens in ids.unbind(1):
                answers.take(tokens)
            features = decoder.step(answers.tokens[-1])
            continue
        for _ in range(min(CHUNK, left)):
            scores = constraint.mask(decoder.scores(features))
            answers.take(_draw_token(scores, everything, constraint, words, pictures, seeds=seeds, step=len(answers.tokens)))
            features = decoder.step(answers.tokens[-1])
    return torch.stack(answers.tokens, 1) if answers.tokens else seeds.new_empty(len(seeds), 0)


class _Answers:
    """The tokens so far, and which rows have ended."""

    def __init__(self, constraint: ImageConstraint, ends: Tensor, rows: int) -> None:
        self.tokens: list[Tensor] = []
        self.finished = torch.zeros(rows, dtype=torch.bool, device=ends.device)
        self._constraint, self._ends = constraint, ends

    def take(self, tokens: Tensor) -> None:
        """Add the next token of each row, (B,)."""
        tokens = torch.where(self.finished, self._ends[0], tokens)
        self._constraint.advance(tokens)
        self.finished = self.finished | (torch.isin(tokens, self._ends) & (self._constraint.step < 0))
        self.tokens.append(tokens)


def _draw_token(
    scores: Tensor, ids: Tensor, constraint: ImageConstraint, words: Sampling, pictures: Sampling, *, seeds: Tensor, step: int
) -> Tensor:
    """(B, V) allowed scores -> (B,) tokens, drawn as words or as parts of pictures, whichever each row is at."""
    word = choose(scores, ids, words, seeds=seeds, step=step)
    if words == pictures:
        return word
    return torch.where(constraint.step >= 0, choose(scores, ids, pictures, seeds=seeds, step=step), word)
