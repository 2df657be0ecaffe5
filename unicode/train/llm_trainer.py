"""transformers' Trainer with this project's batches, loss, data order and held-out losses."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from unicode.annotations.records import TASKS
from unicode.common.checkpoint import save_checkpoint
from unicode.common.distributed import all_reduce_sum_, is_main, rank, world_size
from unicode.llm.collate import collate, sum_inputs
from unicode.llm.examples import Example
from unicode.llm.llava import LlavaModel
from unicode.llm.lora import is_marker_row
from unicode.train.config import TrainLlmConfig
from unicode.train.loss import LossTable, combine, find_targets, target_losses
from unicode.train.monitor import LlmMonitor
from unicode.train.samplers import ConversationSampler

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


class LlmTrainer(Trainer):
    """Trains a language model on conversations.

    Args:
        model: a causal language model, a PEFT model of one, or a LLaVA model.
        args: arguments of transformers, as `unicode.train.llm` builds them.
        config: the run's config.
        sampler: order of the training conversations on this rank.
        train_set: training conversations.
        val_set: held-out conversations; None for none.
        collator: examples -> batch.
        text_tokenizer: saved with every checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        config: TrainLlmConfig,
        sampler: ConversationSampler,
        train_set: Dataset[Any],
        val_set: Dataset[Any] | None,
        collator: Collator,
        text_tokenizer: Any,
    ) -> None:
        self.folder = self.checkpoint_folder = Path(str(args.output_dir))
        self.monitor = LlmMonitor(self.folder, args.device)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_set,
            eval_dataset=val_set,
            processing_class=text_tokenizer,
            callbacks=[self.monitor],
        )
        self.remove_callback(PrinterCallback)
        self.settings, self.sampler, self.collator = config, sampler, collator
        self.whole_model: Any = model  # not wrapped by DDP or DeepSpeed
        self.text_tokenizer = text_tokenizer
        weights = config.optimizer
        self.kind_weights = torch.tensor([weights.text_weight, weights.image_weight], device=args.device)
        self.losses = LossTable(collator.tasks, args.device)
        # The loss is normalized over the whole step here: Trainer shall not divide it by the number of micro-batches once more.
        self.model_accepts_loss_kwargs, self.loss_is_scaled_for_ga = True, True

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of this rank, left on the CPU: counting their targets there costs no wait for the device."""
        return self._loader(self.train_dataset, self.sampler)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Return the micro-batches of one step on this rank, and the weights of text and image targets in the whole step, (2,).

        Dropout is seeded by the step, so that a resumed run needs no random state and ends with the same bits.
        """
        samples = [next(epoch_iterator) for _ in range(num_batches)]
        counts = torch.zeros(3, dtype=torch.float64)
        for batch in samples:
            counts[:2] += batch["targets"].total_weights()
            counts[2] += batch["num_tokens"]
        self.monitor.tokens += int(counts[2])
        torch.manual_seed((self.args.seed * 1_000_003 + self.state.global_step) * 4099 + rank())
        return samples, all_reduce_sum_(counts[:2].to(device=self.args.device, dtype=torch.float32))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The share of a micro-batch in the loss of its step, times the number of ranks, because ranks average their gradients."""
        assert isinstance(num_items_in_batch, torch.Tensor), "the targets of the step were not counted"
        nll, targets = self._forward(model, inputs)
        self.losses.add(nll, targets)
        loss = combine(nll, targets, totals=num_items_in_batch, kind_weights=self.kind_weights)
        self.monitor.watch(loss.detach(), self.state.global_step + 1)
        loss = loss * world_size()
        return (loss, None) if return_outputs else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with groups of their own for projector and marker rows; no decay for vectors and marker rows."""
        if self.optimizer is None:
            options = self.settings.optimizer
            rates = {"main": options.lr, "projector": options.projector_lr or options.lr, "markers": options.marker_lr or options.lr}
            groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
            for name, parameter in self.whole_model.named_parameters():
                if parameter.requires_grad:
                    kind = "projector" if name.startswith("projector.") else "markers" if is_marker_row(name, parameter) else "main"
                    matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
                    groups.setdefault((kind, matrix and kind != "markers"), []).append(parameter)
            optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, self.whole_model)
            decay = self.args.weight_decay
            wanted = [{"params": found, "lr": rates[kind], "weight_decay": decay * decays} for (kind, decays), found in groups.items()]
            self.optimizer = optimizer(wanted, **settings)
        return self.optimizer  # type: ignore[no-any-return]

    @torch.no_grad()
    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Measure the held-out losses, plain and by task; every conversation counts once, whatever the ranks."""
        if self.eval_dataset is None:
            return {}
        begun, model = time.perf_counter(), self.model_wrapped
        table = LossTable(self.collator.tasks, self.args.device)
        was_training = model.training
        model.eval()
        batches, counts = self._eval_batches()
        for batch, count in zip(self._loader(self.eval_dataset, batches), counts, strict=True):
            nll, targets = self._forward(model, self._prepare_inputs(batch))
            table.add(nll, targets, weight=count)
        model.train(was_training)
        found = table.take()
        options = self.settings.optimizer
        loss = options.text_weight * found.get("text_loss", 0.0) + options.image_weight * found.get("image_loss", 0.0)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in {"loss": loss, **found}.items() if "targets" not in name}
        metrics[f"{metric_key_prefix}_seconds"] = time.perf_counter() - begun
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.monitor.tokens_per_second()  # the time of the measurement belongs to no step
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the losses by kind and task, and tokens per second, to a training log."""
        if "loss" in logs:
            logs |= self.losses.take()
            logs["tokens_per_second"] = self.monitor.tokens_per_second()
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter, or the whole model where it was tuned, and a projector; never full weights beside an adapter."""
        model = self.whole_model
        inner = model.lm if isinstance(model, LlavaModel) else model
        adapted = isinstance(inner, PeftModel)
        if inner is model and not adapted:
            super().save_model(output_dir, _internal_call)
            return
        tuned = not adapted and any(parameter.requires_grad for parameter in inner.parameters())
        state = self.accelerator.get_state_dict(self.model_wrapped) if tuned else gather_trainable(model)
        if is_main():
            folder = output_dir or str(self.folder)
            model.save_pretrained(folder, state_dict=state, **({"save_embedding_layers": False} if adapted else {}))
            self.text_tokenizer.save_pretrained(folder)

    def _get_output_dir(self, trial: Any) -> str:
        """Where Trainer puts the folder checkpoint-N."""
        return str(self.checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as `unicode.common.checkpoint` does, whatever engine writes the files."""

        def write(folder: Path) -> None:
            self.checkpoint_folder = folder.parent
            super(LlmTrainer, self)._save_checkpoint(model, trial)
            self.checkpoint_folder = self.folder

        save_checkpoint(self.folder / f"checkpoint-{self.state.global_step}", write, keep=self.settings.train.keep)

    def _save_rng_state(self, output_dir: str) -> None:
        """Not saved: put back after the seed of a step is set, it would undo it."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Fill the model from a checkpoint; a LLaVA model, which transformers does not know, from what `save_model` wrote."""
        if isinstance(self.whole_model, LlavaModel):
            self.whole_model.load_trained_(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: transformers would walk over all parameters in every step."""
        return 0

    def _forward(self, model: nn.Module, inputs: Batch) -> tuple[torch.Tensor, Any]:
        """(n,) losses of the targets of a micro-batch, and the targets."""
        targets = inputs["targets"].to(self.args.device)
        options = {} if targets.keep is None else {"logits_to_keep": targets.keep}
        outputs = model(**inputs["inputs"], **options, use_cache=False)
        return target_losses(outputs.logits, targets), targets

    def _loader(self, dataset: Any, batches: Any) -> DataLoader[Any]:
        workers = self.settings.data.num_workers
        return DataLoader(
            dataset, batch_sampler=batches, collate_fn=self.collator, num_workers=workers, pin_memory=self.args.device.type == "cuda"
        )

    def _eval_batches(self) -> tuple[list[list[int]], list[float]]:
        """Batches of this rank, of like lengths, and 1 for each; ranks with fewer repeat one that counts 0, so that all do as many."""
        total, limit = len(self.eval_dataset), self.settings.train.eval_samples  # type: ignore[arg-type]
        chosen = np.unique(np.linspace(0, total - 1, min(total, limit or total)).round().astype(np.int64))
        chosen = chosen[np.argsort(np.asarray(self.eval_dataset.lengths)[chosen], kind="stable")]  # type: ignore[union-attr]
        size = self.args.per_device_eval_batch_size
        batches = [chosen[begin : begin + size].tolist() for begin in range(0, len(chosen), size)]
        mine = batches[rank() :: world_size()]
        missing = -(-len(batches) // world_size()) - len(mine)
        return [*mine, *[batches[0]] * missing], [1.0] * len(mine) + [0.0] * missing


def gather_trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return name -> trainable weight on the CPU, complete also where ZeRO-3 has split it; call on every rank."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gathered: Any = nullcontext()
    if any(hasattr(parameter, "ds_id") for parameter in named.values()):
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(list(named.values()))
    with gathered:
        return {name: parameter.detach().cpu().clone() for name, parameter in named.items()}
