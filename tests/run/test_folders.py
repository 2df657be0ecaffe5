"""Commands that fill a folder: a second start, a full disk and a folder that cannot be written are one sentence and change nothing."""

import json
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import Tuned

from unicode.common.checkpoint import newest_checkpoint, save_checkpoint
from unicode.common.files import LOCK_FILE, lock_folder
from unicode.images.dataset import DataConfig, open_images
from unicode.tokenizer.encode import EncodeConfig, encode_images
from unicode.tokenizer.load import load_tokenizer

COMMANDS = {
    "benchmark": ("out/pope", "pope --model {run} --data data --out out --max-new-tokens 2 --device cpu"),
    "convert_tokenizer": ("out", "{image_tokenizer} out"),
    "decode_ids": ("out", "--ckpt {image_tokenizer} --ids ids --out out --device cpu"),
    "encode_images": ("out", "--ckpt {image_tokenizer} --images shapes:val --out out --device cpu limit=4"),
    "export_benchmarks": ("out", "pope --out out --scenes 2"),
    "generate_images": ("out", "--model {run} --reference talk.json --max-new-tokens 2 --out out --device cpu"),
    "import_ids": ("out", "published out"),
    "make_base_model": (
        ".out.unfinished",
        "--out out --steps 1 --tokenizer-lines 99 --layers 1 --width 32 --hidden 48 --batch-size 2 --row-tokens 32",
    ),
    "merge_lora": ("out", "{run} out"),
}
MORE = {
    "answer": ("out", "--model {run} --questions data/questions.jsonl --answers out/a.jsonl --max-new-tokens 2 --device cpu"),
    "generate_images pictures": ("out", "--model {run} --prompts shapes:val --out out --device cpu limit=2"),
    "make_annotations": ("out", "--func get_shapes_anno --out out --limit 2"),
    "train_tokenizer": (
        "out",
        "{config} run.dir=out run.device=cpu model.image_size=16 model.autoencoder.channels=8 model.autoencoder.multipliers=[1,2] "
        "model.autoencoder.num_res_blocks=1 model.autoencoder.latent_channels=12 model.autoencoder.decoder_attention=[] data.name=shapes "
        "model.codebook.mode=free model.codebook.num_rows=32 model.code_channels=8 objective.perceptual.weight=0 "
        "objective.discriminator.enabled=false train.steps=2 train.batch_size=2 train.save_every=1 train.val_images=2 train.num_workers=0",
    ),
}
"""Command -> the folder that it locks, and words. Second starts of those of MORE and of the quickstart are tested where they are killed."""


@pytest.fixture
def inputs(tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    images = load_tokenizer(tuned.image_tokenizer)
    pictures = open_images("shapes:val", image_size=16, config=DataConfig(limit=4))
    encode_images(images, pictures, tmp_path / "ids", config=EncodeConfig(num_workers=0))
    assert import_module("unicode.run.export_benchmarks").main(["pope", "--out", "data", "--scenes", "2"]) == 0
    turns = [{"from": "human", "value": "how many"}, {"from": "gpt", "value": "two"}]
    (tmp_path / "talk.json").write_text(json.dumps([{"id": "a", "conversations": turns}]))
    (tmp_path / "data" / "questions.jsonl").write_text('{"question_id": 1, "text": "how many"}\n')
    (tmp_path / "empty.yaml").write_text("{}")
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "train_image_list.json").write_text('["a.jpg", "b.jpg"]')
    for part, count in (("t", 4), ("b", 16)):
        torch.save(torch.arange(2 * count).view(2, count), tmp_path / "published" / f"train_codes_{part}.pth")
    return tmp_path


def command_of(name: str, tuned: Tuned) -> tuple[str, Callable[[list[str]], int], list[str]]:
    folder, words = {**COMMANDS, **MORE}[name]
    arguments = words.format(run=tuned.run, image_tokenizer=tuned.image_tokenizer, config="empty.yaml").split()
    return folder, import_module(f"unicode.run.{name.split()[0]}").main, arguments


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_start_leaves_with_one_sentence(name: str, inputs: Path, tuned: Tuned, capsys: pytest.CaptureFixture[str]) -> None:
    folder, main, arguments = command_of(name, tuned)
    with lock_folder(inputs / folder, "filling"):
        capsys.readouterr()
        assert main(arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and f"{folder} is in use: filling by process" in error and error.endswith("another folder")
        assert {path.name for path in (inputs / folder).rglob("*") if path.is_file()} <= {LOCK_FILE}
    assert main(arguments) == 0
    assert [path for path in (inputs / "out").rglob("*") if path.is_file()] and not list(inputs.rglob(LOCK_FILE))
    assert not list(inputs.glob(".*"))


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: as on a full disk, a write fails, in libraries of any language."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", [*COMMANDS, *MORE])
def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(
    name: str, inputs: Path, tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> None:
    _, main, arguments = command_of(name, tuned)
    arguments += ["--overwrite"] if name == "merge_lora" else []  # else what it has begun is not touched
    failed = 0
    for size in (20, 200, 2000, 20_000):
        capsys.readouterr()
        with file_limit(size):
            code = main(arguments)
        if code == 0:
            break
        failed += 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert code == 2 and error.startswith("error: ") and "Traceback" not in error
        assert "too large" in error.lower() or "os error 27" in error, error
    assert failed, "nothing was written"
    assert main(arguments) == 0
    assert not list(inputs.rglob(LOCK_FILE))


@pytest.mark.parametrize("name", [*COMMANDS, *MORE])
def test_a_folder_that_cannot_be_written_is_one_sentence(
    name: str, inputs: Path, tuned: Tuned, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str | os.PathLike[str], *rest: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    _, main, arguments = command_of(name, tuned)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", refuse)  # root may write everywhere
        assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch("error: .*out.*: Permission denied", error), error
    assert not (inputs / "out").exists()


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json"])
def test_a_tokenizer_run_copied_while_it_was_written_gives_the_checkpoint_before(
    damaged: str, tuned: Tuned, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoints" / f"step_{step:08d}", load_tokenizer(tuned.image_tokenizer).save_pretrained, keep=2)
    file = tmp_path / "checkpoints" / "step_00000002" / damaged
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    half = tmp_path / "checkpoints" / ".unfinished" / "step_00000003"
    half.mkdir(parents=True)
    (half / damaged).write_bytes(b"half")
    assert newest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step_00000001"
    assert f"step_00000002 is damaged ({damaged} has " in caplog.text


@pytest.mark.parametrize("damaged", ["adapter_model.safetensors", "adapter_config.json", "unicode.json", "tokenizer.json"])
def test_a_language_model_copied_while_it_was_written_is_named(
    damaged: str, tuned: Tuned, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tuned.run, inputs / "run")
    file = inputs / "run" / damaged
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    words = MORE["answer"][1].format(run="run").split()
    capsys.readouterr()
    assert import_module("unicode.run.answer").main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "run" in error
