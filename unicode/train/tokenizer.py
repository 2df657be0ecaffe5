"""Training of an image tokenizer on any number of devices: a config in, a run folder out."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from unicode.codebook.embedding_table import load_table
from unicode.common.checkpoint import checkpoint_step, newest_checkpoint, save_checkpoint
from unicode.common.config import save_config
from unicode.common.distributed import all_reduce_sum_, is_main, on_main, rank, ranks_agree, world_size
from unicode.common.files import lock_folder, read_tensors
from unicode.common.logging import get_logger
from unicode.common.schedules import language_ratio, learning_rate, quantization_strength
from unicode.images.dataset import build_dataset
from unicode.images.loader import Batch, SkipReport, build_loader
from unicode.tokenizer.discriminator import LeCam, PatchDiscriminator, discriminator_loss, discriminator_trains, generator_weight
from unicode.tokenizer.load import TOKENIZER_FOLDER
from unicode.tokenizer.losses import Objective, image_psnr
from unicode.tokenizer.model import ImageTokenizer
from unicode.train.config import TrainTokenizerConfig
from unicode.train.monitor import METRICS, TokenizerMonitor, read_lines
from unicode.train.runtime import check_resumable, resolve_runtime
from unicode.train.samplers import AugmentedSampler
from unicode.train.semantic import Semantic, Targets


class WeightAverage:
    """Averages of every parameter; buffers (codebooks, statistics) are averages of their own and stay the live ones.

    `tokenizer`: the live model. `decay`: share of the old average kept per step, for example 0.999.
    """

    def __init__(self, tokenizer: ImageTokenizer, *, decay: float) -> None:
        self.tokenizer, self.decay = tokenizer, decay
        self.averages = {name: parameter.detach().clone() for name, parameter in tokenizer.named_parameters()}

    @torch.no_grad()
    def update_(self) -> None:
        """Move the averages towards the live parameters, after an optimizer step."""
        live = [parameter.detach() for parameter in self.tokenizer.parameters()]
        torch._foreach_lerp_(list(self.averages.values()), live, 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in the model for the length of a block, then the live parameters back."""
        with torch.no_grad():
            live = {name: parameter.detach().clone() for name, parameter in self.tokenizer.named_parameters()}
            self._put_(self.averages)
            try:
                yield
            finally:
                self._put_(live)

    def _put_(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.tokenizer.named_parameters():
            parameter.copy_(values[name])
        for codebook in self.tokenizer.codebooks:
            codebook.refresh_()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.averages

    def load_state_dict(self, averages: dict[str, torch.Tensor]) -> None:
        for name, average in self.averages.items():
            average.copy_(averages[name])


STATE_FILE = "training.pt"
PICTURES = 8
logger = get_logger(__name__)


class TokenizerTrainer:
    """Builds everything that a config names, then trains.

    Everything that depends on chance is seeded by the step, so a resumed run needs no random state and ends with the same bits. Raises
    ValueError, FileNotFoundError: whatever in the config, the data, the table or the run folder does not fit, before work starts.
    """

    def __init__(self, config: TrainTokenizerConfig) -> None:
        self.config, self.folder = config, Path(config.run.dir)
        runtime = resolve_runtime(config)
        self.accumulation = runtime.accumulation
        # No broadcasts of buffers: codebooks are kept equal by their update.
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        group = InitProcessGroupKwargs(timeout=timedelta(minutes=config.run.timeout_minutes))
        precision = "bf16" if runtime.bf16 else "no"
        self.accelerator = Accelerator(cpu=runtime.cpu, mixed_precision=precision, kwargs_handlers=[ddp, group])
        self.device = self.accelerator.device
        torch.backends.cudnn.benchmark = self.device.type == "cuda"  # shapes repeat, so the search for the fastest convolution pays
        torch.manual_seed(config.run.seed)
        book = config.model.codebook
        table = load_table(book.table) if book.mode != "free" and book.table else None
        self.tokenizer = ImageTokenizer(config.model, table).to(self.device)
        self.objective = Objective(config.objective, entropy_weight=book.entropy_weight).to(self.device)
        options = config.objective.discriminator
        self.discriminator = PatchDiscriminator(options).to(self.device) if options.enabled else None
        self.lecam = LeCam(decay=options.lecam_decay).to(self.device) if options.enabled and options.lecam_weight > 0 else None
        self.dataset = build_dataset(config.data, image_size=config.model.image_size, train=True)
        semantic = config.objective.semantic
        supervised = max(semantic.teacher.weight, semantic.words.weight) > 0
        self.semantic = Semantic(config, self.tokenizer, self.dataset, table) if supervised else None
        split = config.train.val_split
        self.val = build_dataset(replace(config.data, split=split), image_size=config.model.image_size, train=False) if split else None
        per_epoch = len(self.dataset) / config.train.batch_size
        self.steps = config.train.steps or max(1, round(config.train.epochs * per_epoch))
        self.average = WeightAverage(self.tokenizer, decay=config.train.average_decay) if config.train.average_decay > 0 else None
        self._prepare_for_device()
        self.skipped = SkipReport()

    def _prepare_for_device(self) -> None:
        config, options = self.config, self.config.optimizer
        for network in filter(None, (self.tokenizer.encoder, self.tokenizer.decoder, self.discriminator)):
            if config.run.channels_last:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if config.run.compile:
                network.compile()
        if config.run.compile and self.objective.perceptual is not None:
            self.objective.perceptual.compile()
        shared: dict[str, Any] = {"betas": (options.betas[0], options.betas[1]), "fused": True}
        self.learned = [parameter for part in filter(None, (self.tokenizer, self.semantic)) for parameter in part.parameters()]
        self.optimizer = torch.optim.AdamW(self.learned, lr=options.lr, weight_decay=options.weight_decay, **shared)
        self.generator: nn.Module = self.accelerator.prepare_model(self.tokenizer)
        if self.discriminator is not None:
            self.discriminator_optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=options.discriminator_lr, **shared)
            self.prepared_discriminator: nn.Module = self.accelerator.prepare_model(self.discriminator)

    def describe(self) -> str:
        """One line on model, data and steps."""
        size = sum(parameter.numel() for parameter in self.tokenizer.parameters()) / 1e6
        ids = f"{self.tokenizer.layout.num_codes} ids per image from {self.tokenizer.num_rows} rows"
        return f"{self.config.model.type}, {size:.1f} M parameters, {ids}; {len(self.dataset)} images, {self.steps} steps on {self.device}"

    def run(self) -> Path:
        """Train from the newest complete checkpoint, or from the start, to the end; return the folder of the last checkpoint.

        Raises ValueError: a loss became NaN or infinite, the run folder belongs to another architecture, or another process trains there.
        Raises OSError: the disk is full; the checkpoints that were there stay.
        """
        with lock_folder(self.folder, "training"):
            loop, start = self.config.train, 0
            checkpoint = on_main(lambda: newest_checkpoint(self.folder / "checkpoints", keep=loop.keep))
            if checkpoint is not None:
                start = checkpoint_step(checkpoint)
                check_resumable(self.config, self.folder, fixed=("model.",), loose=("model.codebook.table",))
                self._load(checkpoint)
                logger.info("resuming %s from step %d of %d", self.folder, start, self.steps)
            on_main(lambda: save_config(self.config, self.folder / "config.yaml"))
            logged = on_main(lambda: read_lines(self.folder / METRICS, start))
            # A run that was killed between a checkpoint and the validation of the same step has that still to do.
            done = any(line["step"] == start and "val_psnr" in line for line in logged)
            validate = start > 0 and self.val is not None and self._due(start, loop.eval_every) and not done
            if checkpoint and start >= self.steps and not validate:
                logger.info("%s has finished its %d steps", self.folder, self.steps)
                return checkpoint
            self.monitor = TokenizerMonitor(self.folder, self.device, batch_size=loop.batch_size, usage_alarm=loop.usage_alarm)
            try:
                self.monitor.open(step=start, steps=self.steps)
                if validate:
                    self._validate(start)
                return checkpoint if checkpoint and start >= self.steps else self._train(start)
            finally:  # an error message must not land on the bar's line
                self.monitor.close()

    def _train(self, start: int) -> Path:
        loop, checkpoint = self.config.train, None
        sampler = AugmentedSampler(
            len(self.dataset),
            blocks=self.dataset.blocks,
            window=self.dataset.window,
            batch_size=loop.batch_size,
            accumulation=self.accumulation,
            rank=rank(),
            world_size=world_size(),
            seed=self.config.run.seed,
            start_step=start,
            stop_step=self.steps,
        )
        batches = build_loader(self.dataset, sampler, num_workers=loop.num_workers, device=self.device)

        for step in range(start, self.steps):
            micro = [next(batches) for _ in range(self.accumulation)]
            if step == 0:
                self._warm_up(micro)
            self.train_step(step, micro)
            done = step + 1
            if self._due(done, loop.log_every) or self._due(done, loop.save_every):
                self.monitor.flush(self.tokenizer.codebooks, extra={"lr": self.optimizer.param_groups[0]["lr"]})
            if self._due(done, loop.save_every):
                checkpoint = self._save(done)
            if self._due(done, loop.eval_every):
                self._validate(done)
        assert checkpoint is not None
        return checkpoint

    def _due(self, step: int, every: int) -> bool:
        """Whether something of every so many steps is to be done after step `step`, as everything is after the last."""
        return step == self.steps or bool(every and step % every == 0)

    def train_step(self, step: int, micro: list[Batch]) -> None:
        """One optimizer step: the generator runs forward once per micro-batch, the discriminator reuses its detached pictures."""
        self._set_schedules(step)
        options = self.config.objective.discriminator
        trains_discriminator = self.discriminator is not None and discriminator_trains(step, options)
        targets = self.semantic.prepare(step, micro) if self.semantic is not None else [None] * len(micro)
        for index, batch in enumerate(micro):
            self.skipped.add(batch.skipped)
            images = self._arrange(batch.images)
            with self._sync(self.generator, index):
                fakes = self._backward_generator(images, targets[index], weight=generator_weight(step, options))
            if trains_discriminator:
                with self._sync(self.prepared_discriminator, index):
                    self._backward_discriminator(images, fakes)
        if self.semantic is not None:
            self.semantic.average_gradients_()
        self._step_optimizer(self.optimizer, self.learned, "generator")
        if self.discriminator is not None and trains_discriminator:
            self._step_optimizer(self.discriminator_optimizer, list(self.discriminator.parameters()), "discriminator")
        self.tokenizer.stack.update_()
        if self.semantic is not None:
            self.semantic.update_()
        if self.average is not None:
            self.average.update_()
        self.monitor.tick()

    def _backward_generator(self, images: torch.Tensor, targets: Targets | None, *, weight: float) -> torch.Tensor:
        """Add the generator's gradients of one micro-batch; return its pictures, detached."""
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        with self.accelerator.autocast():
            made = self.generator(images)
            last = self.tokenizer.decoder.conv_out
            loss, parts = self.objective(made, images, discriminator=self.discriminator, adversarial_weight=weight, last_layer=last)
        if self.semantic is not None and targets is not None:
            semantic, named = self.semantic(made, self.tokenizer, targets)
            loss, parts = loss + semantic, parts | named | {"loss": parts["loss"] + semantic.detach()}
        self.accelerator.backward(loss / self.accumulation)
        self.monitor.add(parts)
        if self.discriminator is not None:
            self.discriminator.requires_grad_(True)
        return made.images.detach()  # type: ignore[no-any-return]

    def _backward_discriminator(self, images: torch.Tensor, fakes: torch.Tensor) -> None:
        with self.accelerator.autocast():
            real, fake = self.prepared_discriminator(torch.cat([images, fakes.to(images.dtype)])).float().chunk(2)
            loss = discriminator_loss(real, fake)
            if self.lecam is not None:
                loss = loss + self.config.objective.discriminator.lecam_weight * self.lecam(real, fake)
                self.lecam.update_(real, fake)
        self.accelerator.backward(loss / self.accumulation)
        accuracy = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        self.monitor.add({"discriminator": loss, "discriminator_accuracy": accuracy})

    def _step_optimizer(self, optimizer: torch.optim.Optimizer, learned: list[nn.Parameter], name: str) -> None:
        norm = torch.nn.utils.clip_grad_norm_(learned, self.config.optimizer.clip or float("inf"))
        self.monitor.add({f"{name}_gradient": norm})
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _set_schedules(self, step: int) -> None:
        torch.manual_seed((self.config.run.seed * 1_000_003 + step) * 4099 + rank())
        options, loop = self.config.optimizer, self.config.train
        peaks = [(self.optimizer, options.lr)]
        if self.discriminator is not None:
            peaks.append((self.discriminator_optimizer, options.discriminator_lr))
        for optimizer, peak in peaks:
            minimum = options.min_lr * peak / options.lr
            rate = learning_rate(step, peak=peak, minimum=minimum, warmup_steps=options.warmup_steps, steps=self.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.tokenizer.stack.set_schedule_(
            ratio=language_ratio(step, steps=self.steps, tail=loop.language_tail),
            strength=quantization_strength(step, steps=self.steps, fade_in=loop.fade_in),
        )

    @torch.no_grad()
    def _warm_up(self, micro: list[Batch]) -> None:
        """Let normalizations, scales and averages see the first batch before the first step, level after level."""
        with self.accelerator.autocast():
            for _ in range(self.tokenizer.num_levels + 1):
                for batch in micro:
                    self.tokenizer(self._arrange(batch.images))
                self.tokenizer.stack.update_()
        for codebook in self.tokenizer.codebooks:
            codebook.take_usage()

    @torch.no_grad()
    def _validate(self, step: int) -> None:
        """Measure PSNR and L1 on the validation split, each image once over all ranks, and draw a grid of pictures per level."""
        if self.val is None:
            return
        loop = self.config.train
        total = min(len(self.val), loop.val_images or len(self.val))
        mine = list(range(rank(), total, world_size()))
        batches = [mine[begin : begin + loop.val_batch_size] for begin in range(0, len(mine), loop.val_batch_size)]
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.tokenizer.eval()
        with self._averaged(), self.accelerator.autocast():
            for index, batch in enumerate(build_loader(self.val, batches, num_workers=loop.num_workers, device=self.device)):
                images = self._arrange(batch.images)
                made = self.tokenizer(images).images.float()
                error = (made.clamp(-1, 1) - images).abs().flatten(1).mean(1)
                sums += torch.stack([image_psnr(made, images).double().sum(), error.double().sum(), error.new_tensor(len(images)).double()])
                if index == 0:  # originals, and what the first level, the first two, ... make of them
                    codes = self.tokenizer.encode(images[:PICTURES])
                    rows = [self.tokenizer.decode(codes, levels=levels) for levels in range(1, self.tokenizer.num_levels + 1)]
                    self.monitor.picture(step, [images[:PICTURES], *rows])
        self.tokenizer.train()
        psnr, l1, count = all_reduce_sum_(sums).tolist()
        if count:
            self.monitor.write(step, {"val_psnr": psnr / count, "val_l1": l1 / count, "val_images": count})
            logger.info("step %d: PSNR %.2f dB on %d images", step, psnr / count, int(count))

    def _arrange(self, images: torch.Tensor) -> torch.Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.config.run.channels_last else images

    def _sync(self, module: nn.Module, index: int) -> AbstractContextManager[Any]:
        """Exchange gradients with the other ranks at the last micro-batch only."""
        return self.accelerator.no_sync(module) if index < self.accumulation - 1 else nullcontext()

    def _save(self, step: int) -> Path:
        """Write a checkpoint: everything that training depends on, and the tokenizer ready for use.

        Raises ValueError: the ranks hold different codebooks, as unlike or faulty cards may leave them.
        """
        if not ranks_agree(codebook.rows for codebook in self.tokenizer.codebooks):
            remedy = "checkpoints of earlier steps are kept. Use cards of one kind, and start the command again"
            raise ValueError(f"the codebooks of the ranks differ at step {step}; {remedy}")

        def write(folder: Path) -> None:
            if is_main():
                state = {name: part.state_dict() for name, part in self._stateful().items()}
                with open(folder / STATE_FILE, "wb") as file:
                    torch.save(state | {"step": step, "table_sha256": self.tokenizer.table_digest}, file)
                with self._averaged():
                    self.tokenizer.save_pretrained(folder / TOKENIZER_FOLDER, readme=False)

        path = save_checkpoint(self.folder / "checkpoints" / f"step_{step:08d}", write, keep=self.config.train.keep)
        if is_main() and len(self.skipped):
            self.skipped.write(self.folder / "skipped.jsonl")
            logger.warning("%s", self.skipped.summary())
        return path

    def _load(self, checkpoint: Path) -> None:
        state = read_tensors(checkpoint / STATE_FILE, wanted="the state of a training run")
        if state["table_sha256"] != self.tokenizer.table_digest:
            given = self.config.model.codebook.table
            raise ValueError(f"{checkpoint} was trained with another embedding table than {given}; give that one or another run.dir")
        try:
            for name, part in self._stateful().items():
                part.load_state_dict(state[name])
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{checkpoint} does not fit this config: {reason}; choose another run.dir") from error

    def _stateful(self) -> dict[str, Any]:
        parts = {"model": self.tokenizer, "optimizer": self.optimizer, "lecam": self.lecam, "average": self.average}
        parts["semantic"] = self.semantic
        if self.discriminator is not None:
            parts |= {"discriminator": self.discriminator, "discriminator_optimizer": self.discriminator_optimizer}
        return {name: part for name, part in parts.items() if part is not None}

    def _averaged(self) -> AbstractContextManager[None]:
        return self.average.applied() if self.average else nullcontext()
