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
    """Shares of the targets of C codebooks of K rows, spread over k rows each."""

    row_ids: torch.Tensor  # (K,) int64 vocabulary ids, sorted; a place is an index into them
    books: torch.Tensor  # (levels + 1,) int64 codebook of each level, counted from 1
    near: torch.Tensor | None  # (C, K, k) int64 places of the rows that share a target; None: all, k = K
    shares: torch.Tensor  # (C, K, k) float32, with sum 1

    def of(self, targets: torch.Tensor, levels: torch.Tensor, *, in_vocabulary: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the classes (n, k) that share each target, and their shares (n, k); a target of level 0 keeps all of its own.

        `targets`: (n,) vocabulary ids, or places where `in_vocabulary` is false; classes are counted alike. `levels`: (n,) from 1.
        """
        places = torch.searchsorted(self.row_ids, targets).clamp_max(len(self.row_ids) - 1) if in_vocabulary else targets
        book, soft = self.books[levels], (levels > 0)[:, None]
        shares = self.shares[book, places]
        near = torch.arange(len(self.row_ids), device=places.device).expand_as(shares) if self.near is None else self.near[book, places]
        if in_vocabulary:
            near = self.row_ids[near]
        alone = torch.zeros_like(shares[:1]).index_fill_(1, self.books[:1], 1.0)  # books[0] is 0: the first of the k columns
        return torch.where(soft, near, targets[:, None]), torch.where(soft, shares, alone)


def spread_targets(
    codebooks: Sequence[torch.Tensor], row_ids: torch.Tensor, *, levels: int, smoothing: float, device: torch.device
) -> SoftTargets:
    """Compute the shares once, in float64.

    `codebooks`: (K, E) rows of each level, or of one codebook for all; E may differ. `row_ids`: (K,) vocabulary ids of the rows.
    `smoothing`: what other rows than the right one get on average, above 0 and below 1.
    """
    order = row_ids.argsort()
    pairs = [_spread(rows.to(device)[order.to(device)].double(), smoothing) for rows in codebooks]
    books = torch.arange(-1, levels).clamp(0, len(codebooks) - 1)
    near = None if len(row_ids) <= LIMIT else torch.stack([near for near, _ in pairs])
    return SoftTargets(row_ids[order].to(device), books.to(device), near, torch.stack([shares for _, shares in pairs]).float())


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
