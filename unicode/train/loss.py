"""Cross-entropy of text and image targets, averaged apart over a whole optimizer step."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from unicode.common.distributed import all_reduce_sum_

TEXT, IMAGE = 0, 1
NUM_KINDS = 2


@dataclass
class Targets:
    """What the learned positions of a micro-batch must predict; n targets, in any order.

    Attributes:
        keep: (k,) int64 positions whose logits are computed at all, ascending; None: every position but the last.
        at: (n,) int64 into the flattened (B, k) of the logits.
        ids: (n,) int64 vocabulary ids.
        kinds: (n,) int64, TEXT or IMAGE.
        tasks: (n,) int64 index of the task.
        weights: (n,) float32 weight of the task.
    """

    keep: torch.Tensor | None
    at: torch.Tensor
    ids: torch.Tensor
    kinds: torch.Tensor
    tasks: torch.Tensor
    weights: torch.Tensor

    def total_weights(self) -> torch.Tensor:
        """(2,) float64: the summed weights of the targets of each kind."""
        return torch.zeros(NUM_KINDS, dtype=torch.float64).index_add_(0, self.kinds, self.weights.double())

    def pin_memory(self) -> "Targets":
        """In page-locked memory, as data loaders ask for it."""
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> "Targets":
        """On a device, without waiting for it."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Targets":
        values = [getattr(self, field.name) for field in fields(self)]
        return Targets(*(None if value is None else change(value) for value in values))  # type: ignore[arg-type]


def find_targets(
    labels: torch.Tensor, is_image: torch.Tensor, tasks: torch.Tensor, task_weights: torch.Tensor, *, keep_logits: bool = True
) -> Targets:
    """Turn labels, which stand at the position of their own token, into targets of the position before.

    Args:
        labels: (B, T) int64, -100 where nothing is learned.
        is_image: (B, T) bool, whether the token there is an image id.
        tasks: (B, T) int64 index of the task each position belongs to.
        task_weights: (tasks,) float32.
        keep_logits: compute logits only at positions that some row of the batch learns from.
    """
    shifted = labels[:, 1:]
    learned = shifted != -100
    rows, positions = learned.nonzero(as_tuple=True)
    keep, width = None, shifted.shape[1] + 1
    columns = positions
    if keep_logits:
        keep = learned.any(dim=0).nonzero().flatten()
        width = len(keep)
        columns = torch.searchsorted(keep, positions)
    task = tasks[:, 1:][learned]
    return Targets(keep, rows * width + columns, shifted[learned], is_image[:, 1:][learned].long(), task, task_weights[task])


def target_losses(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """(n,) float32 negative log likelihoods of the targets.

    Args:
        logits: (B, k, V) at the positions `targets.keep`.
    """
    chosen = logits.flatten(0, 1).index_select(0, targets.at)
    return F.cross_entropy(chosen.float(), targets.ids, reduction="none")


def combine(nll: torch.Tensor, targets: Targets, *, totals: torch.Tensor, kind_weights: torch.Tensor) -> torch.Tensor:
    """The share of one micro-batch in the loss of its step, (); the shares of all micro-batches and ranks add up to the loss.

    Args:
        nll: (n,) from `target_losses`.
        totals: (2,) summed weights of the targets of each kind over the whole step.
        kind_weights: (2,) weight of the text and of the image loss.
    """
    factors = (kind_weights / totals.clamp_min(1e-9)).to(nll.dtype)
    return (nll * targets.weights * factors[targets.kinds]).sum()


class LossTable:
    """Sums of losses by task and kind, kept on the device; numbers are asked for only at log lines.

    Args:
        tasks: names of the tasks.
        device: where to add up.
    """

    def __init__(self, tasks: list[str], device: torch.device) -> None:
        self.tasks = tasks
        self.sums = torch.zeros(2, len(tasks) * NUM_KINDS, dtype=torch.float64, device=device)  # of losses and of targets

    @torch.no_grad()
    def add(self, nll: torch.Tensor, targets: Targets, *, weight: float = 1.0) -> None:
        """Take the targets of one micro-batch; `weight` 0 takes part without counting."""
        cells = targets.tasks * NUM_KINDS + targets.kinds
        values = torch.stack([nll.detach().double(), torch.ones_like(nll, dtype=torch.float64)]) * weight
        self.sums.index_add_(1, cells, values)

    def take(self) -> dict[str, float]:
        """Return mean losses over all ranks since the last call, and begin anew; call on every rank.

        "text_loss" and "image_loss" over all tasks, "loss/TASK" over all targets of a task, and the numbers of targets. What had no
        targets is left out.
        """
        sums, counts = all_reduce_sum_(self.sums.clone()).cpu().view(2, len(self.tasks), NUM_KINDS).unbind()
        self.sums.zero_()
        means: dict[str, float] = {}
        for kind, name in ((TEXT, "text"), (IMAGE, "image")):
            if counts[:, kind].sum() > 0:
                means[f"{name}_loss"] = float(sums[:, kind].sum() / counts[:, kind].sum())
                means[f"{name}_targets"] = float(counts[:, kind].sum())
        for index, task in enumerate(self.tasks):
            if counts[index].sum() > 0:
                means[f"loss/{task}"] = float(sums[index].sum() / counts[index].sum())
        return means
