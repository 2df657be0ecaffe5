"""The command that measures a tokenizer: a report on real files, skipped images, two real ranks, and its errors."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from warm import run_ranks

from unicode.codebook.codebook import CodebookConfig
from unicode.codebook.embedding_table import LanguageTable, row_digest
from unicode.images.dataset import open_images
from unicode.llm.vocabulary import load_embedding
from unicode.run.eval_tokenizer import main
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.load import load_tokenizer
from unicode.tokenizer.model import ImageTokenizer

NO_NETWORK = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    no_attention = {"encoder_attention": [], "decoder_attention": []}
    autoencoder = AutoencoderConfig(channels=8, multipliers=[1, 2], num_res_blocks=1, latent_channels=8, **no_attention)
    config = TokenizerConfig(image_size=16, autoencoder=autoencoder, codebook=CodebookConfig(mode="free", num_rows=24))
    folder = tmp_path_factory.mktemp("outputs") / "tiny"
    ImageTokenizer(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(generator.integers(0, 256, (20 + index, 18, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)


def _run(ckpt: Path, images: Path | str, out: Path, *more: str) -> int:
    return main(["--ckpt", str(ckpt), "--images", str(images), "--out", str(out), "--workers", "0", "--device", "cpu", *more])


def test_report(ckpt: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "eval" / "metrics.json"
    assert _run(ckpt, images, out, "--batch-size", "2", "--grid", "3") == 0
    report = json.loads(out.read_text())
    tokenizer = load_tokenizer(ckpt)
    values = []
    for sample in open_images(images, image_size=16):
        if not hasattr(sample, "image"):
            continue
        original, again = sample.image[None], tokenizer.decode(tokenizer.encode(sample.image[None]))
        pictures = [((part[0].clamp(-1, 1) + 1) * 127.5).round().byte().numpy() for part in (original, again)]
        values.append(peak_signal_noise_ratio(*pictures, data_range=255))
    assert report["metrics"]["psnr"]["value"] == pytest.approx(np.mean(values), abs=1e-4)
    protocol = report["protocol"]
    assert (protocol["num_images"], protocol["num_skipped"], protocol["image_set"]) == (5, 1, str(images))
    assert "bicubic" in protocol["transform"]
    assert protocol["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert [level["codes"] for level in report["codes"]["levels"]] == [5 * 4, 5 * 16]
    skipped = [json.loads(line) for line in (out.parent / "skipped.jsonl").read_text().splitlines()]
    assert [entry["key"] for entry in skipped] == ["broken.png"]
    assert Image.open(out.parent / "grid.png").size == (3 * 18 + 2, 3 * 18 + 2)
    assert "psnr" in capsys.readouterr().out


def test_weights_that_are_not_there_are_named_with_the_remedy(ckpt: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    assert _run(ckpt, images, out, "--grid", "0") == 0
    metrics = json.loads(out.read_text())["metrics"]
    for name, flag in {"rfid": "--inception", "lpips_vgg": "--vgg", "lpips_alex": "--alex"}.items():
        assert metrics[name]["value"] is None, name
        assert flag in metrics[name]["remedy"]
        assert "could not be downloaded" in metrics[name]["reason"]
    assert not (tmp_path / "grid.png").exists()


def test_dry_run_writes_nothing(ckpt: Path, images: Path, tmp_path: Path) -> None:
    assert _run(ckpt, images, tmp_path / "eval" / "metrics.json", "--dry-run") == 0
    assert not (tmp_path / "eval").exists()


def test_limit_and_an_old_list_of_skipped_images(ckpt: Path, tmp_path: Path) -> None:
    (tmp_path / "skipped.jsonl").write_text("{}\n")
    assert _run(ckpt, "shapes:val", tmp_path / "metrics.json", "--limit", "3", "--image-size", "32", "--precision", "bf16") == 0
    protocol = json.loads((tmp_path / "metrics.json").read_text())["protocol"]
    assert (protocol["num_images"], protocol["image_size"], protocol["precision"]) == (3, 32, "bf16")
    assert not (tmp_path / "skipped.jsonl").exists()


def test_images_of_a_training_config(ckpt: Path, images: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{name: folder, root: {images}, holdout: 0.5}}\n")
    keys = set()
    for split in (["split=train"], []):
        out = tmp_path / "metrics.json"
        arguments = ["--ckpt", str(ckpt), "--data", str(config), "--out", str(out), "--workers", "0", "--device", "cpu", *split]
        assert main(arguments) == 0
        protocol = json.loads(out.read_text())["protocol"]
        keys.add((protocol["image_set"], protocol["num_images"] + protocol["num_skipped"]))
    assert {name for name, _ in keys} == {f"folder {images} train", f"folder {images} val"}
    assert sum(number for _, number in keys) == 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--type", "rqvae"], "is of type hqvae, not rqvae"),
        (["--vgg", "nowhere.pth"], "no file nowhere.pth; torchvision's vgg16-397923af.pth (--vgg) is expected there"),
        (["--inception", "nowhere.pth"], "(--inception) is expected there"),
        (["--batch-size", "0"], "--batch-size (0) at least 1"),
        (["--image-size", "18"], "18"),
    ],
)
def test_mistakes_end_in_one_line(
    ckpt: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture, more: list[str], message: str
) -> None:
    assert _run(ckpt, images, tmp_path / "metrics.json", *more) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not (tmp_path / "metrics.json").exists()


def test_nothing_but_unreadable_images(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes(b"")
    assert _run(ckpt, folder, tmp_path / "metrics.json") == 2
    assert "no image could be read" in capsys.readouterr().err
    assert (tmp_path / "skipped.jsonl").exists()


def test_script(ckpt: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "vae_eval" / "eval_hqvae.sh"
    environment = {name: value for name, value in os.environ.items() if name not in ("CKPT_NAME", "DATASET", "VAE_TYPE")}
    for given, missing in (({}, "CKPT_NAME"), ({"CKPT_NAME": "hqvae"}, "DATASET")):
        result = subprocess.run(["sh", script], env=environment | given, capture_output=True, text=True, check=False)
        assert result.returncode != 0
        assert f"{missing}: is missing; give " in result.stderr
    given = {"PYTHON": sys.executable, "CKPT_NAME": "overruled", "DATASET": "overruled", "VAE_TYPE": "hqvae", "CUDA_VISIBLE_DEVICES": ""}
    more = [str(ckpt), "shapes:val", "--limit", "2", "--image-size", "32", "--workers", "0"]
    subprocess.run(["sh", script, *more], env=environment | given, check=True)
    report = json.loads((ckpt / "eval" / "shapes_val" / "metrics.json").read_text())
    assert report["protocol"]["num_images"] == 2


def test_probes_of_labels_captions_and_words(ckpt: Path, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """On one rank and on two; without the language model only labels are probed, and another language model is refused."""
    found = load_embedding(tiny_llama)
    config = replace(load_tokenizer(ckpt).config, codebook=CodebookConfig(width=6))
    table = LanguageTable(found.rows, found.excluded_ids(), found.model, row_digest(found.rows))
    torch.manual_seed(0)
    ImageTokenizer(config, table).save_pretrained(tmp_path / "worded")
    side, names = config.image_size, ("red", "green", "blue")
    for number in range(24):
        file = tmp_path / "images" / names[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), tuple(120 + 5 * number if number % 3 == place else 0 for place in range(3))).save(file)
        file.with_suffix(".txt").write_text(f"a {names[number % 3]} square")
    arguments = ["--ckpt", tmp_path / "worded", "--images", tmp_path / "images", "--workers", "0", "--grid", "3", "--probe"]
    more = ["--base", tiny_llama]
    run_ranks("eval_tokenizer", *arguments, *more, "--out", tmp_path / "two" / "metrics.json", logs=tmp_path)
    assert main([str(word) for word in [*arguments, *more, "--out", tmp_path / "one" / "metrics.json"]]) == 0
    assert main([str(word) for word in [*arguments, "--out", tmp_path / "plain.json"]]) == 0
    one, two, plain = (json.loads((tmp_path / name).read_text()) for name in ("one/metrics.json", "two/metrics.json", "plain.json"))
    for name in ("knn", "linear_probe", "caption_of_picture_at_1", "picture_of_caption_at_5"):
        assert one["metrics"][name]["value"] == pytest.approx(two["metrics"][name]["value"], abs=1e-3), name
    assert one["metrics"]["linear_probe"]["value"] > 60, "codes tell the colours apart"
    assert [entry["key"] for entry in one["words"]] == ["blue/11.png", "blue/14.png", "blue/17.png"]
    assert all(entry["caption"] == "a blue square" and len(entry["nearest"]) == 8 for entry in one["words"])
    assert plain["words"] == [] and "--base" in plain["metrics"]["caption_of_picture_at_1"]["remedy"]
    assert plain["metrics"]["linear_probe"]["value"] > 60
    assert _run(ckpt, tmp_path / "images", tmp_path / "x.json", "--probe", "--base", str(tiny_llama)) == 2
    assert "is another language model than that of the tokenizer" in capsys.readouterr().err


def test_two_ranks_report_what_one_does(ckpt: Path, images: Path, tmp_path: Path) -> None:
    assert _run(ckpt, images, tmp_path / "one" / "metrics.json", "--batch-size", "2") == 0
    more = ["--ckpt", ckpt, "--images", images, "--out", tmp_path / "two" / "metrics.json", "--workers", "0", "--batch-size", "2"]
    run_ranks("eval_tokenizer", *more, logs=tmp_path)
    one, two = (json.loads((tmp_path / number / "metrics.json").read_text()) for number in ("one", "two"))
    assert (one["protocol"].pop("world_size"), two["protocol"].pop("world_size")) == (1, 2)
    assert one["protocol"] == two["protocol"]
    assert one["codes"] == two["codes"]
    for name, entry in one["metrics"].items():
        if entry["value"] is not None:
            assert two["metrics"][name]["value"] == pytest.approx(entry["value"], rel=1e-6), name
    assert len((tmp_path / "two" / "skipped.jsonl").read_text().splitlines()) == 1
