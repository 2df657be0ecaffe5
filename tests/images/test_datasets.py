"""Every data set by name, its keys and items, and what a user can get wrong."""

import json
import pickle
import re
import tarfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from unicode.common.config import load_config
from unicode.images.dataset import NAMES, AugmentedIndex, DataConfig, ImageDataset, ShapesImages, Skipped, build_dataset, open_images
from unicode.images.decode import to_float
from unicode.images.shapes import ShapesConfig, parse_scene

GUIDE = Path(__file__).parents[2] / "DATA_VAE.md"


def save(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)


def check(dataset: ImageDataset, keys: list[str]) -> None:
    assert dataset.keys == keys
    assert [dataset.key(index) for index in range(len(dataset))] == keys
    for item in (0, AugmentedIndex(len(keys) - 1, 3)):
        pixels = dataset.pixels(item)
        assert isinstance(pixels, torch.Tensor), pixels
        assert (pixels.shape, pixels.dtype) == ((3, 16, 16), torch.uint8)


def build(root: Path, *, train: bool = True, **settings: object) -> ImageDataset:
    return build_dataset(DataConfig(root=str(root), **settings), image_size=16, train=train)  # type: ignore[arg-type]


def test_folder_and_imagenet(tmp_path: Path) -> None:
    for index, name in enumerate(["train/n01/a.JPEG", "train/n02/a.JPEG", "val/n01/b.png"]):
        save(tmp_path / name, index)
    check(build(tmp_path, name="folder"), ["train/n01/a.JPEG", "train/n02/a.JPEG", "val/n01/b.png"])
    check(build(tmp_path, name="folder", path="train/n02"), ["train/n02/a.JPEG"])
    check(build(tmp_path, name="imagenet"), ["train/n01/a.JPEG", "train/n02/a.JPEG"])
    check(build(tmp_path, name="imagenet", split="val"), ["val/n01/b.png"])


def test_lists(tmp_path: Path) -> None:
    save(tmp_path / "images/1.png", 1)
    save(tmp_path / "images/2.png", 2)
    (tmp_path / "mine_train.txt").write_text("images/2.png\nimages/1.png\n")
    check(build(tmp_path, name="list", path="mine_{split}.txt"), ["images/2.png", "images/1.png"])
    (tmp_path / "train_list.txt").write_text("images/1.png\tA caption.\n")
    check(build(tmp_path, name="cc3m"), ["images/1.png"])
    (tmp_path / "images/ffhq_val.txt").write_text("2.png\n")
    check(build(tmp_path / "images", name="ffhq", split="val"), ["2.png"])
    (tmp_path / "other.txt").write_text("1.png\n")
    check(build(tmp_path, name="list", path="mine_train.txt, other.txt@images"), ["images/2.png", "images/1.png"])


def test_llava_and_coco(tmp_path: Path) -> None:
    save(tmp_path / "pretrain/images/00/1.png", 1)
    save(tmp_path / "mix/coco/train2017/2.png", 2)
    (tmp_path / "pretrain/a.json").write_text(json.dumps([{"image": "00/1.png"}]))
    (tmp_path / "mix/b.json").write_text(json.dumps([{"image": "coco/train2017/2.png"}, {"id": "text only"}]))
    check(build(tmp_path / "pretrain/images", name="llava", path="../a.json"), ["00/1.png"])
    both = "pretrain/a.json@pretrain/images, mix/b.json@mix"
    check(build(tmp_path, name="llava", path=both), ["pretrain/images/00/1.png", "mix/coco/train2017/2.png"])
    check(build(tmp_path / "mix/coco", name="coco"), ["train2017/2.png"])


def test_archives(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "s-0.tar", "w") as archive:
        archive.add(tmp_path / "a.png", "x/a.png")
    check(build(tmp_path, name="webdataset", path="s-{0..0}.tar"), ["s-0.tar/x/a.png"])
    environment = lmdb.open(str(tmp_path / "church_train_lmdb"), map_size=1 << 20)
    with environment.begin(write=True) as transaction:
        transaction.put(b"k1", (tmp_path / "a.png").read_bytes())
    environment.close()
    check(build(tmp_path, name="lsun", path="church_{split}_lmdb"), ["church_train_lmdb/k1"])
    check(open_images(tmp_path / "church_train_lmdb", image_size=16), ["church_train_lmdb/k1"])
    check(open_images(tmp_path / "s-0.tar", image_size=16), ["s-0.tar/x/a.png"])


def test_shapes() -> None:
    config = DataConfig(split="val", shapes=ShapesConfig(num_val=30))
    dataset = build_dataset(config, image_size=32, train=False)
    assert isinstance(dataset, ShapesImages)
    assert dataset.keys[7] == "val/0000007.png"
    assert len(dataset) == 30
    assert parse_scene(to_float(dataset.pixels(7)), dataset.config) == dataset.scene(7)  # type: ignore[arg-type]
    assert torch.equal(dataset.pixels(AugmentedIndex(7, 1)), dataset.pixels(7))
    assert build_dataset(DataConfig(), image_size=64, train=True).pixels(0).shape == (3, 64, 64)  # type: ignore[union-attr]
    assert len(open_images("shapes:val", image_size=32, config=DataConfig(limit=5))) == 5
    with pytest.raises(ValueError, match="train and val"):
        open_images("shapes:test", image_size=32)
    with pytest.raises(ValueError, match="image_size"):
        build_dataset(config, image_size=8, train=False)


