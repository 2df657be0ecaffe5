"""A second start of a command that fills a folder leaves with one sentence and changes nothing; without the first one it works."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

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
"""Command -> the folder that it locks, and words. Answers, drawings, trainings and the quickstart are tested where they are killed."""


@pytest.fixture
def inputs(tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    images = load_tokenizer(tuned.image_tokenizer)
    pictures = open_images("shapes:val", image_size=16, config=DataConfig(limit=4))
    encode_images(images, pictures, tmp_path / "ids", config=EncodeConfig(num_workers=0))
    assert import_module("unicode.run.export_benchmarks").main(["pope", "--out", "data", "--scenes", "2"]) == 0
    turns = [{"from": "human", "value": "how many"}, {"from": "gpt", "value": "two"}]
    (tmp_path / "talk.json").write_text(json.dumps([{"id": "a", "conversations": turns}]))
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "train_image_list.json").write_text('["a.jpg", "b.jpg"]')
    for part, count in (("t", 4), ("b", 16)):
        torch.save(torch.arange(2 * count).view(2, count), tmp_path / "published" / f"train_codes_{part}.pth")
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_start_leaves_with_one_sentence(name: str, inputs: Path, tuned, capsys: pytest.CaptureFixture[str]) -> None:
    folder, words = COMMANDS[name]
    arguments = words.format(run=tuned.run, image_tokenizer=tuned.image_tokenizer).split()
    main = import_module(f"unicode.run.{name}").main
    with lock_folder(inputs / folder, "filling"):
        capsys.readouterr()
        assert main(arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and f"{folder} is in use: filling by process" in error and error.endswith("another folder")
        assert {path.name for path in (inputs / folder).rglob("*") if path.is_file()} <= {LOCK_FILE}
    assert main(arguments) == 0
    assert [path for path in (inputs / "out").rglob("*") if path.is_file()] and not list(inputs.rglob(LOCK_FILE))
    assert not list(inputs.glob(".*"))
