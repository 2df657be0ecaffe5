"""What version 0.1 wrote opens and resumes: run folders of both trainings, table, store, annotations, adapter, card, answers, drawings.

tests/golden/v0.1 was written by the commands of commit 7546dd1, on a LLaMA of 140 rows and an HQ-VAE of 16 px; resumed.safetensors by the
train_tokenizer of that commit under SAME_KERNELS, from its own checkpoint of step 4.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unicode import load_tokenizer

GOLDEN = Path(__file__).parent / "golden" / "v0.1"
CPU = ("--device", "cpu")
# Kernels that all x86 CPUs have: with its own fastest ones each type of CPU rounds differently. The bias of attention's keys changes no
# attention, so its gradient is rounding alone, and Adam makes steps of it: 7546dd1 itself does not come back to its own weights elsewhere.
SAME_KERNELS = {"MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the files as the working directory, since the card and the configs name paths relative to it."""
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, *words: object) -> None:
    assert import_module(f"unicode.run.{name}").main([str(word) for word in words]) == 0


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_weights(path: Path, wanted: Path, *, but: str = "") -> None:
    ours, theirs = load_file(path), load_file(wanted)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if but and name.endswith(but):
            continue
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_tokenizer_store_and_table_open(folder):
    from unicode.codebook.embedding_table import load_table
    from unicode.ids.store import Store

    tokenizer, store = load_tokenizer("hqvae"), Store("ids")
    assert tokenizer.fingerprint == "b9d6c05efdb681d9" and load_table("table.safetensors").rows.shape == (140, 32)
    store.verify()
    store.check_tokenizer(tokenizer.fingerprint, tokenizer.layout)
    run("encode_images", "--ckpt", "hqvae", "--images", "shapes:val", "data.shapes.num_val=12", "--out", "again", "--workers", 0, *CPU)
    again = Store("again")
    for key in store:
        assert (again[key] == store[key]).all(), key


def test_a_tokenizer_run_resumes(folder):
    """With the kernels of this CPU all weights but those biases are those of 7546dd1, with SAME_KERNELS all of them."""
    newest = folder / "hqvae" / "checkpoints" / "step_00000008"
    shutil.rmtree(newest)
    run("train_tokenizer", "hqvae/config.yaml")
    weights = Path("tokenizer") / "model.safetensors"
    assert_same_weights(newest / weights, GOLDEN / newest.relative_to(folder) / weights, but=".k.bias")
    shutil.rmtree(newest)
    command = [sys.executable, "-m", "unicode.run.train_tokenizer", "hqvae/config.yaml"]
    subprocess.run(command, env=os.environ | SAME_KERNELS | {"PYTHONPATH": str(Path(__file__).parents[1])}, check=True)
    assert_same_weights(newest / weights, GOLDEN / "resumed.safetensors")


def test_a_lora_run_resumes(folder):
    shutil.rmtree(folder / "lora" / "checkpoint-6")
    for name in ("adapter_model.safetensors", "summary.json", "unicode.json"):
        (folder / "lora" / name).unlink()
    run("train_llm", "lora/config.yaml")
    assert_same_weights(folder / "lora" / "adapter_model.safetensors", GOLDEN / "lora" / "adapter_model.safetensors")


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "fresh"])
def test_answers(folder, finished):
    wanted = lines(folder / "answers.jsonl")
    if not finished:
        (folder / "answers.jsonl").unlink()
    words = ["--model", "lora", "--questions", "questions.jsonl", "--answers", "answers.jsonl", "--store", "ids"]
    run("answer", *words, "--batch-size", 2, "--max-new-tokens", 6, *CPU)
    assert [line["text"] for line in lines(folder / "answers.jsonl")] == [line["text"] for line in wanted]


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "fresh"])
def test_drawings(folder, finished):
    wanted = lines(folder / "drawings" / "results.jsonl")
    if not finished:
        shutil.rmtree(folder / "drawings")
    run("generate_images", "--model", "lora", "--prompts", "prompts.jsonl", "--out", "drawings", "temperature=0", "batch_size=2")
    assert [line["ids"] for line in lines(folder / "drawings" / "results.jsonl")] == [line["ids"] for line in wanted]
