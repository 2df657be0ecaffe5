"""Training runs of a language model in this process, and what they leave: losses by step, differences of weights."""

import json
from pathlib import Path
from typing import Any

import torch

from unicode.common.config import load_config
from unicode.train.config import TrainLlmConfig
from unicode.train.llm import LlmTraining

ADAPTER = "adapter_model.safetensors"


def build(overrides: list[str], *changes: str) -> LlmTraining:
    return LlmTraining(load_config(TrainLlmConfig, None, [*overrides, *changes]))


def train(overrides: list[str], *changes: str) -> Path:
    return build(overrides, *changes).run()


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[tuple[int, str], float]:
    return {(line["step"], name): value for line in lines(run) for name, value in line.items() if "loss" in name}


def largest_difference(first: dict[Any, Any], second: dict[Any, Any]) -> float:
    assert first.keys() == second.keys(), first.keys() ^ second.keys()

    def gap(key: Any) -> float:
        return float((first[key] - second[key]).abs().max()) if torch.is_tensor(first[key]) else abs(first[key] - second[key])

    return max(map(gap, first))
