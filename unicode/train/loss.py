"""Conversations -> micro-batches with their targets -> cross-entropy, averaged apart for text and images over an optimizer step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from unicode.annotations.records import TASKS
from unicode.common.distributed import all_reduce_sum_
from unicode.ids.layout import Layout
from unicode.llm.collate import block_mask, branch_mask, collate, sum_inputs
from unicode.llm.examples import IGNORED, Example
from unicode.train.soft_targets import SoftTargets

Batch = dict[str, Any]
TEXT, IMAGE = 0, 1
NUM_KINDS = 2
TASK_NAMES = [*TASKS, "other"]
"""Names in the logs, in the order of their indices in targets; "other" are conversations whose record names no task."""
CHUNK = 2**24  # Logits of which float32 copies are held at once: 64 MiB each
MODEL_INPUTS = ("input_ids", "position_ids")
BRANCH_INPUTS = ("example", "branch")
EXTRA_INPUTS = ("extra_ids", "extra_at")
CELL_INPUTS = ("cells_at", "cells")
PACKED_INPUTS = ("cu_seq_lens", "max_length")  # of a packed row: (n + 1,) int32 borders of its examples, and the longest length


class Targets(NamedTuple):
    """What the learned positions of a micro-batch must predict; n targets: w of logits, in any order, then those of cells.

    Where images are written as cells, a batch without one has one that no loss counts, so that all ranks run the cell head.
    """

    at: torch.Tensor  # (w,) int64 flat positions b T + t whose logits predict the first w targets
    ids: torch.Tensor  # (n,) int64 vocabulary ids; of cells the places in the sorted ids of images
    kinds: torch.Tensor  # (n,) int64, TEXT or IMAGE
    levels: torch.Tensor  # (n,) int64 level of an image id from 1, coarse to fine; 0 for text, and where it is not known
    tasks: torch.Tensor  # (n,) int64 index of the task; len(TASK_NAMES): not counted
    weights: torch.Tensor  # (n,) float32 weight of the task

    def total_weights(self) -> torch.Tensor:
        """(2,) float64: the summed weights of the targets of each kind."""
        return torch.zeros(NUM_KINDS, dtype=torch.float64).index_add_(0, self.kinds, self.weights.double())

    def to(self, device: torch.device) -> "Targets":
        """Copy to a device without waiting for it."""
        return Targets(*(part.to(device, non_blocking=True) for part in self))


def find_targets(
    labels: torch.Tensor, is_image: torch.Tensor, tasks: torch.Tensor, task_weights: torch.Tensor, *, layout: Layout | None = None
) -> Targets:
    """Turn labels, which stand at the position of their own token, into targets of the position before.

    `labels`: (B, T) int64, -100 where nothing is learned. `is_image`: (B, T) bool, whether the token there is an image id. `tasks`: (B, T)
    int64 index of the task each position belongs to. `task_weights`: (tasks,) float32. `layout`: of the ids, which gives their levels.
    """
    learned = labels[:, 1:] != IGNORED
    rows, positions = learned.nonzero(as_tuple=True)
    task, image = tasks[:, 1:][learned], is_image[:, 1:][learned]
    levels = torch.zeros_like(task)
    if layout is not None:
        order = torch.arange(is_image.shape[1])
        place = order - torch.where(is_image, -1, order).cummax(1).values - 1  # in the run of ids; no two runs touch
        levels = torch.where(image, layout.levels()[place[:, 1:][learned].remainder(layout.num_codes)] + 1, 0)
    return Targets(rows * labels.shape[1] + positions, labels[:, 1:][learned], image.long(), levels, task, task_weights[task])


def find_cells(
    laid: Batch, tasks: torch.Tensor, task_weights: torch.Tensor, *, layout: Layout, row_ids: torch.Tensor
) -> tuple[Targets, Batch]:
    """Return the targets of a batch whose images in answers are cells, and CELL_INPUTS of the model (see `prepare_forward_`).

    `laid`: from `collate`. `row_ids`: (K,) sorted ids of images. The rest as `find_targets`. ValueError: an id that is none of them.
    """
    words = find_targets(laid["labels"].masked_fill(laid["is_image"], IGNORED), laid["is_image"], tasks, task_weights)
    first = laid["labels"].flatten()[laid["extra_at"]]
    learned = first != IGNORED
    at, ids = laid["extra_at"][learned], torch.cat((first[:, None], laid["extra_ids"]), dim=1)[learned]
    places, task, levels = find_places(ids, row_ids), tasks.flatten()[at], layout.levels()[: layout.cell_length] + 1
    if not len(at):
        at, places, task = torch.ones(1).long(), torch.zeros(1, layout.cell_length).long(), torch.tensor([len(TASK_NAMES)])
        levels, task_weights = torch.zeros_like(levels), torch.cat((task_weights, torch.zeros(1)))
    task = task.repeat_interleave(layout.cell_length)
    more = places.flatten(), torch.full_like(task, IMAGE), levels.repeat(len(at)), task, task_weights[task]
    known = words.ids, words.kinds, words.levels, words.tasks, words.weights
    return Targets(words.at, *map(torch.cat, zip(known, more, strict=True))), {"cells_at": at - 1, "cells": places}


def find_places(ids: torch.Tensor, row_ids: torch.Tensor) -> torch.Tensor:
    """Return the places of ids in `row_ids` (K,), which are sorted. ValueError: an id that is not among them."""
    places = torch.searchsorted(row_ids, ids).clamp_max(len(row_ids) - 1)
    if (foreign := row_ids[places] != ids).any():
        found = f"an image holds the id {int(ids[foreign][0])}, which model.image_tokenizer does not write"
        raise ValueError(f"{found}; name the right tokenizer")
    return places


@dataclass(frozen=True)
class Collator:
    """Makes micro-batches; travels to worker processes."""

    pad_id: int  # id at padded positions
    pack: bool = False  # Put all examples of a micro-batch into one row
    sums: bool = False  # The model takes compressed images and cells (see `prepare_forward_`)
    layout: Layout | None = None  # Of the ids of images, where it is known
    cells: bool = False  # Images in answers are cells
    row_ids: torch.Tensor | None = None  # (K,) sorted ids of images, outside which none may be learned; None: not checked
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
        if self.cells:
            assert self.layout is not None and self.row_ids is not None
            targets, cells = find_cells(laid, tasks, weights, layout=self.layout, row_ids=self.row_ids)
            inputs |= cells
        else:
            targets = find_targets(laid["labels"], laid["is_image"], tasks, weights, layout=self.layout)
            if self.row_ids is not None:
                find_places(targets.ids[targets.kinds == IMAGE], self.row_ids)
        return {"inputs": inputs, "targets": targets, "num_tokens": sum(map(len, examples))}


def prepare_forward_(model: Any, *, mask_dtype: torch.dtype = torch.float32) -> None:
    """Let a causal language model take compressed images and isolated turns, and compute logits only where something is learned.

    The forward of a model of transformers or peft then takes `extra_ids` and `extra_at` (see `collate.sum_inputs`), `example` and `branch`
    (see `collate.branch_mask`, of `mask_dtype`), PACKED_INPUTS, and `logits_at`, (n,) flat positions b T + t; with these the logits are
    (1, n, V). With `cells_at`, (c,) flat positions before cells, and `cells`, (c, m) places of their ids, the module `cell_head` of the
    model adds an output `cell_logits`, (c m, K). Packed rows need no mask with flash attention, which takes their borders; flex attention
    gets blocks; any other attention a mask of T x T, which transformers makes from position_ids. Hooks of torch, so the model keeps its
    class, and everything happens on its device, inside the forward that DDP and DeepSpeed wrap.
    """
    wanted: dict[str, torch.Tensor] = {}

    def before(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        wanted.clear()
        wanted.update({name: options.pop(name) for name in ("logits_at", *CELL_INPUTS) if name in options})
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
        if not wanted:
            return args
        states = args[0].flatten(0, -2)
        if "cells" in wanted:
            with torch.no_grad():  # the table itself stays as it is
                rows = model.get_input_embeddings()(model.cell_head.row_ids)
            queries = model.cell_head(states.index_select(0, wanted["cells_at"]), rows[wanted["cells"][:, :-1]])
            wanted["cell_logits"] = F.linear(queries.flatten(0, 1), rows.to(queries.dtype))
        return (states.index_select(0, wanted["logits_at"])[None], *args[1:])

    def after(_: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        if "cell_logits" in wanted:
            outputs["cell_logits"] = wanted.pop("cell_logits")
        return outputs

    model.register_forward_hook(after)
    model.register_forward_pre_hook(before, with_kwargs=True)
    model.get_output_embeddings().register_forward_pre_hook(select)


def target_losses(
    logits: torch.Tensor, targets: Targets, *, cell_logits: torch.Tensor | None = None, soft: SoftTargets | None = None
) -> torch.Tensor:
    """(n,) float32 cross-entropy of the targets: their negative log likelihood, or with `soft` that of the ids that look alike.

    `logits`: (1, w, V) or (w, V), computed at the positions `targets.at`. `cell_logits`: (n - w, K) of the targets of cells.
    """
    words = len(targets.at)
    found = _cross_entropy(logits.flatten(0, -2), targets.ids[:words], targets.levels[:words], soft, in_vocabulary=True)
    if cell_logits is None:
        return found
    cells = _cross_entropy(cell_logits, targets.ids[words:], targets.levels[words:], soft, in_vocabulary=False)
    return torch.cat((found, cells))


def _cross_entropy(
    rows: torch.Tensor, ids: torch.Tensor, levels: torch.Tensor, soft: SoftTargets | None, *, in_vocabulary: bool
) -> torch.Tensor:
    """(n,) float32 of logits (n, V).

    Float32 copies and probabilities of large logits exist for one chunk of rows at a time; the backward pass computes them again.
    """

    def chunk(part: torch.Tensor, ids: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        if soft is None:
            return F.cross_entropy(part.float(), ids, reduction="none")
        near, shares = soft.of(ids, levels, in_vocabulary=in_vocabulary)
        part = part.float()
        return part.logsumexp(1) - ((part if near is None else part.gather(1, near)) * shares).sum(1)

    if rows.numel() <= CHUNK:
        return chunk(rows, ids, levels)
    parts = zip(*(values.split(max(1, CHUNK // rows.shape[1])) for values in (rows, ids, levels)), strict=True)
    return torch.cat([checkpoint(chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def combine(nll: torch.Tensor, targets: Targets, *, totals: torch.Tensor, kind_weights: torch.Tensor) -> torch.Tensor:
    """The share of one micro-batch in the loss of its step, (); the shares of all micro-batches and ranks add up to the loss.

    `nll`: (n,) from `target_losses`. `totals`: (2,) summed weights of the targets of each kind over the whole step. `kind_weights`: (2,)
    weight of the text and of the image loss.
    """
    factors = (kind_weights / totals.clamp_min(1e-9)).to(nll.dtype)
    return (nll * targets.weights * factors[targets.kinds]).sum()


class LossTable:
    """Sums of losses by task and kind, and by level of image ids, kept on the device; numbers are asked for only at log lines."""

    def __init__(self, device: torch.device, *, levels: int = 0) -> None:
        self.tasks = (len(TASK_NAMES) + 1) * NUM_KINDS  # the last one of them is of targets that are not counted
        self.sums = torch.zeros(2, self.tasks + levels + 1, dtype=torch.float64, device=device)  # of losses and of targets

    @torch.no_grad()
    def add(self, nll: torch.Tensor, targets: Targets, *, weight: float = 1.0) -> None:
        """Take the targets of one micro-batch; with `weight` 0 they do not count."""
        values = torch.stack([nll.detach().double(), torch.ones_like(nll, dtype=torch.float64)]) * weight
        self.sums.index_add_(1, targets.tasks * NUM_KINDS + targets.kinds, values)
        self.sums.index_add_(1, self.tasks + targets.levels, values)

    def take(self) -> dict[str, float]:
        """Return mean losses over all ranks since the last call, and begin anew; call on every rank.

        "text_loss" and "image_loss" over all tasks, "loss/TASK" over all targets of a task, "loss/level_L" over those of a level, and the
        numbers of targets. What had no targets is left out.
        """
        both = all_reduce_sum_(self.sums.clone()).cpu()
        self.sums.zero_()
        sums, counts = both[:, : self.tasks].view(2, -1, NUM_KINDS)[:, :-1].unbind()
        means: dict[str, float] = {}
        for kind, name in ((TEXT, "text"), (IMAGE, "image")):
            if count := float(counts[:, kind].sum()):
                means |= {f"{name}_loss": float(sums[:, kind].sum()) / count, f"{name}_targets": count}
        for index, task in enumerate(TASK_NAMES):
            if count := float(counts[index].sum()):
                means[f"loss/{task}"] = float(sums[index].sum()) / count
        for level, (loss, count) in enumerate(both[:, self.tasks + 1 :].T.tolist()):
            if count:
                means[f"loss/level_{level}"] = loss / count
        return means