def test_open_images(tmp_path: Path) -> None:
    save(tmp_path / "pictures/1.png")
    (tmp_path / "list.txt").write_text("1.png\n")
    (tmp_path / "llava.json").write_text('[{"image": "1.png"}]')
    check(open_images(tmp_path / "pictures", image_size=16), ["1.png"])
    check(open_images(str(tmp_path / "list.txt"), image_size=16, root=str(tmp_path / "pictures")), ["1.png"])
    check(open_images(tmp_path / "llava.json", image_size=16, root=str(tmp_path / "pictures")), ["1.png"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_images(tmp_path / "nothing", image_size=16)
    with pytest.raises(FileNotFoundError, match=r"is none of \.txt"):
        open_images(tmp_path / "pictures/1.png", image_size=16)


def test_training_items_depend_on_their_seed_alone(tmp_path: Path) -> None:
    save(tmp_path / "a.png", size=(90, 40))
    dataset = build(tmp_path, name="folder", flip=True)
    first = dataset.pixels(AugmentedIndex(0, 1))
    torch.manual_seed(99)
    assert torch.equal(dataset.pixels(AugmentedIndex(0, 1)), first)  # type: ignore[arg-type]
    assert len({dataset.pixels(AugmentedIndex(0, seed)).numpy().tobytes() for seed in range(8)}) > 3  # type: ignore[union-attr]
    still = build(tmp_path, name="folder", flip=True, train=False)
    assert torch.equal(still.pixels(AugmentedIndex(0, 1)), dataset.pixels(0))  # type: ignore[arg-type]
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).pixels(AugmentedIndex(0, 1)), first)


def test_holdout_and_limit(tmp_path: Path) -> None:
    for index in range(40):
        save(tmp_path / f"{index:02}.png", index)
    train, val = (build(tmp_path, name="folder", holdout=0.25, split=split) for split in ("train", "val"))
    assert sorted(train.keys + val.keys) == build(tmp_path, name="folder").keys
    assert 3 <= len(val) <= 20
    assert torch.equal(val.pixels(0), build(tmp_path, name="folder").pixels(int(val.key(0)[:2])))  # type: ignore[arg-type]
    assert build(tmp_path, name="folder", limit=4).keys == ["00.png", "10.png", "20.png", "30.png"]
    with pytest.raises(ValueError, match="train or val"):
        build(tmp_path, name="folder", holdout=0.25, split="test")
    with pytest.raises(ValueError, match="leaves none"):
        build(tmp_path, name="folder", holdout=1e-9, split="val")


def test_bad_pictures_are_skipped_with_a_reason(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:200])
    save(tmp_path / "thin.png", size=(3000, 1))
    save(tmp_path / "wide.png", size=(500, 500))
    dataset = build(tmp_path, name="folder", max_pixels=200_000)
    kinds = {}
    for index in range(len(dataset)):
        item = dataset.pixels(index)
        assert isinstance(dataset.pixels(AugmentedIndex(index, 0)), type(item))
        if isinstance(item, Skipped):
            assert (item.key, item.index) == (dataset.key(index), index)
            kinds[item.key] = item.reason.split(":")[0]
    assert kinds == {
        "cut.png": "damaged image", "empty.png": "empty file", "text.jpg": "not an image", "thin.png": "too thin", "wide.png": "too large",
    }  # fmt: skip
    (tmp_path / "good.png").unlink()
    gone = dataset.pixels(dataset.keys.index("good.png"))
    assert isinstance(gone, Skipped)
    assert gone.reason == "missing file"


def test_errors_before_work_is_wasted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs data\.root"):
        build_dataset(DataConfig(name="imagenet"), image_size=16, train=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        build(tmp_path / "none", name="folder")
    with pytest.raises(ValueError, match="no images"):
        build(tmp_path, name="folder")
    with pytest.raises(ValueError, match=r"needs data\.path"):
        build(tmp_path, name="llava")
    with pytest.raises(FileNotFoundError, match=r"no file .*train_list\.txt"):
        build(tmp_path, name="cc3m")
    (tmp_path / "list.txt").write_text("1.png\n2.png\n")
    with pytest.raises(FileNotFoundError, match=r"2 of 2 files .* 1\.png, 2\.png"):
        build(tmp_path, name="list", path="list.txt")
    assert len(build(tmp_path, name="list", path="list.txt", check_files=0)) == 2
    with pytest.raises(ValueError, match=r"several files in data\.path"):
        build_dataset(DataConfig(name="list", path=f"{tmp_path}/list.txt,{tmp_path}/list.txt"), image_size=16, train=True)


def test_the_guide_shows_settings_that_exist(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    shown = [text for block in blocks for text in re.split(r"^data:", block, flags=re.MULTILINE)[1:]]
    names = set()
    for text in shown:
        path = tmp_path / "data.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(f"data:{text}")["data"]))
        names.add(load_config(DataConfig, path).name)
    assert names == set(NAMES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["name=imagnet"], "did you mean 'imagenet'"), (["crop=middle"], "data.crop"), (["resize=nearest"], "data.resize"),
        (["holdout=1.5"], "holdout"), (["limit=-1"], "limit"), (["shapes.colours=99"], "shapes.colours"),
        (["rot=x"], "did you mean 'root'"), (["shapes.colors=3"], "colours"),
    ],
)  # fmt: skip
def test_settings_without_sense_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(DataConfig, None, settings)


def test_overrides_reach_the_world() -> None:
    config = load_config(DataConfig, None, ["shapes.colours=8", "split=val"])
    assert (config.shapes.colours, config.split, config.name) == (8, "val", "shapes")
