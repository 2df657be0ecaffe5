"""Conversations -> micro-batches with their targets -> cross-entropy, averaged apart for text and images over an optimizer step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from unicode.annotations.records import TASKS
from unicode.common.distributed import all_reduce_sum_
from unicode.llm.collate import block_mask, branch_mask, collate, sum_inputs
from unicode.llm.examples import Example

Batch = dict[str, Any]
TEXT, IMAGE = 0, 1
NUM_KINDS = 2
TASK_NAMES = [*TASKS, "other"]
"""Names in the logs, in the order of their indices in targets; "other" are conversations whose record names no task."""
CHUNK = 2**24  # Logits of which float32 copies are held at once: 64 MiB each
MODEL_INPUTS = ("input_ids", "position_ids")
BRANCH_INPUTS = ("example", "branch")
EXTRA_INPUTS = ("extra_ids", "extra_at")
PACKED_INPUTS = ("cu_seq_lens", "max_length")  # of a packed row: (n + 1,) int32 borders of its examples, and the longest length


@dataclass
class Targets:
    """What the learned positions of a micro-batch must predict; n targets, in any order."""

    at: torch.Tensor  # (n,) int64 flat positions b T + t whose logits predict them
    ids: torch.Tensor  # (n,) int64 vocabulary ids
    kinds: torch.Tensor  # (n,) int64, TEXT or IMAGE
    tasks: torch.Tensor  # (n,) int64 index of the task
    weights: torch.Tensor  # (n,) float32 weight of the task

    def total_weights(self) -> torch.Tensor:
        """(2,) float64: the summed weights of the targets of each kind."""
        return torch.zeros(NUM_KINDS, dtype=torch.float64).index_add_(0, self.kinds, self.weights.double())

    def pin_memory(self) -> "Targets":
        """Copy to page-locked memory; data loaders call it."""
        return Targets(*(getattr(self, field.name).pin_memory() for field in fields(self)))

    def to(self, device: torch.device) -> "Targets":
        """Copy to a device without waiting for it."""
        return Targets(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def find_targets(labels: torch.Tensor, is_image: torch.Tensor, tasks: torch.Tensor, task_weights: torch.Tensor) -> Targets:
    """Turn labels, which stand at the position of their own token, into targets of the position before.

    `labels`: (B, T) int64, -100 where nothing is learned. `is_image`: (B, T) bool, whether the token there is an image id. `tasks`: (B, T)
    int64 index of the task each position belongs to. `task_weights`: (tasks,) float32.
    """
    learned = labels[:, 1:] != -100
    rows, positions = learned.nonzero(as_tuple=True)
    task = tasks[:, 1:][learned]
    return Targets(rows * labels.shape[1] + positions, labels[:, 1:][learned], is_image[:, 1:][learned].long(), task, task_weights[task])


@dataclass(frozen=True)
class Collator:
    """Makes micro-batches; travels to worker processes."""

    pad_id: int  # id at padded positions
    pack: bool = False  # Put all examples of a micro-batch into one row
    sums: bool = False  # The model takes compressed images (see `prepare_forward_`)
    task_weights: Mapping[str, float] = field(default_factory=dict)  # Task -> weight of its targets; 1 for those not named
    add_images: Callable[[Sequence[Example], Batch], Batch] | None = None  # Examples -> further inputs (pixels of a LLaVA model)

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Return {"inputs": arguments of the model, "targets": `Targets`, "num_tokens": tokens without padding}."""
        laid = collate(examples, pad_id=self.pad_id, pack=self.pack)
        names = MODEL_INPUTS + (EXTRA_INPUTS if self.sums else ()) + (BRANCH_INPUTS if "branch" in laid else ())
        inputs: Batch = {name: laid[name] for name in names if name in laid}
        if self.pack:  # counted here: on the device it costs a wait
            lengths = [len(example) for example in examples]
            ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
            inputs |= {"example": laid["example"], "cu_seq_lens": ends, "max_length": max(lengths)}
        if self.add_images is not None:
            inputs |= self.add_images(examples, laid)
        weights = torch.tensor([self.task_weights.get(task, 1.0) for task in TASK_NAMES])
        owner = laid["example"].clamp_min(0)  # padding is never learned: whose it is does not matter
        tasks = laid["task"].remainder(len(TASK_NAMES))[owner]
        targets = find_targets(laid["labels"], laid["is_image"], tasks, weights)
        return {"inputs": inputs, "targets": targets, "num_tokens": sum(map(len, examples))}


