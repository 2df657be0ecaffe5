"""Metrics of a training run: averages, codebook usage -> metrics.jsonl, TensorBoard, progress bar."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid, save_image
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unicode.codebook.codebook import Codebook
from unicode.common.distributed import all_reduce_min_, all_reduce_sum_, is_main, world_size
from unicode.common.files import name_errors, write_list
from unicode.common.logging import get_logger

logger = get_logger(__name__)


class TokenizerMonitor:
    """Collects on the device, asks for numbers only at log lines.

    Args:
        folder: run folder.
        accelerator: gives TensorBoard.
        steps: length of the run.
        start_step: where the bar starts.
        batch_size: images per step, for images/s.
        usage_alarm: share of usable rows below which a level raises the alarm.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, *, steps: int, start_step: int, batch_size: int, usage_alarm: float) -> None:
        self.folder, self.accelerator, self.batch_size, self.usage_alarm = folder, accelerator, batch_size, usage_alarm
        pace = 0.5 if sys.stderr.isatty() else 30.0  # seconds between updates: a log file needs fewer than a person
        self.bar = tqdm(total=steps, initial=start_step, disable=not is_main(), unit="step", smoothing=0.05, mininterval=pace)
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.steps_seen, self.since, self.alarmed = 0, time.perf_counter(), set[int]()
        self.step, self.first_broken = start_step, torch.full((), math.inf, device=accelerator.device)
        forget_lines_after(folder / "metrics.jsonl", start_step)

    def add(self, parts: dict[str, torch.Tensor]) -> None:
        """Take the scalars of one micro-batch; they stay on the device."""
        for name, part in parts.items():
            value = part.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1
            # Remembered on the device: asking it every step whether all is well would make the host wait every step.
            self.first_broken = torch.where(value.isfinite(), self.first_broken, self.first_broken.clamp_max(self.step + 1))

    def tick(self) -> None:
        """Count one finished step."""
        self.steps_seen += 1
        self.step += 1
        self.bar.update()

    def flush(self, step: int, codebooks: list[Codebook], *, extra: dict[str, float]) -> dict[str, float]:
        """Write the averages since the last call, over all ranks, and the usage of each codebook; call on every rank.

        Raises:
            ValueError: a loss is NaN or infinite; the message names the step.
        """
        names = list(self.sums)
        averages = torch.stack([self.sums[name] / self.counts[name] for name in names]) if names else torch.zeros(0)
        values = (all_reduce_sum_(averages) / world_size()).tolist()
        line = dict(zip(names, values, strict=True)) | extra
        broken = [name for name, value in line.items() if not math.isfinite(value)]
        if broken:
            first = int(all_reduce_min_(self.first_broken))
            raise ValueError(
                f"{', '.join(broken)} became NaN or infinite at step {first}; the last good checkpoint is kept. Lower optimizer.lr, "
                "lengthen optimizer.warmup_steps, or set run.precision=float32, and start the command again"
            )
        for level, codebook in enumerate(codebooks):
            line |= self._usage(level, codebook)
        seconds = time.perf_counter() - self.since
        line["images_per_second"] = self.steps_seen * self.batch_size / max(seconds, 1e-9)
        self.write(step, line)
        self.bar.set_postfix({"loss": f"{line.get('loss', math.nan):.4f}", "images/s": f"{line['images_per_second']:.0f}"}, refresh=False)
        self.sums, self.counts, self.steps_seen, self.since = {}, {}, 0, time.perf_counter()
        return line

    def _usage(self, level: int, codebook: Codebook) -> dict[str, float]:
        """Return usage and perplexity of one codebook since the last line, over all ranks; warn when it has collapsed."""
        usage = all_reduce_sum_(codebook.take_usage()).double()
        total = usage.sum().clamp_min(1)
        share = usage / total
        used, entropy = int((usage > 0).sum()), float(-(share * share.clamp_min(1e-300).log()).sum())
        possible = min(codebook.num_rows, int(total))
        if used < max(2, self.usage_alarm * possible) and level not in self.alarmed and is_main():
            self.alarmed.add(level)
            logger.warning(
                "usage alarm: codebook %d uses %d of %d rows. It has collapsed; try model.codebook.mode=projected, "
                "a larger model.codebook.entropy_weight, train.fade_in=0.1 or a lower optimizer.lr",
                level,
                used,
                possible,
            )
        elif used >= max(2, self.usage_alarm * possible):
            self.alarmed.discard(level)
        return {f"usage_{level}": used / codebook.num_rows, f"perplexity_{level}": math.exp(entropy)}

    def write(self, step: int, line: dict[str, float]) -> None:
        """Append one line to metrics.jsonl and TensorBoard, on the main rank."""
        if is_main():
            path = self.folder / "metrics.jsonl"
            with name_errors(path), open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step} | {name: round(value, 6) for name, value in line.items()}) + "\n")
        with name_errors(self.folder / "tensorboard"):
            self.accelerator.log(line, step=step)

    def picture(self, step: int, rows: list[torch.Tensor]) -> None:
        """Write a grid to pictures/ and TensorBoard: `rows` of (B, 3, H, W) in [-1, 1], originals first, then more and more levels."""
        if not is_main():
            return
        pixels = torch.cat([row.float().cpu().clamp(-1, 1) for row in rows])
        grid = make_grid(pixels, nrow=len(rows[0]), value_range=(-1, 1), normalize=True, padding=1)
        (self.folder / "pictures").mkdir(exist_ok=True)
        path = self.folder / "pictures" / f"step_{step:08d}.png"
        with name_errors(path):
            save_image(grid, path)
        for tracker in self.accelerator.trackers:
            tracker.writer.add_image("originals, coarse to all levels", grid, step)  # type: ignore[attr-defined]

    def close(self) -> None:
        """End the bar and the TensorBoard files."""
        self.bar.close()
        self.accelerator.end_training()


