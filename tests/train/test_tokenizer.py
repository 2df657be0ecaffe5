"""Training runs of a few steps: resume, kill, ranks, alarms and what is refused before work starts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizer_runs import largest_difference, state_of, train
from warm import free_port, run_ranks, start

from unicode import load_tokenizer
from unicode.common.checkpoint import newest_checkpoint
from unicode.common.config import load_config
from unicode.train import tokenizer as tokenizer_training
from unicode.train.config import TrainTokenizerConfig, split_batch
from unicode.train.tokenizer import STATE_FILE, TokenizerTrainer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def empty_config(tmp_path: Path) -> Path:
    (tmp_path / "empty.yaml").write_text("{}\n")
    return tmp_path / "empty.yaml"


def test_a_run_leaves_everything_a_user_expects(overrides: list[str], tmp_path: Path) -> None:
    checkpoint = train(overrides, "train.average_decay=0.9", "train.keep=2", "train.fade_in=0.2")
    run = tmp_path / "run"
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step_00000012", "step_00000016"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == [4, 8, 12, 16]
    assert losses[16] < losses[4]
    assert {"usage_0", "perplexity_1", "images_per_second", "lr"} <= lines[0].keys()
    assert any("val_psnr" in line for line in lines)
    assert (run / "pictures" / "step_00000016.png").is_file()
    assert list((run / "tensorboard").rglob("events*")) or list(run.rglob("events*"))
    assert load_tokenizer(run).fingerprint == load_tokenizer(checkpoint).fingerprint
    assert train(overrides, "train.average_decay=0.9", "train.keep=2", "train.fade_in=0.2") == checkpoint


def test_language_mode_ends_with_the_rows_of_the_language_model(overrides: list[str]) -> None:
    run = TokenizerTrainer(load_config(TrainTokenizerConfig, None, [*overrides, "model.codebook.mode=language", "model.codebook.width=0"]))
    tokenizer = load_tokenizer(run.run())
    for codebook in tokenizer.codebooks:
        assert torch.equal(codebook.rows, run.tokenizer.codebooks[0].target.rows)  # type: ignore[arg-type]


ADVERSARIAL = [
    "objective.discriminator.enabled=true",
    "objective.discriminator.start=4",
    "objective.discriminator.alone_steps=2",
    "objective.discriminator.lecam_weight=0.01",
    "train.average_decay=0.9",
]


def test_killed_and_started_again_it_ends_with_the_same_bits(overrides: list[str], empty_config: Path, tmp_path: Path) -> None:
    """And a second start beside a running one is refused."""
    settings = [*overrides, *ADVERSARIAL]
    whole = state_of(train(settings, f"run.dir={tmp_path / 'whole'}"))
    first = start("train_tokenizer", empty_config, *settings, log=tmp_path / "first.log")
    while newest_checkpoint(tmp_path / "run" / "checkpoints") is None:
        assert first.process.is_alive(), first.printed
        time.sleep(0.02)
    os.kill(first.process.pid, signal.SIGSTOP)  # type: ignore[arg-type]
    second = start("train_tokenizer", empty_config, *settings, log=tmp_path / "second.log")
    assert second.wait() == 2
    assert f"run is in use: training by process {first.process.pid} on" in second.printed
    first.process.kill()
    first.process.join()
    third = start("train_tokenizer", empty_config, *settings, log=tmp_path / "third.log")
    assert third.wait() == 0
    assert "resuming" in third.printed
    assert largest_difference(whole, state_of(newest_checkpoint(tmp_path / "run" / "checkpoints"))) == 0.0


def test_a_validation_that_a_kill_prevented_is_made_up_for(overrides: list[str]) -> None:
    run = train(overrides, "train.steps=4", "train.save_every=2", "train.eval_every=2").parents[1]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    pictures = {path.name: path.read_bytes() for path in (run / "pictures").iterdir()}
    (run / "metrics.jsonl").write_text("\n".join(line for line in lines if "val_psnr" not in line or '"step": 2' in line) + "\n")
    (run / "pictures" / "step_00000004.png").unlink()
    train(overrides, "train.steps=4", "train.save_every=2", "train.eval_every=2")
    assert (run / "metrics.jsonl").read_text().splitlines() == lines
    assert {path.name: path.read_bytes() for path in (run / "pictures").iterdir()} == pictures


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_compiled_with_the_adaptive_weight_it_resumes(overrides: list[str], monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """On a CPU with the same bits; on a GPU, where sums of atomics differ from run to run, nearly."""
    if device == "cpu":  # inductor would call a C++ compiler for a minute
        monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    settings = [*overrides, *ADVERSARIAL, "objective.discriminator.start=1", "objective.discriminator.alone_steps=1", "run.compile=true"]
    settings += ["objective.discriminator.ramp_steps=2", "train.micro_batch_size=4", "train.steps=8", f"run.device={device}"]
    newest = train(settings, "train.log_every=1")
    whole = state_of(newest)
    weights = [json.loads(line).get("adaptive_weight", 0) for line in (newest.parents[1] / "metrics.jsonl").read_text().splitlines()]
    assert max(weights) > 0
    shutil.rmtree(newest)
    difference = largest_difference(whole, state_of(train(settings, "train.log_every=1")))
    assert difference == 0.0 if device == "cpu" else difference < 0.1


def test_resumed_in_language_mode_it_ends_with_the_same_bits(overrides: list[str], tmp_path: Path) -> None:
    settings = [*overrides, *ADVERSARIAL, "model.codebook.mode=language", "model.codebook.width=0"]
    newest = train(settings)
    whole = state_of(newest)
    for step in (16, 12):
        shutil.rmtree(newest.with_name(f"step_{step:08d}"))
    assert largest_difference(whole, state_of(train(settings))) == 0.0


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(overrides: list[str], caplog: pytest.LogCaptureFixture) -> None:
    newest = train(overrides)
    whole = state_of(newest)
    file = newest / STATE_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with caplog.at_level("WARNING"):
        again = train(overrides)
    assert "step_00000016" in caplog.text
    assert largest_difference(whole, state_of(again)) == 0.0


def test_checkpoints_all_damaged_are_an_error_and_not_a_new_start(overrides: list[str], tmp_path: Path) -> None:
    newest = train(overrides, "train.steps=4")
    (newest / STATE_FILE).unlink()
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged; delete them"):
        train(overrides, "train.steps=4")


@pytest.mark.parametrize("mode", ["language", "projected"])
def test_two_ranks_equal_one(overrides: list[str], empty_config: Path, tmp_path: Path, mode: str) -> None:
    settings = [*overrides, f"model.codebook.mode={mode}", f"model.codebook.width={4 if mode == 'projected' else 0}"]
    settings += ["train.steps=12", "train.save_every=0", "optimizer.lr=2e-4"]
    one = state_of(train(settings, f"run.dir={tmp_path / 'one'}", "train.micro_batch_size=8"))
    run_ranks("train_tokenizer", empty_config, *settings, logs=tmp_path, ACCELERATE_USE_CPU="true")
    two = state_of(newest_checkpoint(tmp_path / "run" / "checkpoints"))
    assert largest_difference(one["model"], two["model"]) < 1e-4


WRITE_DIGEST = """
import hashlib, os, sys
from pathlib import Path
from unicode.common.config import load_config
from unicode.train import tokenizer as tokenizer_training
from unicode.train.config import TrainTokenizerConfig
from unicode.train.tokenizer import TokenizerTrainer


