"""Training of a language model on conversations with images: a config in, a run folder with an adapter or model out; resumes."""

import resource
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer

from unicode.annotations.records import TASKS
from unicode.common.checkpoint import checkpoint_step, newest_checkpoint, save_checkpoint
from unicode.common.config import save_config
from unicode.common.distributed import all_reduce_sum_, barrier, broadcast_, is_main, on_main, rank, world_size
from unicode.common.files import lock_folder, name_errors, read_json, write_json
from unicode.common.logging import get_logger
from unicode.llm.card import Card, fingerprint_base, write_card
from unicode.llm.cell_head import CellHead, load_cell_head_, save_cell_head
from unicode.llm.examples import preview
from unicode.llm.llava import LlavaModel
from unicode.llm.lora import add_lora_, count_parameters, freeze_table_, is_marker_row, marker_rows_train
from unicode.llm.model import fit_embeddings_, gathered, open_base, open_description, table_rows
from unicode.llm.template import get_template
from unicode.llm.vocabulary import choose_markers
from unicode.train.config import TrainLlmConfig
from unicode.train.llm_data import open_vision, read_data, spread
from unicode.train.loss import Batch, Collator, LossTable, combine, prepare_forward_, target_losses
from unicode.train.monitor import LlmMonitor
from unicode.train.runtime import build_arguments, check_resumable, resolve_attention, resolve_runtime
from unicode.train.samplers import ConversationSampler
from unicode.train.soft_targets import SoftTargets, spread_targets

SUMMARY = "summary.json"
FIXED = ("model.path", "model.template", "model.input_mode", "model.output_mode", "cells.", "lora.", "vision.")
"""Settings that a run folder keeps: what its weights mean."""
HEAD = "cell_head."  # Before the names of its weights
LAST = (".o_proj", ".down_proj", ".out", ".down")
"""Ends of the names of the last matrix in attention and MLP, of LLaMA and of the cell head."""
MUON = "muon"  # Value of "by" in the groups of parameters that it trains
logger = get_logger(__name__)


