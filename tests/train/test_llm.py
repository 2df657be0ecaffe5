"""Training runs of a language model: what they leave, how they resume, that ranks agree, and what is refused before work starts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from llm_runs import ADAPTER, build, largest_difference, lines, losses, train
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from warm import run_ranks, start

from unicode.common.checkpoint import newest_checkpoint
from unicode.llm.card import read_card
from unicode.llm.load import open_model
from unicode.train.llm import MUON, LlmTrainer, MuonAdamW

ROOT = Path(__file__).parents[2]


def environment(**extra: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)} | extra


@pytest.fixture
def empty_config(tmp_path: Path) -> Path:
    (tmp_path / "empty.yaml").write_text("{}\n")
    return tmp_path / "empty.yaml"


def test_a_run_leaves_everything_that_inference_and_people_need(llm_overrides: list[str], tiny_llama: Path) -> None:
    run = train(llm_overrides, "train.steps=16")
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "tensorboard", ADAPTER, "adapter_config.json", "unicode.json", "tokenizer.json"} <= names
    assert {"checkpoint-12", "checkpoint-16"} <= names
    assert not list(run.rglob("model.safetensors")), "full weights beside an adapter make Trainer skip the adapter when it resumes"
    found = lines(run)
    assert [line["step"] for line in found if "loss" in line] == [4, 8, 12, 16]
    assert {"text_loss", "image_loss", "loss/image_to_text", "loss/text_to_image", "tokens_per_second", "grad_norm"} <= set().union(*found)
    held_out = [line for line in found if "eval_loss" in line]
    assert [line["step"] for line in held_out] == [6, 12, 16]
    assert {"eval_loss/image_to_text", "eval_loss/text_to_image", "eval_loss/text_only"} <= held_out[0].keys()
    assert held_out[-1]["eval_loss"] < held_out[0]["eval_loss"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 16
    assert summary["tokens_per_second"] > 0
    assert summary["parameters_learned"] < summary["parameters"]
    card = read_card(run)
    assert (card.kind, card.base, card.fingerprint) == ("lora", str(tiny_llama), "0123456789abcdef")
    assert card.layout is not None
    before = (run / ADAPTER).stat().st_mtime_ns
    assert train(llm_overrides, "train.steps=16") == run
    assert (run / ADAPTER).stat().st_mtime_ns == before, "a finished run was trained again"


def test_lora_leaves_table_and_head_alone_and_teaches_the_marker_rows(llm_overrides: list[str], tiny_llama: Path) -> None:
    training = build(llm_overrides)
    run = training.run()
    base = AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict()
    after = {name.replace(".base_layer", "").replace(".token_adapter", ""): value for name, value in training.model.state_dict().items()}
    for name, value in base.items():
        assert torch.equal(after[f"base_model.model.{name}"], value), name
    adapter = load_file(run / ADAPTER)
    rows = next(value for name, value in adapter.items() if "trainable_tokens" in name)
    ids = torch.tensor(sorted(training.markers.ids()))
    assert rows.shape == (4, 32)
    used = torch.tensor([sorted(training.markers.ids()).index(training.markers.image_start)])
    assert not torch.equal(rows[used], base["model.embed_tokens.weight"][ids][used])
    targets = json.loads((run / "adapter_config.json").read_text())["target_modules"]
    assert {name.rsplit(".")[-1] for name in targets} == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_what_was_saved_gives_the_same_logits(llm_overrides: list[str]) -> None:
    training = build(llm_overrides)
    run = training.run()
    ids = training.data.train[0].input_ids[None]
    loaded = open_model(run, device="cpu")
    with torch.no_grad():
        expected, found = (model.eval()(input_ids=ids, use_cache=False).logits for model in (training.model, loaded.lm))
    assert (expected - found).abs().max() < 1e-5
    assert loaded.markers == training.markers


def test_full_tuning_changes_of_the_table_only_the_marker_rows(llm_overrides: list[str], tiny_llama: Path) -> None:
    training = build(llm_overrides, "lora.enabled=false", "optimizer.weight_decay=0.1", "optimizer.lr=1e-3")
    run = training.run()
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tiny_llama, run))
    changed = (before["model.embed_tokens.weight"] != after["model.embed_tokens.weight"]).any(dim=1).nonzero().flatten().tolist()
    assert changed
    assert set(changed) <= set(training.markers.ids())
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])
    assert read_card(run).kind == "full"


def test_marker_rows_stay_where_they_shall_not_learn(llm_overrides: list[str], tiny_llama: Path) -> None:
    run = train(llm_overrides, "lora.enabled=false", "lora.train_markers=off", "train.steps=4")
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tiny_llama, run))
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def test_accumulation_and_packing_do_not_change_what_is_learned(llm_overrides: list[str], tmp_path: Path) -> None:
    """Text and image losses are averaged over the whole step, so neither the cut into micro-batches nor the padding counts."""
    settings = [*llm_overrides, "lora.dropout=0", "optimizer.image_weight=0.5", "optimizer.task_weights.image_to_text=2"]
    whole = train(settings, f"run.dir={tmp_path / 'whole'}")
    parts = train(settings, f"run.dir={tmp_path / 'parts'}", "train.micro_batch_size=2")
    packed = train(settings, f"run.dir={tmp_path / 'packed'}", "data.pack=true", "train.micro_batch_size=4")
    for run in (parts, packed):
        assert largest_difference(losses(whole), losses(run)) < 1e-4
        assert largest_difference(load_file(whole / ADAPTER), load_file(run / ADAPTER)) < 1e-3


def test_workers_do_not_change_what_is_learned(llm_overrides: list[str], tmp_path: Path) -> None:
    settings = [*llm_overrides, "train.steps=4", "data.val_files=[]"]
    plain = train(settings, f"run.dir={tmp_path / 'plain'}")
    helped = train(settings, f"run.dir={tmp_path / 'helped'}", "data.num_workers=1")
    assert largest_difference(load_file(plain / ADAPTER), load_file(helped / ADAPTER)) == 0.0


def test_gradient_checkpointing_does_not_change_what_is_learned(llm_overrides: list[str], tmp_path: Path) -> None:
    plain = train(llm_overrides, f"run.dir={tmp_path / 'plain'}")
    again = train(llm_overrides, f"run.dir={tmp_path / 'again'}", "model.gradient_checkpointing=true")
    assert largest_difference(load_file(plain / ADAPTER), load_file(again / ADAPTER)) < 1e-4


def test_killed_and_started_again_it_ends_with_the_same_bits(llm_overrides: list[str], empty_config: Path, tmp_path: Path) -> None:
    """And a second start beside a running one is refused."""
    settings = [*llm_overrides, "train.micro_batch_size=4"]
    whole = train(settings, f"run.dir={tmp_path / 'whole'}")
    words = (empty_config, *settings, "train.save_every=2", "train.steps=12")
    first = start("train_llm", *words, log=tmp_path / "first.log")
    while newest_checkpoint(tmp_path / "llm") is None:
        assert first.process.is_alive(), first.printed
        time.sleep(0.02)
    os.kill(first.process.pid, signal.SIGSTOP)  # type: ignore[arg-type]
    second = start("train_llm", *words, log=tmp_path / "second.log")
    assert second.wait() == 2
    assert f"llm is in use: training by process {first.process.pid} on" in second.printed
    first.process.kill()
    first.process.join()
    third = start("train_llm", *words, log=tmp_path / "third.log")
    assert third.wait() == 0
    assert "resuming" in third.printed
    assert largest_difference(load_file(whole / ADAPTER), load_file(tmp_path / "llm" / ADAPTER)) == 0.0
    steps = [line["step"] for line in lines(tmp_path / "llm") if "loss" in line]
    assert steps == sorted(set(steps)), "a line was written twice"


def test_resumed_with_compressed_images_and_branches_it_ends_with_the_same_bits(llm_overrides: list[str]) -> None:
    settings = [*llm_overrides, "model.input_mode=sum", "data.isolate_turns=true", "train.group_by=modality", "train.micro_batch_size=4"]
    run = train(settings)
    whole = load_file(run / ADAPTER)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoint-12")
    train(settings)
    assert largest_difference(whole, load_file(run / ADAPTER)) == 0.0


@pytest.mark.parametrize("tuned", ["lora.enabled=false", "lora.train_markers=off"])
def test_resumed_with_muon_it_ends_with_the_same_bits(
    llm_overrides: list[str], tmp_path: Path, tuned: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Muon trains the matrices inside the layers, AdamW the rest, if there is any, in one optimizer with one state."""
    caplog.set_level("INFO")
    settings = [*llm_overrides, tuned, "optimizer.muon_lr=0.02", "model.dropout=0.1", "train.save_every=6"]
    whole, weights = train(settings, f"run.dir={tmp_path / 'whole'}"), "model.safetensors" if "enabled" in tuned else ADAPTER
    shutil.copytree(whole / "checkpoint-6", tmp_path / "llm" / "checkpoint-6")
    shutil.copy(whole / "config.yaml", tmp_path / "llm")
    assert largest_difference(load_file(whole / weights), load_file(train(settings) / weights)) == 0.0
    assert "resuming" in caplog.text
    for impossible in (["run.deepspeed=zero2.json"], ["vision.enabled=true", "vision.path=tower", "vision.projector_only=true"]):
        with pytest.raises(ValueError, match="muon_lr"):
            build(settings, "lora.enabled=false", *impossible)