def main():  # a function, so that everything that holds on to the process group is gone before the interpreter ends
    trainer = TokenizerTrainer(load_config(TrainTokenizerConfig, None, sys.argv[1:]))
    trainer.run()
    digest = hashlib.sha256()
    for module in (trainer.tokenizer, trainer.discriminator, trainer.lecam):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    Path(sys.argv[0]).with_name("digest_" + os.environ["RANK"]).write_text(digest.hexdigest())


main()
"""


def test_two_ranks_with_a_discriminator_agree_to_the_last_bit(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(WRITE_DIGEST)
    settings = [*overrides, "model.codebook.mode=language", "model.codebook.width=0", "objective.discriminator.enabled=true"]
    settings += ["objective.discriminator.start=2", "objective.discriminator.alone_steps=2", "objective.discriminator.lecam_weight=0.01"]
    launcher = ["-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--no_local_rank", "--master_port", str(free_port())]
    values = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    values |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_USE_CPU": "true"}
    words = [sys.executable, *launcher, str(tmp_path / "train.py"), *settings]
    done = subprocess.run(words, env=os.environ | values, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "digest_0").read_text() == (tmp_path / "digest_1").read_text()


def test_ranks_with_different_codebooks_stop_at_a_checkpoint(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unicode.train.tokenizer.ranks_agree", lambda _: False)
    with pytest.raises(ValueError, match=r"codebooks of the ranks differ at step 4; checkpoints of earlier steps are kept"):
        train(overrides)


def test_accumulation_equals_one_batch(overrides: list[str], tmp_path: Path) -> None:
    settings = [*overrides, "model.codebook.entropy_weight=0", "optimizer.lr=2e-4"]
    whole = state_of(train(settings, f"run.dir={tmp_path / 'whole'}"))
    parts = state_of(train(settings, f"run.dir={tmp_path / 'parts'}", "train.micro_batch_size=2"))
    assert largest_difference(whole["model"], parts["model"]) < 1e-3


def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(overrides: list[str], tmp_path: Path) -> None:
    trainer = TokenizerTrainer(load_config(TrainTokenizerConfig, None, overrides))
    step = trainer.train_step

    def poisoned(number: int, micro: Any) -> None:
        if number == 9:
            torch.nn.init.constant_(trainer.tokenizer.decoder.conv_out.bias, float("nan"))  # type: ignore[arg-type]
        step(number, micro)

    trainer.train_step = poisoned  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"loss.*NaN or infinite at step 10; checkpoints of earlier steps are kept"):
        trainer.run()
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert newest.name == "step_00000008"


def test_usage_alarm(overrides: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        train(overrides, "train.usage_alarm=1.0", "train.steps=4")
    assert re.search(r"usage alarm: codebook \d uses \d+ of \d+ rows", caplog.text)


def test_another_architecture_in_the_run_folder_is_refused(overrides: list[str]) -> None:
    train(overrides, "train.steps=4")
    with pytest.raises(ValueError, match=r"model\.autoencoder\.channels=8, this one has 16; choose another run\.dir"):
        train(overrides, "train.steps=4", "model.autoencoder.channels=16")


def test_a_projected_codebook_needs_the_commitment_loss(overrides: list[str]) -> None:
    with pytest.raises(ValueError, match=r"objective\.commitment=0 leaves the rows of model\.codebook\.mode=projected without a gradient"):
        load_config(TrainTokenizerConfig, None, [*overrides, "objective.commitment=0", "model.codebook.entropy_weight=0"])


def test_validation_reads_with_the_workers_of_the_config(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    real = tokenizer_training.build_loader

    def build_loader(*args: Any, num_workers: int, **options: Any) -> Any:
        used.append(num_workers)
        return real(*args, num_workers=0, **options)

    monkeypatch.setattr(tokenizer_training, "build_loader", build_loader)
    train(overrides, "train.steps=1", "train.num_workers=3")
    assert used == [3, 3]


def test_batches_are_split_evenly(config: TrainTokenizerConfig) -> None:
    loop = config.train
    assert split_batch(loop, 1) == 1
    loop.micro_batch_size = 2
    assert split_batch(loop, 2) == 2