class LlmTraining:
    """Builds everything that a config names, then trains.

    Data and their order come first, the weights of the model last: what a user can get wrong is found before minutes of loading. Raises
    ValueError, FileNotFoundError: whatever in the config, the data, the model or the run folder does not fit, before work starts.
    """

    def __init__(self, config: TrainLlmConfig) -> None:
        self.config, self.folder = config, Path(config.run.dir)
        if not config.model.path:
            raise ValueError("model.path is empty; give the folder of a language model, for example model.path=outputs/base")
        self.runtime = resolve_runtime(config)
        self.vision = open_vision(config.vision)
        self.markers_train = marker_rows_train(config.lora, zero_stage=self.runtime.zero_stage)
        model_config, self.text_tokenizer = open_description(config.model.path)
        self.attention = resolve_attention(config, self.runtime, model_config)
        self.markers = choose_markers(self.text_tokenizer, table_rows=table_rows(model_config))
        self.template = get_template(config.model.template, self.text_tokenizer)
        self.data = read_data(
            config,
            model_config=model_config,
            template=self.template,
            text_tokenizer=self.text_tokenizer,
            markers=self.markers,
            image_positions=self.vision.tower.num_features if self.vision else 0,
        )
        if self.vision:
            self.vision.check(self.data.train)
        loop = config.train
        self.steps = loop.steps or max(1, round(loop.epochs * self.data.epoch_length / loop.batch_size))
        check_resumable(config, self.folder, fixed=FIXED)
        self.args = build_arguments(config, self.runtime, steps=self.steps)
        torch.manual_seed(config.run.seed)
        self.model: Any = self._build_model()

    def _build_model(self) -> Any:
        config, model, device = self.config, self.config.model, "cpu" if self.runtime.cpu else "cuda"
        # Frozen weights may be bfloat16; trained ones need an exact copy somewhere, which DeepSpeed keeps.
        small = self.runtime.bf16 and (config.lora.enabled or bool(config.run.deepspeed))
        dtype = model.dtype if model.dtype != "auto" else "bfloat16" if small else "float32"
        base: Any = open_base(model.path, dtype=dtype, attention=self.attention, quantize=model.quantize, device=device)[0]
        fit_embeddings_(base, self.markers)
        base.config.use_cache = False
        if model.gradient_checkpointing:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if config.lora.enabled:
            base = add_lora_(base, config.lora, self.markers, train_markers=self.markers_train)
        else:
            freeze_table_(base, self._learning_rows(base))
        if model.output_mode == "cells":
            base.cell_head = self._build_cell_head(base)
        if model.dropout:
            last = [module for name, module in base.named_modules() if name.endswith(LAST)]
            if not last:
                raise ValueError(f"model.dropout: no module of {model.path} ends in {', '.join(LAST)}, as those of LLaMA do; set it to 0")
            for module in last:
                module.register_forward_hook(lambda module, _, output: F.dropout(output, model.dropout, module.training))
        prepare_forward_(base, mask_dtype=torch.bfloat16 if self.runtime.bf16 else torch.float32)
        return self.vision.wrap(base) if self.vision else base

    def _learning_rows(self, lm: Any) -> list[int]:
        """Ids of the rows of the table that full tuning trains."""
        if self.config.lora.train_words:
            assert self.data.image_ids is not None, "the config names the image tokenizer"
            image_ids = set(self.data.image_ids.tolist())
            return [row for row in range(lm.get_input_embeddings().num_embeddings) if row not in image_ids]
        return sorted(self.markers.ids()) if self.markers_train else []

    def _build_cell_head(self, lm: Any) -> CellHead:
        table, layout, row_ids = lm.get_input_embeddings().weight, self.data.train.layout, self.data.image_ids
        assert layout is not None and row_ids is not None, "the config names the image tokenizer"
        sizes = {"hidden_size": lm.config.get_text_config().hidden_size, "table_width": getattr(table, "ds_shape", table.shape)[1]}
        return CellHead(self.config.cells, layout=layout, row_ids=row_ids, **sizes).to(table.device)

    @cached_property
    def cell_head_fingerprint(self) -> str:
        """Of the cell head for this base model and image tokenizer; "" where there is none."""
        if self.config.model.output_mode != "cells":
            return ""
        return str(self.model.cell_head.fingerprint(fingerprint_base(self.config.model.path)))

    def describe(self) -> str:
        """One line on model, data and steps."""
        learning, total = count_parameters(self.model)
        held_out = f", {len(self.data.val)} held out" if self.data.val is not None else ""
        data = f"{len(self.data.train)} conversations ({self.data.epoch_length} an epoch{held_out}), longest {self.data.max_length} tokens"
        return f"{total / 1e6:.1f} M parameters, {learning / 1e6:.2f} M of them learn; {data}; {self.steps} steps on {self.args.device}"

    def preview(self, count: int) -> None:
        """Print the first conversations of the run's order, learned and masked tokens told apart."""
        sampler = self.sampler()
        places = [index for step in range(self.steps) for index in sampler.batch(step)[:count]][:count]
        preview((self.data.train[index] for index in places), self.text_tokenizer, count=count)

    def run(self) -> Path:
        """Train from the newest complete checkpoint, or from the start, to the end; write the run folder; return it.

        Raises ValueError: the loss became NaN or infinite, every checkpoint is damaged, or another process trains there. Raises OSError:
        the disk is full; the checkpoints that were there stay.
        """
        with lock_folder(self.folder, "training"):
            summary = self.folder / SUMMARY
            if summary.is_file() and read_json(summary).get("steps", 0) >= self.steps:
                logger.info("%s has finished its %d steps", self.folder, self.steps)
                return self.folder
            checkpoint = on_main(lambda: newest_checkpoint(self.folder, keep=self.config.train.keep))
            on_main(lambda: save_config(self.config, self.folder / "config.yaml"))
            if checkpoint is not None:
                logger.info("resuming %s from step %d of %d", self.folder, checkpoint_step(checkpoint), self.steps)
            trainer, begun = LlmTrainer(self), time.perf_counter()
            try:
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
                seconds = time.perf_counter() - begun
                if self.data.val is not None and trainer.monitor.evaluated_at < self.steps:
                    trainer.evaluate()
                self._finish(trainer, seconds=seconds)
            finally:  # an error message must not land on the bar's line
                trainer.monitor.close()
            return self.folder

    def sampler(self) -> ConversationSampler:
        """Return the order of the training conversations on this rank."""
        return ConversationSampler(
            self.data.train.lengths,
            weights=self.data.weights,
            modalities=self.data.train.num_images > 0,
            batch_size=self.config.train.batch_size,
            accumulation=self.runtime.accumulation,
            rank=rank(),
            world_size=world_size(),
            seed=self.config.run.seed,
            group_by=self.config.train.group_by,
            stop_step=self.steps,
        )

    def _finish(self, trainer: "LlmTrainer", *, seconds: float) -> None:
        with name_errors(self.folder):
            trainer.save_model(str(self.folder))
        learning, total = count_parameters(self.model)
        tokens = trainer.monitor.tokens * world_size()
        summary = {
            "steps": self.steps,
            "seconds": round(seconds, 2),
            "tokens": tokens,
            "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
            "peak_memory_bytes": peak_memory(self.args.device),
            "parameters": total,
            "parameters_learned": learning,
            "ranks": world_size(),
            "losses": {name: value for name, value in trainer.monitor.last.items() if "loss" in name},
        }
        if self.vision:  # pictures of all ranks; one that was met again counts again
            unreadable = torch.tensor([self.vision.reader.num_unreadable], device=self.args.device)
            summary["unreadable_pictures"] = int(all_reduce_sum_(unreadable))
        if is_main():
            write_card(self.folder, self._card())
            write_json(self.folder / SUMMARY, summary)
        barrier()

    def _card(self) -> Card:
        config, train = self.config, self.data.train
        image_tokenizer = {"path": config.model.image_tokenizer, "fingerprint": train.fingerprint}
        return Card(
            kind="llava" if self.vision else "lora" if config.lora.enabled else "full",
            base=config.model.path,
            base_fingerprint=fingerprint_base(config.model.path),
            template=config.model.template,
            request=config.model.request,
            input_mode=config.model.input_mode,
            layout=train.layout,
            image_tokenizer=image_tokenizer if any(image_tokenizer.values()) else None,
            markers=self.markers,
            vision=self.vision.describe() if self.vision else None,
            output_mode=config.model.output_mode,
            cells=self.model.cell_head.describe() | {"fingerprint": mark} if (mark := self.cell_head_fingerprint) else None,
            max_length=self.data.max_length,
            config={"lora": asdict(config.lora), "steps": self.steps, "tasks": [TASKS[task] for task in sorted({*train.tasks} - {-1})]},
        )


