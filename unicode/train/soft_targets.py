"""Soft targets of image ids: codebook rows -> for each id the ids that look like it, and their shares of its target.

A code that the codebook places near the right one is a small error, and the hard cross-entropy counts it as any other. Here the target
of code i is spread over the rows of its level, w_ij = softmax_j(-|e_i - e_j|^2 / t), with t such that the right row keeps
1 - `smoothing` on average. The loss is logsumexp(logits) - sum_j w_ij logits_j.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

LIMIT = 2048  # Rows of a codebook up to which a target is spread over all of them
NEAREST = 64  # Rows that share a target in a larger codebook
PART = 1024  # Rows whose distances to all others are held at once
HALVINGS = 100  # of the interval of log t


@dataclass
class SoftTargets:
    """Shares of the targets of C codebooks of K rows, spread over k rows each, after one whose targets keep all of their own."""

    row_ids: torch.Tensor  # (K,) int64 vocabulary ids, sorted; a place is an index into them
    books: torch.Tensor  # (levels + 1,) int64 codebook of each level: 0 of level 0, which is text
    near: torch.Tensor | None  # (1 + C, K, k) int64 places of the rows that share a target; None: all, k = K
    shares: torch.Tensor  # (1 + C, K, k) float32, with sum 1

    def of(self, targets: torch.Tensor, levels: torch.Tensor, *, in_vocabulary: bool) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return the classes (n, k) that share each target, None where these are all places in order, and their shares (n, k).

        `targets`: (n,) vocabulary ids, or places where `in_vocabulary` is false; classes are counted alike. `levels`: (n,) from 1; a target
        of level 0 keeps all of its own.
        """
        places = torch.searchsorted(self.row_ids, targets).clamp_max(len(self.row_ids) - 1) if in_vocabulary else targets
        book = self.books[levels]
        shares, near = self.shares[book, places], None if self.near is None else self.near[book, places]
        if in_vocabulary:
            near = self.row_ids.expand_as(shares) if near is None else self.row_ids[near]
            near = torch.where((levels > 0)[:, None], near, targets[:, None])
        return near, shares


def spread_targets(
    codebooks: Sequence[torch.Tensor], row_ids: torch.Tensor, *, levels: int, smoothing: float, device: torch.device
) -> SoftTargets:
    """Compute the shares once, in float64.

    `codebooks`: (K, E) rows of each level, or of one codebook for all; E may differ. `row_ids`: (K,) vocabulary ids of the rows.
    `smoothing`: what other rows than the right one get on average, above 0 and below 1.
    """
    order = row_ids.argsort()
    pairs = [_spread(rows.to(device)[order.to(device)].double(), smoothing) for rows in codebooks]
    books = torch.arange(levels + 1).clamp_max(len(codebooks))
    places, shares = torch.stack([near for near, _ in pairs]), torch.stack([shares for _, shares in pairs]).float()
    all_rows = len(row_ids) <= LIMIT
    alone = torch.eye(len(row_ids) if all_rows else 1, shares.shape[2], device=device).expand(1, len(row_ids), -1)
    near = None if all_rows else torch.cat((places[:1], places))
    return SoftTargets(row_ids[order].to(device), books.to(device), near, torch.cat((alone, shares)))


def _spread(rows: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(K, E) float64 rows -> the places (K, k) of the rows that share each target, and their shares (K, k)."""
    places, distances = [], []
    squares = rows.square().sum(1)
    for own in torch.arange(len(rows), device=rows.device).split(PART):
        found = (squares[own, None] + squares - 2 * rows[own] @ rows.T).clamp_min(0)
        found.scatter_(1, own[:, None], -1.0)  # the row itself is the nearest, also among equal ones
        if len(rows) <= LIMIT:
            distances.append(found.clamp_min(0))
        else:
            nearest = found.topk(NEAREST, largest=False)
            places.append(nearest.indices)
            distances.append(nearest.values.clamp_min(0))
    squared = torch.cat(distances)
    own = torch.arange(len(rows), device=rows.device)[:, None]
    right = torch.zeros_like(own) if places else own

    def shares(log_t: torch.Tensor) -> torch.Tensor:
        return torch.softmax(-squared * torch.exp(-log_t), dim=1)

    scale = squared.mean().clamp_min(torch.finfo(torch.float64).tiny).log()
    low, high = scale - 30.0, scale + 30.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        sharp = shares(middle).gather(1, right).mean() > 1 - smoothing
        low, high = torch.where(sharp, middle, low), torch.where(sharp, high, middle)
    return torch.cat(places) if places else right, shares((low + high) / 2)
