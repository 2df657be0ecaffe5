"""From pictures to pictures by the commands: table, tokenizer, ids, annotations, and the pictures that the annotations hold."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoTokenizer

from unicode import load_tokenizer
from unicode.ids.text import split_runs
from unicode.images.dataset import ShapesImages, open_images
from unicode.images.decode import to_float, to_uint8
from unicode.images.shapes import ShapesConfig
from unicode.images.shapes_text import scene_caption
from unicode.tokenizer.model import inference_precision

ROOT = Path(__file__).parents[1]
TUX_PAINT = Path("/usr/share/tuxpaint/stamps")
COUNT = 12
SMALL = [
    "model.autoencoder.channels=32", "model.codebook.num_rows=32", "objective.perceptual.weight=0",
    "train.steps=20", "train.batch_size=4", "train.val_images=4", "train.num_workers=0",
]  # fmt: skip


def run(name: str, *words: object) -> None:
    assert import_module(f"unicode.run.{name}").main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A tokenizer of 20 steps whose codebook are rows of a language model."""
    folder = tmp_path_factory.mktemp("tokenizer")
    run("export_codebook", "--model", tiny_llama, "--out", folder / "table.safetensors")
    config = ROOT / "configs/tokenizer/hqvae_shapes.yaml"
    run("train_tokenizer", config, *SMALL, f"model.codebook.table={folder / 'table.safetensors'}", f"run.dir={folder / 'run'}")
    return folder / "run"


@dataclass(frozen=True)
class Data:
    """Pictures as the commands name them."""

    images: str
    name: str
    make: list[str]
    """Arguments that make their LLaVA files."""
    settings: list[str]


@pytest.fixture(params=["shapes", "made", "tuxpaint"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Data:
    """The shapes world; a few stamps that this test draws; a few of Tux Paint's, where they are installed."""
    if request.param == "shapes":
        return Data("shapes:train", "shapes", ["--func", "get_shapes_anno", "--limit", str(COUNT)], [f"limit={COUNT}"])
    folder = tmp_path / "stamps"
    if request.param == "made":
        draw_stamps(folder)
    else:
        stamps = sorted(path for path in TUX_PAINT.rglob("*.png") if path.with_suffix(".txt").is_file())
        if not stamps:
            pytest.skip("Debian's tuxpaint-stamps-default is not installed")
        for path in stamps[:: len(stamps) // COUNT][:COUNT]:
            target = folder / path.relative_to(TUX_PAINT)
            target.parent.mkdir(parents=True, exist_ok=True)
            for suffix in (".png", ".txt"):
                shutil.copy(path.with_suffix(suffix), target.with_suffix(suffix))
    return Data(str(folder), "stamps", ["--func", "get_folder_anno", "--root", str(folder), "--val-share", "0"], [])


def draw_stamps(folder: Path) -> None:
    """Scenes of the shapes world, cut out on a transparent ground, in folders of subjects, each with its caption."""
    world = ShapesImages(ShapesConfig(image_size=64), split="val", limit=COUNT)
    for index in range(COUNT):
        pixels = world.scene(index).pixels().transpose(1, 2, 0)
        alpha = np.full((64, 64, 1), 255, np.uint8)
        alpha[: index * 4] = index * 20
        path = folder / ("animals", "food")[index % 2] / f"kind{index % 3}" / f"stamp{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate([pixels, alpha], axis=2)).resize((80, 60)).save(path)
        path.with_suffix(".txt").write_text(f"{scene_caption(world.scene(index))}\nde.utf8=Formen.\n", encoding="utf-8")


def test_annotations_hold_the_reconstructions(data: Data, checkpoint: Path, tiny_llama: Path, tmp_path: Path) -> None:
    ids, anno, out = tmp_path / "ids", tmp_path / "anno", tmp_path / "out"
    run("encode_images", "--ckpt", checkpoint, "--images", data.images, "--out", ids / "some", "--device", "cpu", *data.settings)
    run("make_annotations", *data.make, "--out", anno)
    literal = [sys.executable, "data/unicode", "process.py", "--func", "get_t2v_anno", "--root", str(anno), "--ids", str(ids)]
    subprocess.run([*literal, "--anno", f"{data.name}_captions_train.json", "--out", str(out)], cwd=ROOT, check=True)
    common = ["--ids", ids, "--out", out]
    run("make_annotations", "--func", "get_llava_uni_anno", "--root", anno, "--anno", f"{data.name}_questions_train.json", *common)
    run("make_annotations", "--func", "get_decompression_anno", *common)

    expected, reserved = reconstructions(checkpoint, data), reserved_ids(tiny_llama)
    assert len({picture.tobytes() for picture in expected.values()}) > COUNT // 2, "the pictures are too much alike to test anything"
    captions, questions = f"{data.name}_captions_train", f"{data.name}_questions_train"
    for name, runs in ((f"{captions}_t2v_full", 1), (f"{questions}_uni", 1), ("images_decompression", 2)):
        alone = ["--batch-size", 1, "--device", "cpu"]  # as below, so that kernels round every picture alike
        run("decode_ids", "--ckpt", checkpoint, "--ids", out / f"{name}.json", "--out", tmp_path / name, *alone)
        records = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        assert sorted(record["id"] for record in records) == sorted(expected)
        for number, record in enumerate(records):
            for place in range(runs):
                picture = np.asarray(Image.open(tmp_path / name / f"{number:07d}-{place}.png"))
                np.testing.assert_array_equal(picture, expected[record["id"]])
            turns = [split_runs(turn["value"]) for turn in record["conversations"]]
            used = {number for turn in turns for piece in turn if piece.ids is not None for number in piece.ids.tolist()}
            assert used and not used & reserved


def reconstructions(checkpoint: Path, data: Data) -> dict[str, np.ndarray]:
    """(H, W, 3) uint8 of every picture, as encoder and decoder make it."""
    tokenizer = load_tokenizer(checkpoint)
    dataset = open_images(data.images, image_size=tokenizer.config.image_size)
    found = {}
    for index in range(COUNT):
        pixels = dataset.pixels(index)
        assert isinstance(pixels, torch.Tensor)
        with inference_precision("float32", torch.device("cpu")):
            picture = tokenizer.decode(tokenizer.encode(to_float(pixels)[None]))[0]
        found[dataset.key(index)] = to_uint8(picture).permute(1, 2, 0).numpy()
    return found


def reserved_ids(model: Path) -> set[int]:
    """Ids that the tokenizer of a language model keeps for itself, and those of rows without a token."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = AutoConfig.from_pretrained(model).vocab_size
    reserved = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values(), *range(len(tokenizer), rows)}
    assert len(reserved) > 10
    return reserved
