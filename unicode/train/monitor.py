"""Metrics of a training run: values of each step -> lines of metrics.jsonl, TensorBoard, a progress bar; NaN ends the run."""

import json
import math
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid, save_image
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unicode.codebook.codebook import Codebook
from unicode.common.distributed import all_reduce_min_, all_reduce_sum_, is_main, on_main, world_size
from unicode.common.files import name_errors, write_jsonl
from unicode.common.logging import get_logger

METRICS = "metrics.jsonl"
HIDDEN = ("epoch", "total_flos", "train_")
"""Values of Trainer that are not logged: its epoch is the whole run, and its final sums include the time of saving."""
logger = get_logger(__name__)


class Monitor:
    """Metrics of both trainings. Every rank calls all methods; the main rank writes. `folder`: run folder. `device`: of the losses."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.folder = folder
        self.bar: tqdm[Any] = tqdm(disable=True)
        self.writer: SummaryWriter | None = None
        self.first_broken = torch.full((), math.inf, device=device)

    def open(self, *, step: int, steps: int) -> list[dict[str, Any]]:
        """Begin at finished step `step` of `steps`: show the bar, drop the lines of later steps; return the others, on every rank."""
        path = self.folder / METRICS
        lines = on_main(lambda: read_lines(path, step))
        if is_main() and path.is_file():
            write_jsonl(path, lines)
        interval = 0.5 if sys.stderr.isatty() else 30.0  # seconds between updates: a log file needs fewer than a terminal
        self.bar = tqdm(total=steps, initial=step, unit="step", smoothing=0.05, mininterval=interval, disable=not is_main())
        if is_main():
            self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)
        return lines

    def watch(self, values: torch.Tensor, step: int) -> None:
        """Remember `step` (from 1) if one of the losses `values` is NaN or infinite and no step before it was.

        The device remembers; asking it in every step would make the host wait for it.
        """
        self.first_broken = torch.where(values.isfinite().all(), self.first_broken, self.first_broken.clamp_max(step))

    def stop_if_broken(self, what: str, warmup: str) -> None:
        """ValueError that names the step if a loss of any rank was NaN or infinite."""
        step = float(all_reduce_min_(self.first_broken.clone()))
        if math.isfinite(step):
            remedy = f"Lower optimizer.lr, lengthen optimizer.{warmup}, or set run.precision=float32, and start the command again"
            raise ValueError(f"{what} became NaN or infinite at step {int(step)}; checkpoints of earlier steps are kept. {remedy}")

    def write(self, step: int, values: dict[str, float], *, shown: dict[str, str] | None = None) -> None:
        """Append one line to metrics.jsonl and TensorBoard; put `shown` beside the bar."""
        if not is_main():
            return
        path = self.folder / METRICS
        path.parent.mkdir(parents=True, exist_ok=True)
        with name_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | rounded(values)) + "\n")
        if self.writer is not None:
            with name_errors(self.folder / "tensorboard"):
                for name, value in values.items():
                    self.writer.add_scalar(name, value, step)
        if shown:
            self.bar.set_postfix(shown, refresh=False)

    def close(self) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Return values as metrics.jsonl has them, with 7 digits."""
    return {name: float(f"{value:.7g}") if isinstance(value, float) else value for name, value in values.items()}


