"""Tiny training runs: of a tokenizer on the generated world, of a language model on made-up conversations."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import pytest
import torch
from accelerate.state import AcceleratorState

from unicode.annotations.records import IMAGE_TO_TEXT, TEXT_ONLY, make_record
from unicode.annotations.templates import TEXT_TO_IMAGE
from unicode.codebook.codebook import CodebookConfig
from unicode.codebook.embedding_table import LanguageTable, row_digest, save_table
from unicode.common.config import load_config
from unicode.common.files import write_json
from unicode.ids.layout import Layout
from unicode.ids.text import write_run
from unicode.llm.vocabulary import read_rows
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.model import ImageTokenizer
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


LAYOUT = Layout("hierarchical", ((1, 1), (2, 2)))
FINGERPRINT = "0123456789abcdef"
ANSWERS = ["red", "blue", "green", "a circle", "two big squares", "at the top left"]


def conversations(
    task: str, count: int, *, seed: int = 0, layout: Layout = LAYOUT, ids: Sequence[int] = range(20, 49), tokenizer: str = FINGERPRINT
) -> list[dict[str, object]]:
    """Made-up conversations of one task, image ids of a layout in their turns."""
    random = Random(f"{task} {seed}")
    made = []
    for number in range(count):
        run = write_run([random.choice(ids) for _ in range(layout.num_codes)])
        words = random.choice(ANSWERS)
        turns = {
            IMAGE_TO_TEXT: [f"{run}\nwhat is it?", words, "how many?", random.choice(["two", "three"])],
            TEXT_TO_IMAGE: [f"draw {words}", run],
            TEXT_ONLY: ["say a thing " * random.randrange(1, 4), words],
        }[task]
        made.append(make_record(f"{task}{number}", task, turns, layout=layout.describe(), tokenizer=tokenizer))
    return made


@pytest.fixture
def llm_overrides(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings of a LoRA run of 12 small steps on made-up conversations of three tasks, in `tmp_path`/llm."""
    monkeypatch.setenv("UNICODE_CACHE", str(tmp_path / "cache"))
    for task in (IMAGE_TO_TEXT, TEXT_TO_IMAGE, TEXT_ONLY):
        write_json(tmp_path / f"{task}.json", conversations(task, 40))
        write_json(tmp_path / f"{task}_val.json", conversations(task, 5, seed=1))
    files = ",".join(f"{tmp_path}/{task}.json" for task in (IMAGE_TO_TEXT, TEXT_TO_IMAGE)) + f",{tmp_path}/{TEXT_ONLY}.json*0.5"
    values = {
        "model.path": tiny_llama,
        "model.template": "llava_llama_2",
        "lora.r": 4,
        "lora.alpha": 8,
        "lora.dropout": 0.1,
        "data.files": f"[{files}]",
        "data.val_files": "[" + ",".join(f"{tmp_path}/{task}_val.json" for task in (IMAGE_TO_TEXT, TEXT_TO_IMAGE, TEXT_ONLY)) + "]",
        "optimizer.lr": 5e-3,
        "train.steps": 12,
        "train.batch_size": 8,
        "train.log_every": 4,
        "train.eval_every": 6,
        "train.save_every": 4,
        "run.dir": tmp_path / "llm",
        "run.device": "cpu",
        "run.threads": 1,
    }
    return [f"{key}={value}" for key, value in values.items()]


@pytest.fixture
def cells_overrides(llm_overrides: list[str], tmp_path: Path, tiny_llama: Path) -> list[str]:
    """The same for images of 4 cells of 5 ids, written as cells, with their image tokenizer in `tmp_path`/image_tokenizer.

    Its images hold 12 of the 24 ids, which can be learned.
    """
    rows = read_rows(tiny_llama).float()
    torch.manual_seed(0)
    autoencoder = AutoencoderConfig(
        channels=8, multipliers=[1, 2], num_res_blocks=1, latent_channels=12, encoder_attention=[], decoder_attention=[]
    )
    codebook = CodebookConfig(mode="projected", width=6, num_rows=24)
    config = TokenizerConfig(type="hqvae", image_size=16, autoencoder=autoencoder, codebook=codebook)
    images = ImageTokenizer(config, LanguageTable(rows, torch.tensor([*range(20), *range(49, 60)]), "tiny", row_digest(rows)))
    images.save_pretrained(tmp_path / "image_tokenizer")
    known = {"layout": images.layout, "ids": images.row_ids[:12].tolist(), "tokenizer": images.fingerprint}
    for task in (IMAGE_TO_TEXT, TEXT_TO_IMAGE, TEXT_ONLY):
        write_json(tmp_path / f"{task}.json", conversations(task, 40, **known))
        write_json(tmp_path / f"{task}_val.json", conversations(task, 5, seed=1, **known))
    own = ["model.output_mode=cells", f"model.image_tokenizer={tmp_path}/image_tokenizer", "cells.width=32", "cells.heads=2"]
    return [*llm_overrides, *own]


@pytest.fixture
def own_accelerator() -> Iterator[None]:
    """Forget the precision that a training in this process set, which a later one may not change."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
