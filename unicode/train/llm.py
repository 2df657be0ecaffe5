"""Training of a language model on conversations with images: a config in, a run folder with an adapter or model out; resumes."""

import resource
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from unicode.common.checkpoint import checkpoint_step, newest_checkpoint
from unicode.common.config import save_config
from unicode.common.distributed import barrier, is_main, on_main, rank, world_size
from unicode.common.files import lock_folder, read_json, write_json
from unicode.common.logging import get_logger
from unicode.llm.card import Card, fingerprint_base, write_card
from unicode.llm.examples import preview
from unicode.llm.lora import add_lora_, count_parameters, freeze_table_, marker_rows_train
from unicode.llm.model import fit_embeddings_, open_base, open_description, table_rows
from unicode.llm.template import get_template
from unicode.llm.vocabulary import choose_markers
from unicode.train.config import TrainLlmConfig
from unicode.train.llm_data import check_tasks, open_vision, read_data
from unicode.train.llm_trainer import Collator, LlmTrainer, keeps_logits, sum_inputs_
from unicode.train.runtime import build_arguments, check_resumable, choose_dtype, resolve_runtime, set_steps_
from unicode.train.samplers import ConversationSampler

SUMMARY = "summary.json"
FIXED = ("model.path", "model.template", "model.input_mode", "lora.", "vision.")
"""Settings that a run folder keeps: what its weights mean."""
logger = get_logger(__name__)


