"""A step of every tokenizer config on a fake GPU: no tensor on another device, and no operation for which the host waits."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from fake_cuda.device import CUDA, HostSyncs, fake_accelerator, fake_gpu, real_backward, to_gpu

from unicode.codebook.embedding_table import save_table
from unicode.common.config import load_config
from unicode.images.loader import Batch
from unicode.tokenizer.losses import load_lpips
from unicode.train.config import TrainTokenizerConfig
from unicode.train.monitor import TokenizerMonitor
from unicode.train.tokenizer import TokenizerTrainer, WeightAverage

ROOT = Path(__file__).parents[2]
SMALL = ["model.image_size=64", "model.autoencoder.channels=8", "model.autoencoder.latent_channels=16"]
SMALL += [
    "model.autoencoder.num_res_blocks=1",
    "data.name=shapes",
    "data.root=",
    "data.path=",
    "objective.discriminator.channels=8",
    "train.val_split=",
    "train.steps=100000",
]
SMALL += ["train.batch_size=2", "train.micro_batch_size=2", "run.device=cpu", "run.precision=bf16", "run.compile=false"]
SMALL += ["objective.perceptual.random=true", "model.codebook.num_rows=0"]
SMALL += ["objective.semantic.teacher.weight=0", "objective.semantic.words.weight=0"]  # they need folders of models
GAN = ["train.micro_batch_size=1", "objective.perceptual.weight=0", "objective.discriminator.enabled=true", "train.average_decay=0.9"]
GAN += ["model.autoencoder.multipliers=[1,2]", "model.autoencoder.decoder_attention=[32]", "model.autoencoder.downsample_input=false"]
VARIANTS = {
    "hq projected": ["model.codebook.mode=projected"],
    "hq projected, entropy": ["model.codebook.mode=projected", "model.codebook.entropy_weight=0.02"],
    "hq language": ["model.codebook.mode=language", "model.codebook.width=0"],
    "hq frozen": ["model.codebook.mode=frozen", "model.codebook.width=0"],
    "hq free": ["model.codebook.mode=free", "model.codebook.num_rows=90"],
    "rq depth 4": ["model.type=rqvae", "model.depth=4"],
    "rq depth 4, language": ["model.type=rqvae", "model.depth=4", "model.codebook.mode=language", "model.codebook.width=0"],
}


def build(path: Path | None, table: Path, run: Path, *changes: str) -> TokenizerTrainer:
    settings = [*SMALL, f"model.codebook.table={table}", f"run.dir={run}", *changes]
    return TokenizerTrainer(load_config(TrainTokenizerConfig, path, settings))


def computing_alike() -> dict[str, Path]:
    """One config of each group that differs in data, paths and times alone, by the names of all in the group."""
    groups: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "configs/tokenizer").glob("*.yaml")):
        config = load_config(TrainTokenizerConfig, path)
        parts = (config.model, config.objective, config.optimizer, config.run, config.train.average_decay > 0, config.train.fade_in > 0)
        key = repr(replace(parts[3], dir="")) + repr(parts).replace(repr(config.run), "")
        groups.setdefault(key.replace(config.model.codebook.table, ""), []).append(path)
    return {" ".join(path.stem for path in paths): paths[0] for paths in groups.values()}


CONFIGS = computing_alike()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.safetensors"
    save_table(path, 0.1 * torch.randn(100, 24, generator=torch.Generator().manual_seed(0)), torch.arange(4), model="tiny")
    return path


@pytest.fixture(scope="module", autouse=True)
def one_perceptual_network() -> Iterator[None]:
    """Make the random LPIPS network once: its weights take a second."""
    network = load_lpips("vgg", random=True)
    with patch("unicode.tokenizer.losses.load_lpips", lambda *_, **__: deepcopy(network)):
        yield


def move_(trainer: TokenizerTrainer, mode: Any, run: Path) -> None:
    """Put everything of a trainer on the fake GPU."""
    trainer.accelerator, trainer.device = fake_accelerator(bf16=True), CUDA
    for module in filter(None, (trainer.tokenizer, trainer.discriminator, trainer.lecam, trainer.objective)):
        to_gpu(mode, module)
    if trainer.objective.perceptual is not None:
        to_gpu(mode, trainer.objective.perceptual.network)
    if trainer.average is not None:
        trainer.average = WeightAverage(trainer.tokenizer, decay=trainer.average.decay)
    channels_last, trainer.config.run.channels_last = trainer.config.run.channels_last, False  # the weights are in that order already
    trainer._prepare_for_device()
    trainer.config.run.channels_last = channels_last
    trainer.monitor = TokenizerMonitor(run, CUDA, batch_size=4, usage_alarm=0.0)


def step(trainer: TokenizerTrainer, run: Path) -> dict[str, int]:
    """Train one step with everything at work, encode and decode; return how often the host waited in the step."""
    options = trainer.config.objective.discriminator
    last = options.start + options.alone_steps + options.ramp_steps + 1
    with fake_gpu() as mode:
        move_(trainer, mode, run)
        size = trainer.config.model.image_size
        micro = [Batch(torch.rand(2, 3, size, size, device=CUDA), ["", ""], [0, 1], []) for _ in range(trainer.accumulation)]
        with HostSyncs() as syncs:
            trainer.train_step(last, micro)
        codes = trainer.tokenizer.encode(micro[0].images)
        images = trainer.tokenizer.stack.decode(trainer.tokenizer.layout.split(codes), list(trainer.tokenizer.layout.grids) * 4)
        assert (codes.device, images.device) == (CUDA, CUDA)
    return dict(syncs.counts)


@pytest.mark.parametrize("names", CONFIGS)
def test_a_step_of_a_config(names: str, table: Path, tmp_path: Path) -> None:
    assert step(build(CONFIGS[names], table, tmp_path), tmp_path) == {}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_of_a_codebook_mode_with_accumulation(variant: str, table: Path, tmp_path: Path) -> None:
    name = "rqvae_256" if variant.startswith("rq") else "hqvae_256"
    trainer = build(ROOT / f"configs/tokenizer/{name}.yaml", table, tmp_path, *GAN, *VARIANTS[variant])
    assert step(trainer, tmp_path) == {}


@pytest.mark.parametrize("variant", ["hq projected, entropy", "rq depth 4, language"])
def test_the_backward_pass_asks_for_no_values(variant: str, table: Path, tmp_path: Path) -> None:
    """The engine of autograd does not run without a card, so its operations are counted on the CPU."""
    name = "rqvae_256" if variant.startswith("rq") else "hqvae_256"
    trainer = build(ROOT / f"configs/tokenizer/{name}.yaml", table, tmp_path, *GAN, *VARIANTS[variant], "model.image_size=32")
    trainer.monitor = TokenizerMonitor(tmp_path, "cpu", batch_size=2, usage_alarm=0.0)
    with real_backward() as counts:
        trainer.train_step(90_000, [Batch(torch.rand(1, 3, 32, 32), [""], [0], []) for _ in range(2)])
    assert counts == {}