class _Float32(TorchFunctionMode):
    """Leaves float32 what would become bfloat16."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0].clone() if function is torch.Tensor.bfloat16 else function(*args, **(kwargs or {}))


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the groups with "by": "muon", whose parameters are matrices, and AdamW for the others.

    Muon's step of a matrix takes fifteen matrix products. So each rank makes the steps of its share, and sends the others the result.
    `bf16`: whether these products are in bfloat16, as torch.optim.Muon makes them; CPUs without AMX multiply float32 faster.
    """

    def __init__(self, groups: list[dict[str, Any]], *, bf16: bool = True, **settings: Any) -> None:
        self.products = nullcontext() if bf16 else _Float32()
        kinds: dict[str, Any] = {MUON: partial(torch.optim.Muon, momentum=0.95), "": partial(torch.optim.AdamW, **settings)}
        chosen = {by: [group for group in groups if group.get("by", "") == by] for by in kinds}
        self.parts = {by: kinds[by](some) for by, some in chosen.items() if some}
        super().__init__([group for part in self.parts.values() for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one step with the gradients that are there, the same on all ranks."""
        owned = self._owned()
        for matrix, owner in owned:
            matrix.grad = matrix.grad if owner == rank() else None  # without a gradient it is left alone
        for by, part in self.parts.items():
            part.state = self.state  # loading a state replaces it, and the groups
            part.param_groups = [group for group in self.param_groups if group.get("by", "") == by]
            with self.products:
                part.step()
        for matrix, owner in owned:
            broadcast_(matrix, owner)

    def share_momentum_(self) -> None:
        """Give every rank the momentum of all matrices, as a checkpoint needs it; call on every rank."""
        for matrix, owner in self._owned():
            broadcast_(self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix)), owner)

    def _owned(self) -> list[tuple[nn.Parameter, int]]:
        """The matrices of Muon, each with the rank that makes its steps."""
        matrices = [matrix for group in self.param_groups if group.get("by") == MUON for matrix in group["params"]]
        return [(matrix, number % world_size()) for number, matrix in enumerate(matrices)]


class LlmTrainer(Trainer):
    """transformers' Trainer with this project's batches, loss, data order, held-out losses and checkpoints."""

    def __init__(self, training: LlmTraining) -> None:
        args, data, config, pad = training.args, training.data, training.config, training.text_tokenizer.pad_token_id
        learned = config.model.output_mode == "cells" or config.optimizer.code_smoothing > 0  # as places among the ids of images
        collator = Collator(
            pad_id=pad if pad is not None else training.text_tokenizer.eos_token_id or 0,
            pack=config.data.pack,
            sums=data.train.layout is not None,
            layout=data.train.layout,
            cells=config.model.output_mode == "cells",
            row_ids=data.image_ids.sort().values if data.image_ids is not None and learned else None,
            task_weights=dict(config.optimizer.task_weights),
            add_images=training.vision.reader if training.vision else None,
        )
        self.folder = self.checkpoint_folder = training.folder
        self.monitor = LlmMonitor(self.folder, args.device)
        super().__init__(
            model=training.model,
            args=args,
            data_collator=collator,
            train_dataset=data.train,
            eval_dataset=data.val,
            processing_class=training.text_tokenizer,
            callbacks=[self.monitor],
        )
        self.remove_callback(PrinterCallback)
        self.settings, self.sampler, self.text_tokenizer = config, training.sampler(), training.text_tokenizer
        self.bare_model: Any = training.model  # not wrapped by DDP or DeepSpeed
        self.bare_model.register_load_state_dict_post_hook(forgive_frozen)
        self.kind_weights = torch.tensor([config.optimizer.text_weight, config.optimizer.image_weight], device=args.device)
        self.num_levels = data.train.layout.num_levels if data.train.layout is not None else 0
        self.losses = LossTable(args.device, levels=self.num_levels)
        self.soft: SoftTargets | None = None
        if data.image_ids is not None and (smoothing := config.optimizer.code_smoothing):
            options: dict[str, Any] = {"levels": self.num_levels, "smoothing": smoothing, "device": args.device}
            self.soft = spread_targets(data.codebooks, data.image_ids, **options)
        self.head_fingerprint, self.bf16 = training.cell_head_fingerprint, training.runtime.bf16
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
        weights = sum((batch["targets"].total_weights() for batch in samples), torch.zeros(2, dtype=torch.float64))
        self.monitor.tokens += sum(batch["num_tokens"] for batch in samples)
        torch.manual_seed((self.args.seed * 1_000_003 + self.state.global_step) * 4099 + rank())
        return samples, all_reduce_sum_(weights.float().to(self.args.device, non_blocking=True))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,  # for transformers only, whose evaluation is replaced
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The share of a micro-batch in the loss of its step, times the number of ranks, because ranks average their gradients."""
        assert isinstance(num_items_in_batch, torch.Tensor), "the targets of the step were not counted"
        nll, targets = self._forward(model, inputs)
        self.losses.add(nll, targets)
        loss = combine(nll, targets, totals=num_items_in_batch, kind_weights=self.kind_weights)
        self.monitor.watch(loss.detach(), self.state.global_step + 1)
        return loss * world_size()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with groups of their own for projector, cell head and marker rows; no decay for vectors and marker rows; Muon if wanted."""
        if self.optimizer is None:
            options = self.settings.optimizer
            own = {"projector": options.projector_lr, "cell_head": options.cell_head_lr, "markers": options.marker_lr}
            rates = {"main": options.lr, MUON: options.muon_lr} | {kind: rate or options.lr for kind, rate in own.items()}
            groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
            for name, parameter in self.bare_model.named_parameters():
                if parameter.requires_grad:
                    part = name.partition(".")[0]
                    kind = part if part in rates else "markers" if is_marker_row(name, parameter) else "main"
                    matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
                    if options.muon_lr and matrix and ".layers." in name:
                        kind = MUON
                    groups.setdefault((kind, matrix and kind != "markers"), []).append(parameter)
            optimizer, settings = self.get_optimizer_cls_and_kwargs(self.args, self.bare_model)
            decay = self.args.weight_decay
            wanted: list[dict[str, Any]] = [
                {"params": found, "lr": rates[kind], "weight_decay": decay * decays} | ({"by": MUON} if kind == MUON else {})
                for (kind, decays), found in groups.items()
            ]
            self.optimizer = MuonAdamW(wanted, bf16=self.bf16, **settings) if options.muon_lr else optimizer(wanted, **settings)
        return self.optimizer  # type: ignore[no-any-return]

    @torch.no_grad()
    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Measure the held-out losses, plain and by task; every conversation counts once, whatever the ranks."""
        if self.eval_dataset is None:
            return {}
        begun, model = time.perf_counter(), self.model_wrapped
        table = LossTable(self.args.device, levels=self.num_levels)
        model.eval()  # each training step begins with `model.train()`
        batches, counts = self._eval_batches()
        for batch, count in zip(self._loader(self.eval_dataset, batches), counts, strict=True):
            nll, targets = self._forward(model, self._prepare_inputs(batch))
            table.add(nll, targets, weight=count)
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
        model = self.bare_model
        inner = model.lm if isinstance(model, LlavaModel) else model
        adapted = isinstance(inner, PeftModel)
        if inner is model and not adapted:
            super().save_model(output_dir, _internal_call)
            return
        tuned = not adapted and any(parameter.requires_grad for parameter in inner.parameters())
        state = self.accelerator.get_state_dict(self.model_wrapped) if tuned else gather_trainable(model)
        if is_main():
            folder = output_dir or str(self.folder)
            self._save_head_(state, folder)
            model.save_pretrained(folder, state_dict=state, **({"save_embedding_layers": False} if adapted else {}))
            self.text_tokenizer.save_pretrained(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.head_fingerprint and is_main():  # under ZeRO-3 other ranks hold parts
            state_dict = dict(self.bare_model.state_dict() if state_dict is None else state_dict)
            self._save_head_(state_dict, output_dir or str(self.folder))
        super()._save(output_dir, state_dict)

    def _save_head_(self, state: dict[str, torch.Tensor], folder: str) -> None:
        """Take the weights of a cell head out of `state`, which is complete, and write them to their own file."""
        if self.head_fingerprint:
            head = {name.removeprefix(HEAD): state.pop(name).cpu() for name in list(state) if name.startswith(HEAD)}
            save_cell_head(folder, head | {"row_ids": self.bare_model.cell_head.row_ids.cpu()}, fingerprint=self.head_fingerprint)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        def write(folder: Path) -> None:
            self.checkpoint_folder = folder.parent
            if self.is_deepspeed_enabled:
                engine: Any = self.model_wrapped
                engine.save_checkpoint = partial(type(engine).save_checkpoint, engine, exclude_frozen_parameters=True)
            super(LlmTrainer, self)._save_checkpoint(model, trial)
            self.checkpoint_folder = self.folder

        if isinstance(optimizer := getattr(self.optimizer, "optimizer", None), MuonAdamW):  # accelerate has wrapped it
            optimizer.share_momentum_()
        save_checkpoint(self.folder / f"checkpoint-{self.state.global_step}", write, keep=self.settings.train.keep)

    def _save_rng_state(self, output_dir: str) -> None:
        """Not saved: put back after the seed of a step is set, it would undo it."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Fill the model from a checkpoint; a LLaVA model, which transformers does not know, from what `save_model` wrote."""
        if isinstance(self.bare_model, LlavaModel):
            self.bare_model.load_trained_(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.head_fingerprint:
            load_cell_head_(self.bare_model.cell_head, resume_from_checkpoint, fingerprint=self.head_fingerprint)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: transformers would walk over all parameters in every step."""
        return 0

    def _forward(self, model: nn.Module, inputs: Batch) -> tuple[torch.Tensor, Any]:
        targets = inputs["targets"]
        outputs = model(**inputs["inputs"], logits_at=targets.at, use_cache=False)
        soft = self.soft if model.training else None
        return target_losses(outputs.logits, targets, cell_logits=outputs.get("cell_logits"), soft=soft), targets

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        given: Batch = inputs["inputs"]
        moved = {k: v.to(self.args.device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
        return inputs | {"inputs": moved, "targets": inputs["targets"].to(self.args.device)}

    def _loader(self, dataset: Any, batches: Any) -> DataLoader[Any]:
        workers, pin = self.settings.data.num_workers, self.args.device.type == "cuda"
        # Workers start from a clean server process: forking one that has threads and a GPU may hang.
        options: dict[str, Any] = {"num_workers": workers, "pin_memory": pin, "multiprocessing_context": "forkserver" if workers else None}
        return DataLoader(dataset, batch_sampler=batches, collate_fn=self.data_collator, **options)

    def _eval_batches(self) -> tuple[list[list[int]], list[float]]:
        """Batches of this rank, of like lengths, and 1 for each; ranks with fewer repeat one that counts 0, so that all do as many."""
        total = len(self.eval_dataset)  # type: ignore[arg-type]
        chosen = spread(total, self.settings.train.eval_samples or total)
        chosen = chosen[np.argsort(np.asarray(self.eval_dataset.lengths)[chosen], kind="stable")]  # type: ignore[union-attr]
        size = self.args.per_device_eval_batch_size
        batches = [chosen[begin : begin + size].tolist() for begin in range(0, len(chosen), size)]
        mine = batches[rank() :: world_size()]
        missing = -(-len(batches) // world_size()) - len(mine)
        return [*mine, *[batches[0]] * missing], [1.0] * len(mine) + [0.0] * missing


def forgive_frozen(model: nn.Module, keys: Any) -> None:
    """A hook of `load_state_dict`: the checkpoints of DeepSpeed lack the frozen weights, which come from the base model.

    A cell head, which all of them have, has a file of its own beside the weights of a whole model.
    """
    frozen = {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    keys.missing_keys[:] = [name for name in keys.missing_keys if name not in frozen and not name.startswith(HEAD)]


def gather_trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return name -> trainable weight on the CPU, complete also where ZeRO-3 has split it; call on every rank."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with gathered(list(named.values())):
        return {name: parameter.detach().cpu().clone() for name, parameter in named.items()}


def peak_memory(device: torch.device) -> int:
    """Largest amount of memory in use so far, in bytes: the allocator's on a GPU, this process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
