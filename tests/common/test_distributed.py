"""What ranks tell each other."""

import pytest
import torch

from unicode.common import distributed
from unicode.common.distributed import ranks_agree


@pytest.mark.parametrize("same", [True, False])
def test_ranks_that_hold_other_bits_are_found(monkeypatch: pytest.MonkeyPatch, same: bool) -> None:
    """The other rank is played by what it would send."""
    mine, sent = [torch.linspace(-1, 1, 300).view(30, 10), torch.ones(3)], []
    theirs = [mine[0].clone(), mine[1]]
    theirs[0][7, 3] += 0.0 if same else 1e-7
    monkeypatch.setattr(distributed, "_peers", lambda: True)
    monkeypatch.setattr(distributed, "all_reduce_min_", lambda tensor: sent.append(tensor.clone()) or tensor)
    assert ranks_agree(theirs)
    monkeypatch.setattr(distributed, "all_reduce_min_", lambda tensor: torch.minimum(tensor, sent[0]))
    assert ranks_agree(mine) is same
