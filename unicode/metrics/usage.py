"""How a codebook is used: counts of its rows -> rows in use, perplexity, entropy, share of the commonest row."""

from typing import Any

import torch
from torch import Tensor


def count_rows_(counts: Tensor, codes: Tensor) -> None:
    """Add the codes (any shape, int64 in [0, K)) of a batch to `counts` (K,) in place, without a wait for the device."""
    flat = codes.reshape(-1)
    counts.index_add_(0, flat, torch.ones((), dtype=counts.dtype, device=counts.device).expand(flat.numel()))


def usage_report(counts: Tensor) -> dict[str, Any]:
    """Summarize counts (K,): entropy in bits, perplexity = 2^entropy, usage in percent of the K rows.

    `codes` is the number of codes counted: with fewer codes than rows the usage cannot reach 100 %.
    """
    total = counts.sum().clamp_min(1)
    shares = counts.double() / total
    entropy = float(-torch.special.xlogy(shares, shares).sum() / torch.log(torch.tensor(2.0, dtype=torch.float64)))
    used = int((counts > 0).sum())
    return {
        "rows": counts.numel(),
        "codes": int(counts.sum()),
        "used": used,
        "usage_percent": 100.0 * used / counts.numel(),
        "perplexity": 2.0**entropy,
        "entropy_bits": entropy,
        "top1_share": float(shares.max()),
    }