def prepare_forward_(model: Any, *, mask_dtype: torch.dtype = torch.float32) -> None:
    """Let a causal language model take compressed images and isolated turns, and compute logits only where something is learned.

    The forward of a model of transformers or peft then takes `extra_ids` and `extra_at` (see `collate.sum_inputs`), `example` and `branch`
    (see `collate.branch_mask`, of `mask_dtype`), PACKED_INPUTS, and `logits_at`, (n,) flat positions b T + t; with these the logits are
    (1, n, V). Packed rows need no mask with flash attention, which takes their borders; flex attention gets blocks; any other attention
    a mask of T x T, which transformers makes from position_ids. Hooks of torch, so the model keeps its class, and everything happens on
    its device, inside the forward that DDP and DeepSpeed wrap.
    """
    wanted: list[torch.Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        wanted[:] = [options.pop("logits_at")] if "logits_at" in options else []
        if "extra_ids" in options:
            rest = {name: value for name, value in options.items() if name not in ("input_ids", *EXTRA_INPUTS)}
            options = {"inputs_embeds": sum_inputs(model.get_input_embeddings(), options), **rest}
        owner, branch, ends, longest = (options.pop(name, None) for name in (*BRANCH_INPUTS, *PACKED_INPUTS))
        text = model.config.get_text_config()
        attention, windowed = str(text._attn_implementation), getattr(text, "sliding_window", None) is not None
        if owner is not None and attention == "flex_attention" and (branch is not None or not windowed):
            options["attention_mask"] = block_mask(owner, branch)
        elif branch is not None:
            options["attention_mask"] = branch_mask(owner, branch, dtype=mask_dtype)
        elif ends is not None and attention.startswith("flash_attention"):
            options |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
        return args, options

    def select(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].flatten(0, -2).index_select(0, wanted[0])[None], *args[1:]) if wanted else args

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.get_output_embeddings().register_forward_pre_hook(select)


def target_losses(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    """(n,) float32 negative log likelihoods of the targets. `logits`: (1, n, V) or (n, V), computed at the positions `targets.at`.

    Float32 copies and probabilities of large logits exist for one chunk of rows at a time; the backward pass computes them again.
    """
    rows = logits.flatten(0, -2)
    if rows.numel() <= CHUNK:
        return F.cross_entropy(rows.float(), targets.ids, reduction="none")

    def chunk(part: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(part.float(), ids, reduction="none")

    pairs = zip(*(values.split(max(1, CHUNK // rows.shape[1])) for values in (rows, targets.ids)), strict=True)
    return torch.cat([checkpoint(chunk, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs])


def combine(nll: torch.Tensor, targets: Targets, *, totals: torch.Tensor, kind_weights: torch.Tensor) -> torch.Tensor:
    """The share of one micro-batch in the loss of its step, (); the shares of all micro-batches and ranks add up to the loss.

    `nll`: (n,) from `target_losses`. `totals`: (2,) summed weights of the targets of each kind over the whole step. `kind_weights`: (2,)
    weight of the text and of the image loss.
    """
    factors = (kind_weights / totals.clamp_min(1e-9)).to(nll.dtype)
    return (nll * targets.weights * factors[targets.kinds]).sum()


class LossTable:
    """Sums of losses by task and kind, kept on the device; numbers are asked for only at log lines."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, len(TASK_NAMES) * NUM_KINDS, dtype=torch.float64, device=device)  # of losses and of targets

    @torch.no_grad()
    def add(self, nll: torch.Tensor, targets: Targets, *, weight: float = 1.0) -> None:
        """Take the targets of one micro-batch; with `weight` 0 they do not count."""
        values = torch.stack([nll.detach().double(), torch.ones_like(nll, dtype=torch.float64)]) * weight
        self.sums.index_add_(1, targets.tasks * NUM_KINDS + targets.kinds, values)

    def take(self) -> dict[str, float]:
        """Return mean losses over all ranks since the last call, and begin anew; call on every rank.

        "text_loss" and "image_loss" over all tasks, "loss/TASK" over all targets of a task, and the numbers of targets. What had no
        targets is left out.
        """
        sums, counts = all_reduce_sum_(self.sums.clone()).cpu().view(2, len(TASK_NAMES), NUM_KINDS).unbind()
        self.sums.zero_()
        means: dict[str, float] = {}
        for kind, name in ((TEXT, "text"), (IMAGE, "image")):
            if count := float(counts[:, kind].sum()):
                means |= {f"{name}_loss": float(sums[:, kind].sum()) / count, f"{name}_targets": count}
        for index, task in enumerate(TASK_NAMES):
            if count := float(counts[index].sum()):
                means[f"loss/{task}"] = float(sums[index].sum()) / count
        return means
