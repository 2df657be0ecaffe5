"""The scripts start the right processes: with an interpreter that only shows what it was asked to run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAIN = "scripts/vae_train/train_hqvae.sh"
SERVER = "scripts/vae_train/multi-server/train_hqvae_server{}.sh"
ADDRESS = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "NNODES": "2", "NCCL_SOCKET_IFNAME": "eth0"}


@pytest.fixture
def start(tmp_path):
    """Return a function that runs a script with so many pretended GPUs and gives its exit code, output and error output."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nif [ "$1" = -c ]; then echo "$GPUS"; exit; fi\nprintf "%s|" "$@"\n'
                      'echo "CPU=$ACCELERATE_USE_CPU IF=$GLOO_SOCKET_IFNAME"\n')
    python.chmod(0o755)

    def run(script: str, *arguments: str, gpus: int = 0, **variables: str) -> tuple[int, str, str]:
        environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "GPUS": str(gpus)} | variables
        done = subprocess.run(["sh", str(ROOT / script), *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    return run


@pytest.mark.parametrize("gpus", [0, 1])
def test_one_process(start, gpus):
    code, text, _ = start(TRAIN, "my.yaml", "run.dir=with space", "--dry-run", gpus=gpus)
    assert code == 0
    assert text == f"-m|unicode.run.train_tokenizer|my.yaml|run.dir=with space|--dry-run|CPU={'' if gpus else 'true'} IF="


@pytest.mark.parametrize("name", ["hqvae", "rqvae"])
def test_default_config(start, name):
    code, text, _ = start(f"scripts/vae_train/train_{name}.sh", "train.steps=3")
    assert code == 0
    assert text.startswith(f"-m|unicode.run.train_tokenizer|configs/tokenizer/{name}_llava_concat.yaml|train.steps=3|")


def test_every_gpu_of_the_machine(start):
    code, text, _ = start(TRAIN, "my.yaml", gpus=8, MASTER_PORT="29511")
    assert code == 0
    assert text.startswith(
        "-m|deepspeed.launcher.runner|--quiet|--no_local_rank|--master_port|29511|--module|unicode.run.train_tokenizer|my.yaml|CPU= "
    )


def test_several_processes_on_the_cpu(start):
    code, text, _ = start(TRAIN, "my.yaml", NUM_RANKS="2")
    assert code == 0
    assert text.startswith("-m|deepspeed.launcher.runner|--quiet|--num_accelerators|2|--no_local_rank|--master_port|29500|")
    assert text.endswith("CPU=true IF=")


@pytest.mark.parametrize("number", [1, 2])
def test_several_machines(start, number):
    code, text, _ = start(SERVER.format(number), "my.yaml", "a.b=c", gpus=4, **ADDRESS)
    assert code == 0
    assert text == (
        f"-m|torch.distributed.run|--nnodes|2|--node-rank|{number - 1}|--master-addr|10.0.0.1|--master-port|29500|--nproc-per-node|4|"
        "--module|unicode.run.train_tokenizer|my.yaml|a.b=c|CPU= IF=eth0"
    )


@pytest.mark.parametrize("name", ADDRESS)
def test_a_missing_variable_is_named(start, name):
    given = {key: value for key, value in ADDRESS.items() if key != name}
    code, text, message = start(SERVER.format(1), **given)
    assert (code, text) == (2, "")
    assert message.startswith(f"error: {name} is not set; ")


def test_numbers_of_servers(start):
    assert "expected 2, 3 or 4" in start(SERVER.format(1), **ADDRESS | {"NNODES": "9"})[2]
    assert "start the scripts of servers 1 to 2" in start(SERVER.format(3), **ADDRESS)[2]


@pytest.mark.parametrize(("dependency", "lacking"), [("pytest>=1", False), ("pytest>=9999", True), ("no-such-thing-at-all", True)])
def test_dependencies_of_the_active_environment(tmp_path, dependency, lacking):
    (tmp_path / "pyproject.toml").write_text(f'[project]\ndependencies = []\n[project.optional-dependencies]\ndev = ["{dependency}"]\n')
    check = f'. "{ROOT}/scripts/environment.sh"; has_dependencies "{sys.executable}" dev'
    environment = {"PATH": os.environ["PATH"], "PYTHON": "given"}
    done = subprocess.run(["sh", "-c", check], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) == lacking
    assert (f"lacks {dependency}" in done.stderr) == lacking


@pytest.mark.parametrize(("extra", "what"), [("", "."), ("dev", ".[dev]")])
def test_the_environment_is_made_once(tmp_path, extra, what):
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")
    fake = tmp_path / "bin" / "python3"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "$@" >>log\nif [ "$2" = venv ]; then mkdir -p .venv/bin; cp "$0" .venv/bin/python; fi\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "EXTRA": extra}
    for content in ("", "", "changed"):
        (tmp_path / "constraints.txt").write_text(content)
        done = subprocess.run(["sh", "-c", f'. "{ROOT}/scripts/environment.sh"; echo "$PYTHON"'], cwd=tmp_path, env=environment, text=True,
                              capture_output=True, check=True)  # fmt: skip
        assert done.stdout.strip() == str(tmp_path / ".venv" / "bin" / "python")
    installs = [line for line in (tmp_path / "log").read_text().splitlines() if "pip install" in line]
    assert installs == [f"-m pip install --quiet --no-compile -e {what} -c constraints.txt"] * 2


BENCHMARKS = (
    "vqav2", "gqa", "vizwiz", "sqa", "textvqa", "pope", "mme", "mmbench", "mmbench_cn", "seed", "llavabench", "mmvet", "all",
)  # fmt: skip


def test_every_benchmark_has_a_script():
    for name in BENCHMARKS:
        script = (ROOT / "scripts" / "llava_eval" / f"{name}.sh").read_text(encoding="utf-8")
        assert f'\nBENCHMARK={name}\n. "$(dirname "$0")/benchmark.sh"\n' in script


@pytest.mark.parametrize("name", ["gqa", "all"])
def test_benchmarks(start, name):
    script = f"scripts/llava_eval/{name}.sh"
    code, text, _ = start(script, "my model", "--limit", "4")
    assert code == 0
    words = f"-m|unicode.run.benchmark|{name}|--data|datasets/llava/eval|--out|my model/eval|--model|my model"
    assert text.startswith(f"{words}|--limit|4|CPU=true")
    assert start(script, "my model", "base", DATA_ROOT="d", OUT="o")[1].startswith(
        f"-m|unicode.run.benchmark|{name}|--data|d/eval|--out|o|--model|my model|--base|base|CPU"
    )


def test_benchmarks_on_every_gpu(start):
    text = start("scripts/llava_eval/gqa.sh", "model", gpus=4)[1]
    assert text.startswith("-m|deepspeed.launcher.runner|--quiet|--no_local_rank|--master_port|29500|--module|unicode.run.benchmark|gqa|")


def test_benchmarks_without_a_model(start):
    text = start("scripts/llava_eval/pope.sh", "--answers", "a.jsonl")[1]
    assert text.startswith("-m|unicode.run.benchmark|pope|--data|datasets/llava/eval|--out|outputs/eval|--answers|a.jsonl|CPU")
    code, text, message = start("scripts/llava_eval/pope.sh")
    assert (code, text) == (2, "")
    assert message == "error: no model; give its folder: bash scripts/llava_eval/pope.sh outputs/unicode"


LLM_SCRIPTS = {
    "scripts/finetune_lora.sh": "unicode_lora",
    "scripts/finetune.sh": "unicode_full",
    "scripts/finetune_visual_text_lora.sh": "unicode_visual_text",
    "scripts/vae_train/train_hqvae_stage2.sh": "code_decoder",
}


@pytest.mark.parametrize(("script", "config"), LLM_SCRIPTS.items())
def test_language_models_have_default_configs_too(start, script, config):
    code, text, _ = start(script, "train.steps=3", "--dry-run")
    assert code == 0
    assert text == f"-m|unicode.run.train_llm|configs/llm/{config}.yaml|train.steps=3|--dry-run|CPU=true IF="
    assert (ROOT / "configs" / "llm" / f"{config}.yaml").is_file()


def test_several_machines_tune_a_language_model(start):
    code, text, _ = start("scripts/multi-server/finetune_lora_server2.sh", "my.yaml", gpus=2, **ADDRESS)
    assert code == 0
    assert "|--nnodes|2|--node-rank|1|" in text
    assert "|--module|unicode.run.train_llm|my.yaml|" in text