def read_lines(path: Path, step: int) -> list[dict[str, Any]]:
    """Return what a run logged up to a step; the last line of a killed run may be cut short, and is left out then."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(ValueError, KeyError, TypeError):
            line = json.loads(text)
            lines += [line] if line["step"] <= step else []
    return lines


class TokenizerMonitor(Monitor):
    """Averages losses on the device and measures codebook usage between two lines.

    `batch_size`: images per step, for images/s. `usage_alarm`: share of usable rows below which a level raises the alarm.
    """

    def __init__(self, folder: Path, device: torch.device | str, *, batch_size: int, usage_alarm: float) -> None:
        super().__init__(folder, device)
        self.batch_size, self.usage_alarm = batch_size, usage_alarm
        self.sums: dict[tuple[str, ...], torch.Tensor] = {}
        self.counts: dict[tuple[str, ...], int] = {}
        self.since, self.since_step, self.step = time.perf_counter(), 0, 0
        self.alarmed: set[int] = set()

    def open(self, *, step: int, steps: int) -> list[dict[str, Any]]:
        self.step = self.since_step = step
        return super().open(step=step, steps=steps)

    def add(self, parts: dict[str, torch.Tensor]) -> None:
        """Take the scalars of one micro-batch; they stay on the device."""
        names, values = tuple(parts), torch.stack([part.detach().float() for part in parts.values()])
        self.sums[names] = self.sums[names] + values if names in self.sums else values
        self.counts[names] = self.counts.get(names, 0) + 1
        self.watch(values, self.step + 1)

    def tick(self) -> None:
        self.step += 1
        self.bar.update()

    def flush(self, codebooks: list[Codebook], *, extra: dict[str, float]) -> dict[str, float]:
        """Write the averages since the last call, over all ranks, and the usage of each codebook; call on every rank.

        Raises ValueError: a loss is NaN or infinite; the message names the step.
        """
        totals: dict[str, Any] = {}
        for group, sums in self.sums.items():
            for name, value in zip(group, sums, strict=True):
                total, count = totals.get(name, (0.0, 0))
                totals[name] = total + value, count + self.counts[group]
        names = list(totals)
        averages = torch.stack([total / count for total, count in totals.values()]) if names else torch.zeros(0)
        values = (all_reduce_sum_(averages) / world_size()).tolist()
        line = dict(zip(names, values, strict=True)) | extra
        broken = [name for name, value in line.items() if not math.isfinite(value)]
        if broken:
            self.stop_if_broken(", ".join(broken), "warmup_steps")
        for level, codebook in enumerate(codebooks):
            line |= self._usage(level, codebook)
        seconds = max(time.perf_counter() - self.since, 1e-9)
        line["images_per_second"] = (self.step - self.since_step) * self.batch_size / seconds
        shown = {"loss": f"{line.get('loss', math.nan):.4f}", "images/s": f"{line['images_per_second']:.0f}"}
        self.write(self.step, line, shown=shown)
        self.sums, self.counts, self.since_step, self.since = {}, {}, self.step, time.perf_counter()
        return line

    def _usage(self, level: int, codebook: Codebook) -> dict[str, float]:
        usage = all_reduce_sum_(codebook.take_usage()).double()
        total = usage.sum().clamp_min(1)
        share = usage / total
        used, entropy = int((usage > 0).sum()), float(-(share * share.clamp_min(1e-300).log()).sum())
        possible = min(codebook.num_rows, int(total))
        collapsed = used < max(2, self.usage_alarm * possible)
        if collapsed and level not in self.alarmed and is_main():
            remedy = "model.codebook.mode=projected, a larger model.codebook.entropy_weight, train.fade_in=0.1 or a lower optimizer.lr"
            logger.warning("usage alarm: codebook %d uses %d of %d rows. It has collapsed; try %s", level, used, possible, remedy)
        self.alarmed = self.alarmed | {level} if collapsed else self.alarmed - {level}
        return {f"usage_{level}": used / codebook.num_rows, f"perplexity_{level}": math.exp(entropy)}

    def picture(self, step: int, rows: list[torch.Tensor]) -> None:
        """Write a grid to pictures/ and TensorBoard: `rows` of (B, 3, H, W) in [-1, 1], originals first, then more and more levels."""
        if not is_main():
            return
        pixels = torch.cat([row.float().cpu().clamp(-1, 1) for row in rows])
        grid = make_grid(pixels, nrow=len(rows[0]), value_range=(-1, 1), normalize=True, padding=1)
        path = self.folder / "pictures" / f"step_{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        with name_errors(path):
            save_image(grid, path)
        if self.writer is not None:
            self.writer.add_image("originals, coarse to all levels", grid, step)


class LlmMonitor(Monitor, TrainerCallback):
    """The callback of transformers' Trainer that writes its logs, measures tokens per second and stops at NaN."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        super().__init__(folder, device)
        self.last: dict[str, float] = {}  # the newest value of everything that was logged
        self.evaluated_at = -1  # step of the newest held-out loss
        self.tokens, self.since, self.since_tokens = 0, time.perf_counter(), 0  # tokens of this rank

    def tokens_per_second(self) -> float:
        """Return the pace of all ranks since the last call."""
        now = time.perf_counter()
        pace = (self.tokens - self.since_tokens) * world_size() / max(now - self.since, 1e-9)
        self.since, self.since_tokens = now, self.tokens
        return pace

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for line in self.open(step=state.global_step, steps=state.max_steps):  # what a start before this one logged
            self._remember(line.pop("step"), line)

    def _remember(self, step: int, values: dict[str, float]) -> None:
        self.last |= rounded(values)
        self.evaluated_at = step if "eval_loss" in values else self.evaluated_at

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any) -> None:
        """Move the bar; before a log line, a checkpoint or a measurement, stop if the loss or, for a checkpoint, a weight is broken."""
        self.bar.update()
        if control.should_log or control.should_save or control.should_evaluate or control.should_training_stop:
            learned = [weight for weight in model.parameters() if weight.requires_grad] if control.should_save else []
            if not all(bool(getattr(weight, "ds_tensor", weight).isfinite().all()) for weight in learned):  # under ZeRO-3 its own part
                self.first_broken.clamp_max_(state.global_step)
            self.stop_if_broken("the loss", "warmup")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        values = {key: value for key, value in (logs or {}).items() if not key.startswith(HIDDEN) and isinstance(value, int | float)}
        if values:
            self._remember(state.global_step, values)
            shown = {name: f"{values[name]:.4g}" for name in ("loss", "eval_loss", "tokens_per_second") if name in values}
            self.write(state.global_step, values, shown=shown)
