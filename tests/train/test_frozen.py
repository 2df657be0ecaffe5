"""Frozen weights stay out of the checkpoints of DeepSpeed, and need not be there to resume."""

import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Trainer

from unicode.train.llm import LlmTrainer, forgive_frozen


class Engine:
    """Writes as DeepSpeed's engine does: everything, unless told otherwise."""

    def save_checkpoint(self, folder: str, exclude_frozen_parameters: bool = False) -> None:
        (Path(folder) / "weights.txt").write_text("trained" if exclude_frozen_parameters else "all")


def test_deepspeed_writes_what_is_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def save(trainer: LlmTrainer, model: nn.Module, trial: None) -> None:
        trainer.model_wrapped.save_checkpoint(f"{trainer._get_output_dir(None)}/checkpoint-3")

    monkeypatch.setattr(Trainer, "_save_checkpoint", save)
    trainer = LlmTrainer.__new__(LlmTrainer)
    vars(trainer).update(folder=tmp_path, state=SimpleNamespace(global_step=3), settings=SimpleNamespace(train=SimpleNamespace(keep=1)))
    vars(trainer).update(is_deepspeed_enabled=True, model_wrapped=Engine(), optimizer=None)

    trainer._save_checkpoint(nn.Linear(1, 1), None)
    assert (tmp_path / "checkpoint-3" / "weights.txt").read_text() == "trained"


def test_frozen_weights_may_be_missing_and_trained_ones_not() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    model.register_load_state_dict_post_hook(forgive_frozen)
    weights = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict({name: value for name, value in weights.items() if name.startswith("1.")})
    assert (model[1].weight == 1).all() and not (model[0].weight == 1).any()
    with pytest.raises(RuntimeError, match=r"Missing key.*1\.bias"):
        model.load_state_dict({"1.weight": weights["1.weight"]})


def test_deepspeed_is_one_that_checkpoints_adapters_under_zero_3() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert "deepspeed>=0.19.3" in project["dependencies"]
