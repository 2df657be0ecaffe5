"""scripts/vae_eval/generate_img_token_ids.sh: the sets that are there, by name, and what it says about the others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unicode.codebook.codebook import CodebookConfig
from unicode.ids.store import Store
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.model import ImageTokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/vae_eval/generate_img_token_ids.sh"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    autoencoder = AutoencoderConfig(channels=32, multipliers=[1, 1], num_res_blocks=1, latent_channels=32, decoder_attention=[])
    codebook = CodebookConfig(mode="free", num_rows=300)
    ImageTokenizer(TokenizerConfig(image_size=32, code_channels=8, autoencoder=autoencoder, codebook=codebook)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA's 558K as an annotation file, the 665K mix as a list of its val part only."""
    path = tmp_path_factory.mktemp("data")
    for name in ("00000/000000010.jpg", "00001/000000011.jpg", "coco/train2017/1.jpg"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 50, 3), 99, np.uint8)).save(path / name)
    records = [{"id": key[6:15], "image": key, "conversations": []} for key in ("00000/000000010.jpg", "00001/000000011.jpg")]
    (path / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(records))
    (path / "llava_mix665k_val.txt").write_text("coco/train2017/1.jpg\n")
    return path


def run(shell: str, checkpoint: Path, data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "DATA_ROOT": str(data), "OMP_NUM_THREADS": "1"}
    return subprocess.run([shell, str(SCRIPT), str(checkpoint), *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_all_sets_that_are_there(checkpoint: Path, data: Path) -> None:
    done = run("bash", checkpoint, data, "", "", "--device", "cpu", "--workers", "0")
    assert done.returncode == 0, done.stderr
    assert list(Store(checkpoint / "ids/llava_laion558k")) == ["00000/000000010.jpg", "00001/000000011.jpg"]
    assert list(Store(checkpoint / "ids/llava_mix665k_val")) == ["coco/train2017/1.jpg"]
    assert f"skipped llava_mix665k_train: no {data}/llava_mix665k_train.txt" in done.stderr


@pytest.mark.slow
def test_one_set_by_name(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    done = run("sh", checkpoint, data, "0,1", "llava_laion558k", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "2 images in 1 shards" in done.stderr
    assert "mix665k" not in done.stderr
    assert run("sh", checkpoint, data, "0", "llava_158k").returncode == 2
    missing = run("sh", checkpoint / "nothing", data)
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: no tokenizer") and missing.stderr.count("\n") == 1
    nothing = run("sh", checkpoint, tmp_path)
    assert nothing.returncode == 2
    assert "set DATA_ROOT" in nothing.stderr
    assert nothing.stderr.count("skipped") == 2
