"""Examples -> a micro-batch of training: what the model is called with, and the targets of its logits, found where examples are read."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unicode.annotations.conversation import TASKS
from unicode.llm.collate import collate, sum_inputs
from unicode.llm.supervise import Example
from unicode.train.llm_loss import find_targets

Batch = dict[str, Any]
OTHER = "other"
"""Name in the logs of conversations whose record names no task."""
MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")
EXTRA_INPUTS = ("extra_ids", "extra_at")


@dataclass(frozen=True)
class Collator:
    """Makes micro-batches; travels to worker processes.

    Attributes:
        pad_id: id at padded positions.
        pack: put all examples of a micro-batch into one row.
        sums: the model takes `extra_ids` and `extra_at` (see `sum_inputs_`).
        keep_logits: the model takes `logits_to_keep`, so logits are computed only where something is learned.
        mask_dtype: of masks with four dimensions.
        task_weights: task -> weight of its targets; 1 for those not named.
        add_images: examples -> further inputs of the model (pixels of a LLaVA model); None for a model that reads ids.
    """

    pad_id: int
    pack: bool = False
    sums: bool = False
    keep_logits: bool = True
    mask_dtype: torch.dtype = torch.float32
    task_weights: Mapping[str, float] | None = None
    add_images: Callable[[Sequence[Example], Batch], Batch] | None = None

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of their indices in targets."""
        return [*TASKS, OTHER]

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Return {"inputs": arguments of the model, "targets": `Targets`, "num_tokens": tokens without padding}."""
        laid = collate(examples, pad_id=self.pad_id, pack=self.pack, mask_dtype=self.mask_dtype)
        names = (*MODEL_INPUTS, *EXTRA_INPUTS) if self.sums else MODEL_INPUTS
        inputs = {name: laid[name] for name in names if name in laid}
        if self.add_images is not None:
            inputs |= self.add_images(examples, laid)
        weights = torch.tensor([(self.task_weights or {}).get(task, 1.0) for task in self.tasks])
        owner = laid["example"].clamp_min(0)  # padding is never learned: whose it is does not matter
        tasks = laid["task"].remainder(len(self.tasks))[owner]
        targets = find_targets(laid["labels"], laid["is_image"], tasks, weights, keep_logits=self.keep_logits)
        return {"inputs": inputs, "targets": targets, "num_tokens": sum(map(len, examples))}


def sum_inputs_(model: nn.Module, embed: nn.Module) -> None:
    """Let a model take `extra_ids` and `extra_at`: compressed images become embeddings before its forward begins.

    A hook of torch, so the model stays the plain class that it is, and everything happens inside the forward that DDP and DeepSpeed wrap.

    Args:
        model: whose forward takes `input_ids` or `inputs_embeds`.
        embed: its embedding layer.
    """

    def before(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "extra_ids" in options:
            rest = {name: value for name, value in options.items() if name not in ("input_ids", *EXTRA_INPUTS)}
            options = {"inputs_embeds": sum_inputs(embed, options), **rest}
        return args, options

    model.register_forward_pre_hook(before, with_kwargs=True)


def keeps_logits(model: nn.Module) -> bool:
    """Whether a model of transformers can compute logits at some positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
