"""Every file of configs/ loads, opens with the command that runs it, and writes to a folder of its own name."""

from pathlib import Path

import pytest

from unicode.common.config import load_config
from unicode.generate.images import GenerationConfig
from unicode.train.config import TrainLlmConfig, TrainTokenizerConfig

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))
SHARED = {"base_256.yaml", "hqvae_256.yaml", "rqvae_256.yaml", "base_7b.yaml", "base_shapes.yaml"}  # extended by others, not run themselves


def schema_of(path: Path) -> type:
    if path.parent.name == "generation":
        return GenerationConfig
    is_tokenizer = path.parent.name == "tokenizer" or path.stem in ("hqvae", "rqvae")
    return TrainTokenizerConfig if is_tokenizer else TrainLlmConfig


def first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_config_loads_and_says_how_it_is_run(path):
    config = load_config(schema_of(path), path)
    comment = first_comment(path)
    assert comment, f"{path} opens without a comment"
    if path.name in SHARED:
        assert any(f"extends: {path.name}" in other.read_text(encoding="utf-8") for other in path.parent.glob("*.yaml"))
        return
    assert "\n#   " in comment, f"{path} opens without its command"
    if path.parent.name != "generation":
        prefix = "debug_" if path.parent.name == "debug" else ""
        assert config.run.dir == f"outputs/{prefix}{path.stem}"


def test_families_differ_where_they_say():
    hqvae, rqvae = (load_config(TrainTokenizerConfig, ROOT / f"configs/tokenizer/{name}_ffhq.yaml") for name in ("hqvae", "rqvae"))
    assert (hqvae.model.type, rqvae.model.type) == ("hqvae", "rqvae")
    assert hqvae.data == rqvae.data and hqvae.data.flip and hqvae.train == rqvae.train and hqvae.train.epochs == 150
    assert hqvae.model.codebook == rqvae.model.codebook and hqvae.objective == rqvae.objective and hqvae.run.compile and rqvae.run.compile
