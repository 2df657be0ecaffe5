"""A tiny training run on the generated world."""

from pathlib import Path

import pytest
import torch

from unicode.codebook.table import save_table
from unicode.common.config import load_config
from unicode.train.config import TrainTokenizerConfig


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """Settings of a run of 16 small steps on one CPU thread, in `tmp_path`/run."""
    rows = 0.1 * torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    save_table(tmp_path / "table.safetensors", rows, torch.arange(4), model="tiny")
    values = {
        "model.image_size": 32,
        "model.autoencoder.channels": 8,
        "model.autoencoder.multipliers": "[1,2]",
        "model.autoencoder.num_res_blocks": 1,
        "model.autoencoder.latent_channels": 8,
        "model.autoencoder.decoder_attention": "[]",
        "model.codebook.table": tmp_path / "table.safetensors",
        "model.codebook.width": 4,
        "model.codebook.entropy_weight": 0.02,
        "data.name": "shapes",
        "objective.perceptual.weight": 0.0,
        "objective.discriminator.enabled": "false",
        "optimizer.lr": 2e-3,
        "optimizer.warmup_steps": 4,
        "train.steps": 16,
        "train.batch_size": 8,
        "train.num_workers": 0,
        "train.log_every": 4,
        "train.eval_every": 8,
        "train.save_every": 4,
        "train.val_images": 8,
        "run.dir": tmp_path / "run",
        "run.device": "cpu",
        "run.threads": 1,
    }
    return [f"{key}={value}" for key, value in values.items()]


@pytest.fixture
def config(overrides: list[str]) -> TrainTokenizerConfig:
    """The same as a config."""
    return load_config(TrainTokenizerConfig, None, overrides)
