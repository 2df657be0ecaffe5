"""What the training of a language model says of itself: metrics.jsonl, TensorBoard, one progress bar, and a stop when a loss breaks."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unicode.common.log import get_logger
from unicode.common.ranks import all_reduce_min_, is_main
from unicode.common.records import name_errors
from unicode.train.monitor import forget_lines_after

NOT_WRITTEN = ("epoch", "total_flos", "train_")
"""Beginnings of names of what Trainer logs and nobody needs: its epoch is the whole run, its sums at the end count the time of saving."""
logger = get_logger(__name__)


class Monitor(TrainerCallback):
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