class LlmTraining:
    """Builds everything that a config names, then trains.

    Data and their order come first, the weights of the model last: what a user can get wrong is found before minutes of loading.

    Raises:
        ValueError, FileNotFoundError: whatever in the config, the data, the model or the run folder does not fit, before work starts.
    """

    def __init__(self, config: TrainLlmConfig) -> None:
        self.config, self.folder = config, Path(config.run.dir)
        if not config.model.path:
            raise ValueError("model.path is empty; give the folder of a language model, for example model.path=outputs/base")
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        check_tasks("optimizer.task_weights", config.optimizer.task_weights)
        self.runtime = resolve_runtime(config)
        self.markers_train = marker_rows_train(config.lora, zero_stage=self.runtime.zero_stage)
        model_config, self.text_tokenizer = open_description(config.model.path)
        self.markers = choose_markers(self.text_tokenizer, table_rows=table_rows(model_config))
        self.template = get_template(config.model.template, self.text_tokenizer)
        self.vision = open_vision(config.vision)
        self.data = read_data(
            config,
            model_config=model_config,
            template=self.template,
            text_tokenizer=self.text_tokenizer,
            markers=self.markers,
            image_positions=self.vision.positions if self.vision else 0,
        )
        if self.vision:
            self.vision.check(self.data.train)
        loop = config.train
        self.steps = loop.steps or max(1, round(loop.epochs * self.data.epoch_length / loop.batch_size))
        check_resumable(config, self.folder, fixed=FIXED)
        self.args = build_arguments(config, self.runtime)
        set_steps_(self.args, steps=self.steps, warmup=config.optimizer.warmup)
        torch.manual_seed(config.run.seed)
        self.model: Any = self._build_model()

    def _build_model(self) -> Any:
        """The base model, with what is to learn made ready."""
        config, model = self.config, self.config.model
        device = "cpu" if self.runtime.cpu else "cuda"
        dtype = choose_dtype(config, bf16=self.runtime.bf16)
        base, _ = open_base(model.path, dtype=dtype, attention=model.attention, quantize=model.quantize, device=device)
        fit_embeddings_(base, self.markers)
        self.keeps_logits = keeps_logits(base)
        base.config.use_cache = False
        if model.gradient_checkpointing:
            checkpointing_(base)
        if config.lora.enabled:
            built: Any = add_lora_(base, config.lora, self.markers, train_markers=self.markers_train)
        else:
            freeze_table_(base, self.markers, train_markers=self.markers_train)
            built = base
        if self.sums:
            sum_inputs_(built, built.get_input_embeddings())
        return self.vision.around(built) if self.vision else built

    @property
    def sums(self) -> bool:
        """Whether some images may come as one embedding per cell."""
        return self.data.train.layout is not None

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self.args.device

    def describe(self) -> str:
        """One line on model, data and steps."""
        learning, total = count_parameters(self.model)
        held_out = f", {len(self.data.val)} held out" if self.data.val is not None else ""
        data = f"{len(self.data.train)} conversations ({self.data.epoch_length} an epoch{held_out}), longest {self.data.max_length} tokens"
        return f"{total / 1e6:.1f} M parameters, {learning / 1e6:.2f} M of them learn; {data}; {self.steps} steps on {self.device}"

    def preview(self, count: int) -> None:
        """Print the first conversations of the run's order, learned and masked tokens told apart."""
        sampler = self._sampler()
        places = [index for step in range(self.steps) for index in sampler.batch(step)[:count]][:count]
        preview((self.data.train[index] for index in places), self.text_tokenizer, count=count)

    def run(self) -> Path:
        """Train from the newest complete checkpoint, or from the start, to the end; write the run folder; return it.

        Raises:
            ValueError: the loss became NaN or infinite, every checkpoint is damaged, or another process trains there.
            OSError: the disk is full; the checkpoints that were there stay.
        """
        with lock_folder(self.folder, "training"):
            if self._is_finished():
                logger.info("%s has finished its %d steps", self.folder, self.steps)
                return self.folder
            checkpoint = on_main(lambda: newest_checkpoint(self.folder))
            on_main(lambda: save_config(self.config, self.folder / "config.yaml"))
            if checkpoint is not None:
                logger.info("resuming %s from step %d of %d", self.folder, checkpoint_step(checkpoint), self.steps)
            trainer, begun = self._trainer(), time.perf_counter()
            try:
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
                seconds = time.perf_counter() - begun
                if self.data.val is not None and trainer.monitor.evaluated_at < self.steps:
                    trainer.evaluate()
                self._finish(trainer, seconds=seconds)
            finally:  # an error message must not land on the bar's line
                trainer.monitor.close()
            return self.folder

    def _trainer(self) -> LlmTrainer:
        pad = self.text_tokenizer.pad_token_id
        collator = Collator(
            pad_id=pad if pad is not None else self.text_tokenizer.eos_token_id or 0,
            pack=self.config.data.pack,
            sums=self.sums,
            keep_logits=self.keeps_logits,
            mask_dtype=torch.bfloat16 if self.runtime.bf16 else torch.float32,
            task_weights=dict(self.config.optimizer.task_weights),
            add_images=self.vision.reader if self.vision else None,
        )
        return LlmTrainer(
            self.model,
            self.args,
            config=self.config,
            sampler=self._sampler(),
            train_set=self.data.train,
            val_set=self.data.val,
            collator=collator,
            text_tokenizer=self.text_tokenizer,
        )

    def _sampler(self) -> ConversationSampler:
        return ConversationSampler(
            self.data.train.lengths,
            weights=self.data.weights,
            modalities=self.data.modalities,
            batch_size=self.config.train.batch_size,
            accumulation=self.runtime.accumulation,
            rank=rank(),
            world_size=world_size(),
            seed=self.config.run.seed,
            group_by=self.config.train.group_by,
            stop_step=self.steps,
        )

    def _is_finished(self) -> bool:
        """Whether the run folder holds the result of a run of at least so many steps."""
        path = self.folder / SUMMARY
        return path.is_file() and read_json(path).get("steps", 0) >= self.steps

    def _finish(self, trainer: LlmTrainer, *, seconds: float) -> None:
        """Write what inference needs to the top of the run folder, the summary last."""
        trainer.save_model(str(self.folder))
        vision = {"unreadable_pictures": self.vision.unreadable(self.device)} if self.vision else {}
        if is_main():
            write_card(self.folder, self.card())
            last = trainer.monitor.last
            learning, total = count_parameters(self.model)
            write_json(
                self.folder / SUMMARY,
                {
                    "steps": self.steps,
                    "seconds": round(seconds, 2),
                    "tokens": trainer.monitor.tokens * world_size(),
                    "tokens_per_second": round(trainer.monitor.tokens * world_size() / max(seconds, 1e-9), 1),
                    "peak_memory_bytes": peak_memory(self.device),
                    "parameters": total,
                    "parameters_learned": learning,
                    "ranks": world_size(),
                    "losses": {name: value for name, value in last.items() if "loss" in name},
                    **vision,
                },
            )
        barrier()

    def card(self) -> Card:
        """What the weights mean to who loads them."""
        config, train = self.config, self.data.train
        tokenizer = {"path": config.model.image_tokenizer, "fingerprint": train.fingerprint}
        return Card(
            kind="llava" if self.vision else "lora" if config.lora.enabled else "full",
            base=config.model.path,
            base_fingerprint=fingerprint_base(config.model.path),
            template=config.model.template,
            input_mode=config.model.input_mode,
            layout=None if train.layout is None else train.layout.to_dict(),
            image_tokenizer=tokenizer if any(tokenizer.values()) else None,
            markers=self.markers.to_dict(),
            vision=self.vision.describe() if self.vision else None,
            max_length=self.data.max_length,
            config={"lora": asdict(config.lora), "steps": self.steps},
        )


def checkpointing_(model: Any) -> None:
    """Let a model of transformers compute activations anew in the backward pass; the method's name depends on the version."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def peak_memory(device: torch.device) -> int:
    """Largest amount of memory in use so far, in bytes: the allocator's on a GPU, this process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