@pytest.mark.parametrize("bf16", [True, False])
def test_the_products_of_muon_are_in_the_precision_of_the_run(bf16: bool) -> None:
    matrix = torch.nn.Parameter(torch.zeros(8, 8))
    matrix.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    MuonAdamW([{"params": [matrix], "by": MUON, "lr": 1.0, "weight_decay": 0.0}], bf16=bf16).step()
    assert torch.linalg.svdvals(matrix.detach()).sub(1).abs().max() < 0.5
    assert torch.equal(matrix.bfloat16().float(), matrix) == bf16


def test_dropout_is_for_training_alone(llm_overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build([*llm_overrides, "model.dropout=0.5"]).model, torch.arange(8)[None]
    first, second = (model.train()(input_ids=ids).logits for _ in range(2))
    assert (first - second).abs().max() > 0.01
    assert torch.equal(*(model.eval()(input_ids=ids).logits for _ in range(2)))
    with pytest.raises(ValueError, match=r"model\.dropout 1\.0 is a share"):
        build([*llm_overrides, "model.dropout=1"])
    monkeypatch.setattr("unicode.train.llm.LAST", (".dense",))
    with pytest.raises(ValueError, match=r"model\.dropout: no module .* ends in \.dense"):
        build([*llm_overrides, "model.dropout=0.5"])


def test_a_checkpoint_that_was_not_written_to_its_end_is_no_checkpoint(llm_overrides: list[str], caplog: pytest.LogCaptureFixture) -> None:
    run = train(llm_overrides, "train.keep=3")
    whole = load_file(run / ADAPTER)
    (run / "summary.json").unlink()
    (run / "checkpoint-12" / "manifest.json").unlink()  # as if killed before it was written
    (run / "checkpoint-8" / "optimizer.pt").write_bytes(b"")  # as if the disk had lost it
    with caplog.at_level("WARNING"):
        train(llm_overrides, "train.keep=3")
    assert "checkpoint-8 is damaged (optimizer.pt has 0 bytes" in caplog.text
    assert largest_difference(whole, load_file(run / ADAPTER)) == 0.0


def test_more_steps_go_on_from_the_last_checkpoint(llm_overrides: list[str], caplog: pytest.LogCaptureFixture) -> None:
    train(llm_overrides, "train.steps=4")
    with caplog.at_level("INFO"):
        run = train(llm_overrides, "train.steps=8")
    assert "train.steps=8 (was 4)" in caplog.text
    assert "from step 4 of 8" in caplog.text
    assert json.loads((run / "summary.json").read_text())["steps"] == 8


def test_a_broken_loss_stops_the_run_and_names_the_step(llm_overrides: list[str]) -> None:
    training = build(llm_overrides)
    original, calls = training.model.forward, []

    def poisoned(*args: Any, **options: Any) -> Any:
        outputs = original(*args, **options)
        calls.append(training.model.training)
        if sum(calls) >= 7:
            outputs.logits = outputs.logits * float("nan")
        return outputs

    training.model.forward = poisoned
    with pytest.raises(ValueError, match=r"NaN or infinite at step 7; .* Lower optimizer\.lr"):
        training.run()
    newest = newest_checkpoint(training.folder)
    assert newest is not None
    assert newest.name == "checkpoint-4"


def test_learning_rates_of_markers_and_of_the_rest(llm_overrides: list[str]) -> None:
    trainer = LlmTrainer(build(llm_overrides, "optimizer.marker_lr=0.01", "optimizer.weight_decay=0.1"))
    groups = {(group["lr"], group["weight_decay"]): len(group["params"]) for group in trainer.create_optimizer().param_groups}
    assert groups == {(0.005, 0.1): 2 * 7 * 2, (0.01, 0.0): 1}


def test_weights_of_files_and_tasks_set_the_mix(llm_overrides: list[str]) -> None:
    training = build(llm_overrides, "data.task_weights.text_to_image=0.25", "train.steps=0", "train.epochs=2")
    assert training.data.epoch_length == 40 + 10 + 20
    assert training.steps == round(2 * 70 / 8)


def test_ranks_wait_for_as_long_as_the_config_says_and_workers_are_no_forks(llm_overrides: list[str]) -> None:
    training = build(llm_overrides, "run.timeout_minutes=7", "data.num_workers=2")
    assert training.args.ddp_timeout == 420
    loader: Any = LlmTrainer(training).get_train_dataloader()
    assert loader.multiprocessing_context.get_start_method() == "forkserver"


def test_preview_shows_what_is_learned(llm_overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    build(llm_overrides).preview(3)
    text = capsys.readouterr().out
    assert text.count("=== ") == 3
    assert "⟦" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.path="], r"model\.path is empty"),
        (["model.path=/nowhere/at/all"], "/nowhere/at/all"),
        (["data.files=[]"], r"data\.files is empty"),
        (["data.files=[nothing.json]"], r"nothing\.json"),
        (["data.files=[a.json*many]"], "'many' is no weight"),
        (["data.max_length=4096"], "context is 2048"),
        (["data.task_weights.drawing=2"], "names the task 'drawing'; known: image_to_text"),
        (["optimizer.task_weights.drawing=2"], "names the task 'drawing'"),
        (["model.image_tokenizer=/nowhere"], "no folder '/nowhere'"),
        (["model.quantize=nf4"], "bitsandbytes"),
        (["model.quantize=nf4", "lora.enabled=false"], r"needs lora\.enabled=true"),
        (["model.attention=flash_attention_2"], "flash-attn"),
        (["model.template=vicuna"], "vicuna_v1"),
        (["model.request=draw"], r"template 'draw' cannot be filled in"),
        (["train.batch_size=9", "train.micro_batch_size=2"], "multiple of 2"),
        (["train.step=3"], r"did you mean 'train\.steps'"),
        (["run.deepspeed=zero9.json"], r"no DeepSpeed config zero9\.json; run\.deepspeed takes configs/deepspeed"),
        (["lora.r=0"], r"lora\.r 0"),
    ],
)
def test_what_cannot_work_is_refused_before_work_starts(llm_overrides: list[str], changes: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(llm_overrides, *changes)
    assert not (tmp_path / "llm").exists()


def test_another_adapter_in_the_run_folder_is_refused(llm_overrides: list[str]) -> None:
    train(llm_overrides, "train.steps=2")
    with pytest.raises(ValueError, match=r"lora\.r=4, this one has 8; choose another run\.dir"):
        build(llm_overrides, "train.steps=4", "lora.r=8")


ZERO = [pytest.param(stage, marks=pytest.mark.slow) for stage in ("zero2", "zero3")]


@pytest.mark.parametrize("engine", ["ddp", "muon", *ZERO])
def test_two_ranks_equal_one(llm_overrides: list[str], empty_config: Path, tmp_path: Path, engine: str) -> None:
    """Same losses and weights for the same global batch; under ZeRO-3 with compressed images, which only some ranks have."""
    settings = [*llm_overrides, "lora.dropout=0", "train.steps=12", "train.save_every=0", "train.log_every=1"]
    settings += ["model.gradient_checkpointing=true"]
    settings += ["model.input_mode=sum", "train.group_by=modality"] if engine == "zero3" else []
    settings += ["optimizer.muon_lr=0.002"] if engine == "muon" else []
    one = train(settings, f"run.dir={tmp_path / 'one'}", f"lora.train_markers={'off' if engine == 'zero3' else 'on'}")
    engines = [] if engine in ("ddp", "muon") else [f"run.deepspeed={ROOT}/configs/deepspeed/{engine}.json"]
    more = [*settings, *engines, "train.micro_batch_size=2", "train.save_every=6"]
    run_ranks("train_llm", empty_config, *more, logs=tmp_path, DS_ACCELERATOR="cpu", ACCELERATE_USE_CPU="true")
    two = tmp_path / "llm"
    assert largest_difference(losses(one), losses(two)) < 1e-3
    assert largest_difference(load_file(one / ADAPTER), load_file(two / ADAPTER)) < 1e-3
    states = [path.name for path in (two / "checkpoint-12").rglob("*optim_states.pt")]
    assert len(states) == (2 if engines else 0), "the engine was not the one that was asked for"
    assert not list(two.rglob("model.safetensors"))
    if engine == "muon":  # each rank makes the steps of half of the matrices; a checkpoint has the momentum of all
        whole = load_file(two / ADAPTER)
        shutil.rmtree(two / "checkpoint-12")
        (two / "summary.json").unlink()
        run_ranks("train_llm", empty_config, *more, logs=tmp_path, ACCELERATE_USE_CPU="true")
        assert largest_difference(whole, load_file(two / ADAPTER)) == 0.0


@pytest.mark.slow
def test_two_servers_equal_one(llm_overrides: list[str], empty_config: Path, tmp_path: Path) -> None:
    """Two launchers on one machine, started by the scripts of server 1 and 2, train what one process trains."""
    settings = [*llm_overrides, "lora.dropout=0", "train.steps=12", "train.save_every=0", "train.log_every=1"]
    one = train(settings, f"run.dir={tmp_path / 'one'}")
    found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29637", "NNODES": "2", "NCCL_SOCKET_IFNAME": "lo"}
    servers = []
    for number in (1, 2):
        words = ["sh", f"scripts/multi-server/finetune_lora_server{number}.sh", str(empty_config), *settings, "train.micro_batch_size=2"]
        start = {"env": environment(PYTHON=sys.executable, **found), "cwd": ROOT, "text": True}
        servers.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **start))  # type: ignore[call-overload]
    for server in servers:
        printed, _ = server.communicate(timeout=300)
        assert server.returncode == 0, printed[-3000:]
    assert largest_difference(losses(one), losses(tmp_path / "llm")) < 1e-3
    assert largest_difference(load_file(one / ADAPTER), load_file(tmp_path / "llm" / ADAPTER)) < 1e-3
