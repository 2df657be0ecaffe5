"""DeepSpeed files: those that come with the project fit every run, those that contradict one are refused with both values named."""

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from unicode.common.config import load_config
from unicode.train.config import TrainLlmConfig
from unicode.train.runtime import Runtime, join_ranks, read_deepspeed, resolve_runtime

FILES = sorted((Path(__file__).parents[2] / "configs" / "deepspeed").glob("*.json"))


def setting(path: Path, *changes: str):
    words = [f"run.deepspeed={path}", "train.batch_size=16", "train.micro_batch_size=4", "run.device=cpu"]
    return resolve_runtime(load_config(TrainLlmConfig, None, [*words, *changes]))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_those_of_the_project_fit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: f"/usr/bin/{tool}")
    found = setting(path)
    assert found.zero_stage == (3 if "3" in path.stem else 2)
    assert ("offload" in path.stem) == ("offload_optimizer" in found.deepspeed["zero_optimization"])
    assert (found.micro, found.accumulation) == (4, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train_micro_batch_size_per_gpu": 8}, r"train_micro_batch_size_per_gpu is 8, but train\.micro_batch_size makes it 4"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps is 1"),
        ({"train_batch_size": 32}, r"train_batch_size is 32, but train\.batch_size makes it 16"),
        ({"gradient_clipping": 0.5}, r"optimizer\.clip makes it 1\.0"),
        ({"bf16": {"enabled": True}}, r"bf16\.enabled is True, but run\.precision makes it False"),
        ({"fp16": {"enabled": True}}, r"fp16\.enabled is True"),
        ({"optimizer": {"type": "Adam"}}, "remove the section 'optimizer'"),
        ({"zero_optimization": {"stage": 5}}, r"zero_optimization\.stage is 5"),
        ({"zero_optimization": {}}, r"zero_optimization\.stage is None"),
    ],
)
def test_a_file_that_contradicts_the_run_is_refused(tmp_path: Path, content: dict[str, object], message: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}} | content))
    with pytest.raises(ValueError, match=message):
        setting(path)


def test_no_json(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_deepspeed(tmp_path / "ds.json", expected={})
    with pytest.raises(FileNotFoundError, match="no DeepSpeed config"):
        read_deepspeed(tmp_path / "none.json", expected={})
    assert Runtime(cpu=True, bf16=False, accumulation=1, micro=1).zero_stage == 0


def test_an_optimizer_on_the_cpu_needs_tools_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    path = next(path for path in FILES if path.stem == "zero2_offload")
    monkeypatch.setattr("shutil.which", lambda tool: None)
    monkeypatch.setattr("deepspeed.git_version_info.installed_ops", {"cpu_adam": False})
    with pytest.raises(ValueError, match=r"zero2_offload.json keeps the optimizer on the CPU, and DeepSpeed needs g\+\+ and ninja to"):
        setting(path)
    monkeypatch.setattr("deepspeed.git_version_info.installed_ops", {"cpu_adam": True})
    assert setting(path).zero_stage == 2


def test_a_job_of_one_rank_takes_its_port_when_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen before, another process could take it in between."""
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT DS_ACCELERATOR ACCELERATE_USE_CPU"
    for name in names.split():
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    join_ranks(Runtime(cpu=False, bf16=False, accumulation=1, micro=1), timeout=timedelta(minutes=1))
    assert os.environ["MASTER_PORT"] == "0"
    torch.distributed.init_process_group("gloo")
    torch.distributed.destroy_process_group()
