"""What a run reports: lines of metrics, NaN, usage and its alarm, a resumed file, pictures."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import TrainerControl, TrainerState, TrainingArguments

from unicode.codebook.codebook import Codebook, CodebookConfig
from unicode.train.monitor import LlmMonitor, TokenizerMonitor


@pytest.fixture
def watch(tmp_path: Path) -> Callable[..., TokenizerMonitor]:
    """Build a monitor of a run of 100 steps in `tmp_path`."""

    def build(start_step: int = 0, usage_alarm: float = 0.01) -> TokenizerMonitor:
        monitor = TokenizerMonitor(tmp_path, "cpu", batch_size=4, usage_alarm=usage_alarm)
        monitor.open(step=start_step, steps=100)
        return monitor

    return build


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def book(num_rows: int, codes: list[int]) -> Codebook:
    """Return a codebook that has seen `codes` in training."""
    config = CodebookConfig(mode="free", num_rows=num_rows)
    codebook = Codebook(torch.randn(num_rows, 2), torch.arange(num_rows), config, learn_scale=False)
    codebook.accumulate(torch.zeros(len(codes), 2), torch.tensor(codes))
    return codebook


def test_a_line_holds_the_averages_since_the_last_one(watch: Callable[..., TokenizerMonitor], tmp_path: Path) -> None:
    monitor = watch()
    for step in range(4):
        monitor.add({"loss": torch.tensor(float(step), requires_grad=True)})
        monitor.add({"loss": torch.tensor(float(step) + 1), "late": torch.tensor(2.0)})
        monitor.tick()
    line = monitor.flush([], extra={"lr": 0.5})
    assert (line["loss"], line["late"], line["lr"]) == (2.0, 2.0, 0.5)
    assert line["images_per_second"] > 0
    monitor.add({"loss": torch.tensor(9.0)})
    monitor.tick()
    monitor.flush([], extra={})
    first, second = lines_of(tmp_path)
    assert (first["step"], first["loss"]) == (4, 2.0)
    assert (second["step"], second["loss"]) == (5, 9.0)
    assert "late" not in second


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_names_the_part_and_the_first_step(watch: Callable[..., TokenizerMonitor], tmp_path: Path, value: float) -> None:
    monitor = watch(start_step=20)
    for step in range(21, 26):
        monitor.add({"loss": torch.tensor(1.0), "l2": torch.tensor(value if step >= 23 else 0.5)})
        monitor.tick()
    with pytest.raises(ValueError, match=r"^l2 became NaN or infinite at step 23; checkpoints of earlier steps are kept\. Lower"):
        monitor.flush([], extra={})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_usage_and_perplexity_of_what_was_seen(watch: Callable[..., TokenizerMonitor]) -> None:
    codebooks = [book(8, [0, 0, 1, 1, 2, 2, 3, 3]), book(10, [7] * 5)]
    line = watch().flush(codebooks, extra={})
    assert line["usage_0"] == 0.5
    assert line["perplexity_0"] == pytest.approx(4.0)
    assert line["usage_1"] == pytest.approx(0.1)
    assert line["perplexity_1"] == pytest.approx(1.0)
    assert watch().flush(codebooks, extra={})["usage_0"] == 0.0  # every count is taken once


def test_the_alarm_rings_once_until_usage_recovers(watch: Callable[..., TokenizerMonitor], caplog: pytest.LogCaptureFixture) -> None:
    monitor = watch(usage_alarm=0.5)
    collapsed, healthy = [3] * 20, list(range(16))
    for codes in (healthy, collapsed, collapsed, healthy, collapsed):
        monitor.flush([book(16, codes)], extra={})
    alarms = [record.getMessage() for record in caplog.records if "usage alarm" in record.getMessage()]
    assert len(alarms) == 2
    assert "codebook 0 uses 1 of 16 rows" in alarms[0]
    assert "model.codebook.mode=projected" in alarms[0]


def test_few_latents_are_no_collapse(watch: Callable[..., TokenizerMonitor], caplog: pytest.LogCaptureFixture) -> None:
    watch(usage_alarm=0.5).flush([book(1000, [1, 2, 3, 4])], extra={})
    assert "usage alarm" not in caplog.text


def test_a_resumed_run_drops_the_lines_it_will_write_again(watch: Callable[..., TokenizerMonitor], tmp_path: Path) -> None:
    whole = [json.dumps({"step": step, "loss": 1.0}) for step in (10, 20, 20, 30, 40)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*whole, '{"step": 50, "lo']))
    monitor = watch(start_step=20)
    assert [line["step"] for line in lines_of(tmp_path)] == [10, 20, 20]
    monitor.write(25, {"loss": 0.123456789})
    assert lines_of(tmp_path)[-1] == {"step": 25, "loss": 0.1234568}
    watch(start_step=0)
    assert lines_of(tmp_path) == []


def test_pictures_show_originals_above_reconstructions(watch: Callable[..., TokenizerMonitor], tmp_path: Path) -> None:
    white, black = torch.ones(3, 3, 8, 8), -torch.ones(3, 3, 8, 8)
    watch().picture(7, [white, 5 * black])
    grid = Image.open(tmp_path / "pictures" / "step_00000007.png")
    assert grid.size == (3 * 9 + 1, 2 * 9 + 1)
    assert grid.getpixel((4, 4)) == (255, 255, 255)
    assert grid.getpixel((4, 13)) == (0, 0, 0)


def test_a_resumed_llm_run_knows_what_was_logged_before(tmp_path: Path) -> None:
    lines = [{"step": 2, "loss": 3.0}, {"step": 4, "loss": 2.0}, {"step": 4, "eval_loss": 1.5}, {"step": 6, "loss": 1.0, "eval_loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monitor = LlmMonitor(tmp_path)
    monitor.on_train_begin(TrainingArguments(str(tmp_path)), TrainerState(global_step=4, max_steps=8), TrainerControl())
    monitor.close()
    assert monitor.last == {"loss": 2.0, "eval_loss": 1.5}
    assert monitor.evaluated_at == 4
    assert lines_of(tmp_path) == lines[:3]
