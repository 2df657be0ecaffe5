"""Rows as decayed averages of the latents assigned to them (van den Oord et al. 2017, appendix A.1), with restart of dead ones."""

import torch
from torch import nn

from unicode.common.ranks import rank, world_size

MAX_CANDIDATES = 1024  # latents offered per step to rows that nobody uses


class AverageRows(nn.Module):
    """u_j = decayed sum of latents assigned to j / decayed count of j.

    Kept as the quotient and the count, so that a row that no latent comes to stays where it is however long that lasts.

    Args:
        start: (K, E) the rows at step 0.
        decay: share of the old sum and count kept per optimizer step.
        restart_threshold: rows whose count falls below this share of the mean count are dead and restart at a latent of the
            current step; 0 turns restarting off.
    """

    average: torch.Tensor
    count: torch.Tensor

    def __init__(self, start: torch.Tensor, *, decay: float, restart_threshold: float) -> None:
        super().__init__()
        self.decay, self.restart_threshold = decay, restart_threshold
        self.register_buffer("average", start.clone())
        self.register_buffer("count", torch.zeros(len(start)))
        self.steps = 0  # on the host: the draw of restart candidates needs it every step without waiting for the device
        self.pending: list[torch.Tensor] = []
        self.calls = 0  # of `observe` in this step: levels that share the rows, micro-batches

    @torch.no_grad()
    def observe(self, latents: torch.Tensor, codes: torch.Tensor) -> None:
        """Take down which latents (N, E) went to which rows (N,); may be called several times a step."""
        latents, size = latents.float(), len(self.count)
        if not self.pending:
            candidates = min(size, MAX_CANDIDATES) if self.restart_threshold > 0 else 0
            self.pending = [torch.zeros_like(self.average), torch.zeros_like(self.count), latents.new_zeros(candidates, latents.shape[1])]
        sums, counts, offered = self.pending
        sums.index_add_(0, codes, latents)
        counts += torch.bincount(codes, minlength=size)
        self.calls += 1
        self._offer_(offered, latents)

    def _offer_(self, candidates: torch.Tensor, latents: torch.Tensor) -> None:
        """Put latents of the global batch at random places of `candidates`; each rank fills in those that it holds.

        The draw depends on the step alone, so the sum over the ranks is the same table of candidates everywhere, and the
        same as one rank with the whole batch would draw. The c-th call of a step replaces every c-th candidate: each level
        that shares the rows has its say.
        """
        candidates = candidates[:: self.calls]
        generator = torch.Generator().manual_seed(self.steps * 1009 + self.calls)
        chosen = torch.randint(len(latents) * world_size(), (len(candidates),), generator=generator)
        owner, place = chosen // len(latents), chosen % len(latents)
        mine = (owner == rank()).to(latents.device)
        candidates.copy_(torch.where(mine[:, None], latents[place.to(latents.device)], 0.0))

    def get_extra_state(self) -> torch.Tensor:
        """Return the number of updates so far for the state dict."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Take the number of updates from a state dict."""
        self.steps = int(state)

    def statistics(self) -> list[torch.Tensor]:
        """Return what this step has seen, as tensors to be summed over the ranks in place."""
        return self.pending

    @torch.no_grad()
    def update_(self) -> None:
        """Move the rows towards the latents of this step, and restart the dead ones."""
        if not self.pending:
            return
        sums, counts, candidates = self.pending
        kept = self.count * self.decay
        self.count.copy_(kept + (1 - self.decay) * counts)
        seen = self.count.clamp_min(torch.finfo(torch.float32).tiny)
        share = torch.where(self.count > 0, kept / seen, 1.0)
        self.average.mul_(share.unsqueeze(1)).add_(sums.mul_(((1 - self.decay) / seen).unsqueeze(1)))
        if len(candidates):
            self._restart_(candidates)
        self.steps += 1
        self.pending, self.calls = [], 0

    def _restart_(self, candidates: torch.Tensor) -> None:
        """Give the rows with the smallest counts, where these are below the threshold, a candidate and the mean count."""
        mean = self.count.mean()
        smallest, rows = self.count.topk(len(candidates), largest=False)
        dead = (smallest < self.restart_threshold * mean).unsqueeze(1)
        self.average[rows] = torch.where(dead, candidates, self.average[rows])
        self.count[rows] = torch.where(dead.squeeze(1), mean, smallest)
