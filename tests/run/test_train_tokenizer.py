"""The training command on what a user gets wrong: exit code 2, one line that names the thing and the remedy, nothing saved is lost."""

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from unicode.codebook.embedding_table import save_table
from unicode.common.checkpoint import newest_checkpoint
from unicode.run import eval_tokenizer, train_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
Train = Callable[..., int]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Run the command on a tiny model in `tmp_path`/run; arguments are overrides of its settings."""
    save_table(tmp_path / "table.safetensors", 0.1 * torch.randn(100, 16), torch.arange(4), model="tiny")
    (tmp_path / "config.yaml").write_text(
        f"""
model:
  image_size: 32
  autoencoder: {{channels: 8, multipliers: [1, 2], num_res_blocks: 1, latent_channels: 8, decoder_attention: []}}
  codebook: {{table: {tmp_path}/table.safetensors, width: 4}}
data: {{name: shapes}}
objective:
  perceptual: {{weight: 0.0}}
  discriminator: {{enabled: false}}
optimizer: {{warmup_steps: 2}}
train: {{steps: 4, batch_size: 4, num_workers: 0, log_every: 2, eval_every: 2, save_every: 2, val_images: 4}}
run: {{dir: {tmp_path}/run, device: cpu, threads: 1}}
"""
    )
    return lambda *overrides: train_tokenizer.main([str(tmp_path / "config.yaml"), *overrides])


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of the error, wherever the progress bar was."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.count("error: ") == 1
    return text.split("error: ")[1].splitlines()[0]


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Let no file of this process grow beyond `limit` bytes: writing fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


DATA = [
    (["data.name=folder", "data.root=HERE/nothing"], "the image folder 'HERE/nothing' does not exist; set data.root"),
    (["data.name=folder", "data.root=HERE/empty"], "no images in HERE/empty"),
    (["data.name=folder", "data.root=HERE/texts"], "no images in HERE/texts"),
    (["data.name=list", "data.path=HERE/list.txt"], "of the 2 that HERE/list.txt names, are not in HERE: gone.png"),
    (["data.name=list", "data.path=HERE/none.txt"], "there is no file HERE/none.txt; set data.path"),
    (["data.name=list", "data.path=HERE/empty.txt"], "HERE/empty.txt names no image"),
    (["data.name=imagnet"], "did you mean 'imagenet'?"),
]
TABLE = [
    (["model.codebook.mode=language", "model.codebook.width=7"], "model.codebook.width 7 differs from the width 16 of the table of tiny"),
    (["model.codebook.mode=frozen", "model.codebook.width=7"], "set model.codebook.width=0, or use model.codebook.mode=projected"),
    (["model.codebook.num_rows=97"], "96 eligible rows of 100, but 97 were asked for; set model.codebook.num_rows to at most 96"),
    (["model.codebook.table="], "set model.codebook.table to a file made by python -m unicode.run.export_codebook"),
    (["model.codebook.table=HERE/none"], "no embedding table 'HERE/none'; make one with: python -m unicode.run.export_codebook"),
    (["model.codebook.table=HERE/image.png"], "HERE/image.png is not an embedding table"),
]
SETTINGS = [
    (["model.image_size=36"], "model.image_size: an image side of 36 pixels is not a multiple of this tokenizer's stride 8"),
    (["train.step=3"], "unknown config key 'train.step'; did you mean 'train.steps'?"),
    (["model.codebok.mode=free"], "unknown config key 'model.codebok'; did you mean 'model.codebook'?"),
    (["train.steps=many"], "train.steps=many: Value 'many'"),
    (["train.batch_size=9", "train.micro_batch_size=2"], "make it a multiple of 2"),
    (["model.codebook.mode=fre"], "model.codebook.mode 'fre' is unknown; choose one of free, frozen, language, projected"),
    (["run.dir=HERE/image.png/run"], "HERE/image.png is a file; choose a folder of your own"),
    (["objective.perceptual.weight=1", "objective.perceptual.vgg_path=HERE/vgg.pth"], "no file HERE/vgg.pth"),
    (["objective.perceptual.weight=1", "objective.perceptual.vgg_path=HERE/pickle.pth"], "not a file of plain tensors (Unsupported"),
]


@pytest.mark.parametrize(("overrides", "message"), [*DATA, *TABLE, *SETTINGS])
def test_what_cannot_work_ends_before_it_starts(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    for name in ("empty", "texts"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("no picture")
    Image.new("RGB", (40, 40)).save(tmp_path / "image.png")
    (tmp_path / "list.txt").write_text("image.png\ngone.png\n")
    (tmp_path / "empty.txt").write_text("\n")
    torch.save({"weights": Path("object")}, tmp_path / "pickle.pth")
    assert train(*(word.replace("HERE", str(tmp_path)) for word in overrides)) == 2
    assert message.replace("HERE", str(tmp_path)) in told(capsys)
    assert not (tmp_path / "run").exists()


def test_pictures_that_cannot_be_read_end_the_run(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    (tmp_path / "broken" / "b.jpg").write_bytes(b"")
    assert train("data.name=folder", f"data.root={tmp_path / 'broken'}", "train.val_split=") == 2
    assert "could not be read" in told(capsys)


def test_a_checkpoint_of_another_architecture_is_refused_and_kept(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train() == 0
    kept = contents(run)
    capsys.readouterr()
    assert train("model.autoencoder.channels=16", "train.steps=8") == 2
    assert "model.autoencoder.channels=8, this one has 16; choose another run.dir" in told(capsys)
    assert contents(run) == kept
    (run / "config.yaml").unlink()
    assert train("model.autoencoder.channels=16", "train.steps=8") == 2
    assert "step_00000004 does not fit this config" in told(capsys)
    save_table(tmp_path / "other.safetensors", torch.randn(100, 16), torch.arange(4), model="other")
    assert train(f"model.codebook.table={tmp_path / 'other.safetensors'}", "train.steps=8") == 2
    assert "was trained with another embedding table" in told(capsys)
    assert contents(run) == {name: content for name, content in kept.items() if name != "config.yaml"}


def test_a_full_disk_leaves_every_saved_file_whole(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    assert train() == 0
    kept, size = contents(checkpoints), (checkpoints / "step_00000004" / "training.pt").stat().st_size
    capsys.readouterr()
    for limit in (1000, 10_000, 50_000, size // 5, size // 2, size - 1000):
        with full_disk(limit):
            assert train("train.steps=6") == 2
        message = told(capsys)
        assert "File too large" in message
        assert "make room there and start again" in message
        assert str(tmp_path / "run") in message
        assert contents(checkpoints) == kept
        assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 2
    assert train("train.steps=6") == 0
    assert newest_checkpoint(checkpoints) == checkpoints / "step_00000006"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_folder_of_somebody_else_is_named(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert train(f"run.dir={tmp_path / 'locked' / 'run'}") == 2
    assert "locked cannot be written" in told(capsys)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("objects", "model.pt is damaged or not a file of plain tensors (Unsupported global: GLOBAL pathlib.P"),
        ("garbage", "model.pt is damaged or not a file of plain tensors"),
        ("other", "is missing from config.yaml or the weights"),
        ("yaml", "config.yaml is not valid YAML"),
        ("list", "neither 'stage1'"),
        ("text", "it is none of the published layouts"),
    ],
)
def test_published_weights_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: str, message: str) -> None:
    folder = tmp_path / "published"
    shutil.copytree(GOLDEN / "rq_shared", folder)
    if harm == "objects":
        torch.save({"state_dict": {"weight": Path("object")}}, folder / "model.pt")
    elif harm == "garbage":
        (folder / "model.pt").write_bytes(b"garbage")
    elif harm == "other":
        torch.save({"state_dict": {"weight": torch.ones(1)}}, folder / "model.pt")
    else:
        (folder / "config.yaml").write_text({"yaml": "arch: [1", "list": "- 1", "text": "arch: 3"}[harm])
    assert evaluate(folder, tmp_path) == 2
    assert message in told(capsys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": {"type": "hqvae"}}, "holds another architecture than its config"),
        ({"tokenizer": {"nonsense": 1}}, "config.json: Key 'nonsense' not in 'TokenizerConfig'"),
        ({"tokenizer": None}, "config.json"),
        ({"format": "another"}, "does not describe a tokenizer of this project"),
    ],
)
def test_a_saved_tokenizer_that_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], message: str
) -> None:
    from unicode import load_tokenizer

    load_tokenizer(GOLDEN / "hq_pixelshuffle").save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    content = json.loads(path.read_text())
    if change.get("tokenizer") == {"type": "hqvae"}:
        content["tokenizer"]["autoencoder"]["channels"] *= 2
    elif isinstance(change.get("tokenizer"), dict):
        content["tokenizer"]["nonsense"] = 1
    else:
        content |= change
    path.write_text(json.dumps(content))
    assert evaluate(tmp_path / "saved", tmp_path) == 2
    assert message in told(capsys)


def test_an_evaluation_at_an_impossible_size_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(GOLDEN / "rq_shared", tmp_path, "--image-size", "36") == 2
    assert "36 pixels is not a multiple of this tokenizer's stride 8; the nearest is 32" in told(capsys)


def evaluate(folder: Path, tmp_path: Path, *words: str) -> int:
    """Run the evaluation command on a tokenizer's folder."""
    out = ["--images", "shapes:val", "--out", str(tmp_path / "metrics.json"), "--device", "cpu"]
    return eval_tokenizer.main(["--ckpt", str(folder), *out, *words])