def forget_lines_after(path: Path, step: int) -> None:
    """Drop lines of steps that a resumed run will do again."""
    if is_main() and path.is_file():
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                keep = json.loads(line)["step"] <= step
            except (ValueError, KeyError, TypeError):  # the last line of a killed run may be cut short
                keep = False
            if keep:
                lines.append(line)
        write_list(path, lines)


NOT_WRITTEN = ("epoch", "total_flos", "train_")
"""Beginnings of names of what Trainer logs and nobody needs: its epoch is the whole run, its sums at the end count the time of saving."""


class LlmMonitor(TrainerCallback):
    """Writes every log of the trainer to metrics.jsonl and TensorBoard and moves the bar; only the main rank writes.

    Args:
        folder: run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bar: tqdm[Any] | None = None
        self.writer: SummaryWriter | None = None
        self.last: dict[str, float] = {}
        """The newest value of everything that was logged."""
        self.evaluated_at = -1
        """Step of the newest held-out loss."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar at the step the run resumes from and drop lines of steps that will be done again."""
        forget_lines_after(self.folder / "metrics.jsonl", state.global_step)
        if is_main():
            pace = 0.5 if sys.stderr.isatty() else 30.0  # seconds between updates: a log file needs fewer than a person
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", smoothing=0.05, mininterval=pace)
            self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Write one line."""
        values = {key: value for key, value in (logs or {}).items() if not key.startswith(NOT_WRITTEN) and isinstance(value, int | float)}
        if not values:
            return
        self.last |= values
        self.evaluated_at = state.global_step if "eval_loss" in values else self.evaluated_at
        if not is_main():
            return
        path = self.folder / "metrics.jsonl"
        with name_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step} | {name: shorten(value) for name, value in values.items()}) + "\n")
        if self.writer is not None:
            with name_errors(self.folder / "tensorboard"):
                for name, value in values.items():
                    self.writer.add_scalar(name, value, state.global_step)
        if self.bar is not None:
            shown = {name: f"{values[name]:.4g}" for name in ("loss", "eval_loss", "tokens_per_second") if name in values}
            self.bar.set_postfix(shown, refresh=False)

    def close(self) -> None:
        """End the bar and the TensorBoard file."""
        for opened in (self.bar, self.writer):
            if opened is not None:
                opened.close()
        self.bar = self.writer = None


class LossGuard(TrainerCallback):
    """Stops a run whose loss or weights became NaN or infinite, at the next log line and before anything is saved.

    Every step only remembers on the device, so that the host never waits for it.
    """

    def __init__(self) -> None:
        self.first_broken: torch.Tensor | None = None

    def watch(self, loss: torch.Tensor, step: int) -> None:
        """Remember `step` (from 1) if `loss` is broken and no step before it was."""
        if self.first_broken is None:
            self.first_broken = torch.full((), math.inf, device=loss.device)
        self.first_broken = torch.where(loss.isfinite(), self.first_broken, self.first_broken.clamp_max(step))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any) -> None:
        """Ask the device, where an answer is due. ValueError that names the step."""
        if not (control.should_log or control.should_save or control.should_evaluate or control.should_training_stop):
            return
        if self.first_broken is None:
            return
        first = self.first_broken.clone()
        if control.should_save and not weights_are_finite(model):
            first.clamp_max_(state.global_step)
        step = float(all_reduce_min_(first))
        if math.isfinite(step):
            raise ValueError(
                f"the loss became NaN or infinite at step {int(step)}; checkpoints of earlier steps are whole. Lower optimizer.lr, "
                "lengthen optimizer.warmup, or set run.precision=float32, and start the command again"
            )


def weights_are_finite(model: Any) -> bool:
    """Whether all trainable weights are finite; under ZeRO-3 those that this rank holds."""
    parts = [getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters() if parameter.requires_grad]
    return all(bool(part.isfinite().all()) for part in parts)


class Pace:
    """Tokens per second between two log lines, all ranks together."""

    def __init__(self) -> None:
        self.tokens, self.total, self.since, self.begun = 0, 0, time.perf_counter(), time.perf_counter()

    def add(self, tokens: int) -> None:
        """Count the tokens of one step."""
        self.tokens += tokens
        self.total += tokens

    def take(self) -> float:
        """Return tokens per second since the last call, and begin anew."""
        now = time.perf_counter()
        pace = self.tokens / max(now - self.since, 1e-9)
        self.tokens, self.since = 0, now
        return pace


def shorten(value: float) -> float:
    """Seven significant digits, enough for a curve."""
    return float(f"{value:.7g}") if isinstance(value, float) else value
