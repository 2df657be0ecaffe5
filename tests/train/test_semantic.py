"""Semantic terms of the tokenizer's training: exact gradients, ranks, accumulation, resume, captions, and what is refused."""

import json
import re
import shutil
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizer_runs import largest_difference, state_of, train
from torch import Tensor, nn
from torch.autograd import gradcheck
from torchvision.models import get_model
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel
from warm import run_ranks

from unicode import load_tokenizer
from unicode.annotations.public import open_captions
from unicode.annotations.records import make_turns
from unicode.common.checkpoint import newest_checkpoint
from unicode.common.files import write_json
from unicode.images.dataset import DataConfig, build_dataset
from unicode.run import export_codebook
from unicode.train.semantic import nearest_shares, sigmoid_loss


@pytest.fixture
def words(overrides: list[str], tiny_llama: Path, tmp_path: Path) -> list[str]:
    """Settings of a run with the term of words, on the rows of a tiny language model that knows the world's words."""
    assert export_codebook.main(["--model", str(tiny_llama), "--out", str(tmp_path / "words.safetensors")]) == 0
    own = [f"model.codebook.table={tmp_path}/words.safetensors", f"objective.semantic.words.model={tiny_llama}"]
    return [*overrides, *own, "objective.semantic.words.weight=0.5", "model.codebook.entropy_weight=0"]


@pytest.fixture(scope="session")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny DINOv2."""
    return save_vision(tmp_path_factory.mktemp("vision") / "dinov2", "dinov2")


def save_vision(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """Write a tiny vision model with random weights: a folder of transformers, or a file of torchvision's."""
    torch.manual_seed(seed)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tiny |= {"image_size": 28, "patch_size": 14}
    if kind == "squeezenet1_1":
        torch.save(get_model(kind, weights=None).state_dict(), folder)
        return folder
    models = {
        "dinov2": lambda: Dinov2Model(Dinov2Config(**tiny)),
        "clip": lambda: CLIPModel(CLIPConfig(vision_config=tiny, text_config={**tiny, "vocab_size": 9})),
        "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
    }
    models[kind]().save_pretrained(folder)
    return folder


def logged(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_the_gradient_of_shares_is_that_of_soft_shares() -> None:
    """Central differences in float64 over the latents and the rows of a table of 7, all of them near; the values are those of codes."""
    generator = torch.Generator().manual_seed(0)
    sizes = (4, 3), (7, 3), (7, 5), (4, 5)
    latents, rows, table, weight = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    codes, temperature = torch.cdist(latents, rows).argmin(1), 0.3 * rows.square().sum(1).mean()

    def soft(latents: Tensor, rows: Tensor) -> Tensor:
        return (weight * ((-torch.cdist(latents, rows).square() / 2 / temperature).softmax(1) @ table)).sum()

    given = [latents.clone().requires_grad_(), rows.clone().requires_grad_()]
    near, shares = nearest_shares(given[0], codes, given[1], count=7, temperature=0.3)
    pooled = torch.zeros(4, 7, dtype=torch.float64).scatter_add(1, near, shares)
    assert torch.equal(pooled.detach(), torch.eye(7, dtype=torch.float64)[codes])
    (weight * (pooled @ table)).sum().backward()
    for which, values in enumerate((latents, rows)):
        for place in range(values.numel()):
            step = torch.zeros(values.numel(), dtype=torch.float64).index_fill(0, torch.tensor(place), 1e-6).view_as(values)
            up, down = ([one + sign * step if index == which else one for index, one in enumerate((latents, rows))] for sign in (1, -1))
            assert given[which].grad is not None
            assert abs(float((soft(*up) - soft(*down)) / 2e-6 - given[which].grad.flatten()[place])) < 1e-6  # type: ignore[union-attr]


def test_the_sigmoid_loss_has_exact_gradients_and_adds_up_over_parts_of_a_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures, captions = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    captions[4], captions[2] = captions[1], 0
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (3.0, -1.0))

    def loss(pictures: Tensor, scale: Tensor, bias: Tensor, own: Tensor) -> Tensor:
        return sigmoid_loss(pictures, captions, own, scale=scale, bias=bias)

    everyone = torch.arange(6)
    assert gradcheck(lambda *args: loss(*args, everyone), (pictures.clone().requires_grad_(), scale, bias))
    whole = loss(pictures, scale, bias, everyone)
    assert torch.allclose(whole, sum(loss(pictures[part], scale, bias, part) for part in everyone.split([1, 3, 2])))  # type: ignore[arg-type]
    assert loss(pictures[2:3], scale, bias, everyone[2:3]) == 0, "a picture without a caption"
    kept = torch.tensor([0, 1, 3, 4, 5])
    assert torch.allclose(whole, sigmoid_loss(pictures[kept], captions[kept], torch.arange(5), scale=scale, bias=bias))
    aligned = sigmoid_loss(captions[1:2], captions, torch.tensor([4]), scale=scale, bias=bias)
    assert torch.equal(aligned, sigmoid_loss(captions[1:2], captions, torch.tensor([1]), scale=scale, bias=bias)), "the same words twice"


@pytest.mark.parametrize("mode", ["projected", "language"])
def test_ranks_and_micro_batches_equal_one_batch(words: list[str], vision: Path, tmp_path: Path, mode: str) -> None:
    settings = [*words, f"model.codebook.mode={mode}", f"model.codebook.width={4 if mode == 'projected' else 0}", "train.log_every=1"]
    settings += ["train.steps=6", "train.save_every=0", "optimizer.lr=2e-4", f"data.captions={some_captions(tmp_path)}"]
    settings += [f"objective.semantic.teacher.path={vision}", "objective.semantic.teacher.weight=0.1"]
    settings += ["model.codebook.restart_threshold=0"]  # which latents rows restart at depends on the micro-batches
    one = state_of(train(settings, f"run.dir={tmp_path / 'one'}"))
    parts = state_of(train(settings, f"run.dir={tmp_path / 'parts'}", "train.micro_batch_size=2"))
    (tmp_path / "empty.yaml").write_text("{}\n")
    run_ranks("train_tokenizer", tmp_path / "empty.yaml", *settings, "train.micro_batch_size=2", logs=tmp_path, ACCELERATE_USE_CPU="true")
    two = state_of(newest_checkpoint(tmp_path / "run" / "checkpoints"))
    for other, run in ((parts, "parts"), (two, "run")):
        assert largest_difference(one["model"], other["model"]) < 1e-4
        assert largest_difference(one["semantic"], other["semantic"]) < 1e-5
        for name in ("words", "captioned", "teacher"):
            assert logged(tmp_path / run, name) == pytest.approx(logged(tmp_path / "one", name), abs=1e-5)
    assert min(logged(tmp_path / "one", "captioned")) < max(logged(tmp_path / "one", "captioned")) < 1, "some pictures have no caption"


def some_captions(folder: Path) -> Path:
    """A file with captions of two thirds of the world's training scenes; some scenes have two."""
    world = build_dataset(DataConfig(), image_size=32, train=True)
    ask = open_captions(world, DataConfig())
    kept = [key for place, key in enumerate(world.keys) if place % 3]
    records = [{"image": key, "conversations": make_turns(["<image>\nwhat?", ask(key)[0]])} for key in kept + kept[::3]]
    write_json(folder / "captions.json", records)
    return folder / "captions.json"


@pytest.mark.parametrize("change", [[], ["run.precision=bf16"], ["run.compile=true"]], ids=["float32", "bf16", "compiled"])
def test_resumed_it_ends_with_the_same_bits(
    words: list[str], change: list[str], monkeypatch: pytest.MonkeyPatch, own_accelerator: None
) -> None:
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    settings = [*words, *change, "train.steps=8", "objective.semantic.words.start=1", "objective.semantic.words.ramp_steps=4"]
    newest = train(settings)
    whole = state_of(newest)
    shutil.rmtree(newest)
    assert largest_difference(whole, state_of(train(settings))) == 0.0
    assert whole["semantic"]["words.steps"] == 8 and whole["semantic"]["words.bias"] != pytest.approx(-np.log(8), abs=1e-6)


@pytest.mark.parametrize("kind", ["hqvae", "rqvae"])
@pytest.mark.parametrize("mode", ["projected", "language", "frozen"])
def test_the_tokenizer_of_a_supervised_run_is_a_plain_one(words: list[str], tmp_path: Path, kind: str, mode: str) -> None:
    width = f"model.codebook.width={4 if mode == 'projected' else 0}"
    settings = [*words, f"model.type={kind}", f"model.codebook.mode={mode}", width, "objective.semantic.words.levels=[0,1]"]
    settings += ["train.steps=2", "train.val_images=1"]
    supervised, plain = train(settings), train(settings, "objective.semantic.words.weight=0", f"run.dir={tmp_path}/plain")
    first, second = load_tokenizer(supervised), load_tokenizer(plain)
    assert first.inference_state().keys() == second.inference_state().keys() and first.config == second.config
    assert largest_difference(first.inference_state(), second.inference_state()) > 0
    assert "semantic" not in state_of(plain) and state_of(plain).keys() < state_of(supervised).keys()


def taught(path: Path, *more: str) -> list[str]:
    own = [f"path={path}", "weight=0.2", "width=16", "image_size=28", *more]
    return [f"objective.semantic.teacher.{setting}" for setting in own] + ["objective.semantic.words.weight=0", "train.steps=2"]


@pytest.mark.parametrize("kind", ["dinov2", "clip", "resnet", "squeezenet1_1"])
def test_features_of_every_kind_of_teacher_are_cached_for_runs_without_it(words: list[str], tmp_path: Path, kind: str) -> None:
    path, cache = save_vision(tmp_path / kind, kind), f"cache={tmp_path / 'features.safetensors'}"
    network = ["network=squeezenet1_1", "image_size=64"] if kind == "squeezenet1_1" else []
    settings = [*words, "data.shapes.num_train=24", *taught(path, "levels=[0,1]", *network)]
    direct = state_of(train(settings, f"run.dir={tmp_path}/direct"))
    cached = state_of(train(settings, f"objective.semantic.teacher.{cache}"))
    assert largest_difference(direct["semantic"], cached["semantic"]) < 1e-2
    assert largest_difference(direct["model"], cached["model"]) < 1e-2
    (path if path.is_file() else next(path.glob("*.safetensors"))).rename(tmp_path / "gone")
    shutil.rmtree(path, ignore_errors=True)
    again = state_of(train(settings, f"objective.semantic.teacher.{cache}", f"run.dir={tmp_path}/again"))
    assert largest_difference(cached, again) == 0.0 and len(again["semantic"]["_extra_state"]["teacher"]) == 16
    assert not any("teacher" in name for name in load_tokenizer(tmp_path / "again").state_dict())


def test_another_teacher_transform_or_grid_is_refused(words: list[str], vision: Path, tmp_path: Path) -> None:
    cache = f"cache={tmp_path / 'features.safetensors'}"
    settings = [*words, "data.shapes.num_train=24", *taught(vision)]
    cached = [*settings, f"objective.semantic.teacher.{cache}"]
    train(cached)
    other = f"objective.semantic.teacher.path={save_vision(tmp_path / 'other', 'dinov2', seed=1)}"
    for change, message in (
        ([other], "features of another teacher"),
        (["objective.semantic.teacher.levels=[1]"], "features of another grid"),
        (["objective.semantic.teacher.image_size=56"], "features of another teacher"),
        (["objective.semantic.teacher.path=''", "data.shapes.num_train=32"], r"has no features of train/\d+\.png; delete it"),
        (["objective.semantic.teacher.path=''", f"objective.semantic.teacher.{cache}.no"], r"there is no cache .*; name the teacher"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train([*cached, *change, f"run.dir={tmp_path}/another"])
    with pytest.raises(ValueError, match=r"trained with another objective\.semantic\.teacher: '\w+', this run has '\w+'; choose"):
        train([*settings, other, "train.steps=3"])
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"has features of whole pictures; set data\.crop=center and data\.flip=false"):
        train([*cached, "data.name=folder", f"data.root={tmp_path}"])


def test_what_is_no_vision_model_is_refused(words: list[str], tiny_llama: Path, vision: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"layer.weight": torch.zeros(2)}, file)
    for path, message in (
        (tiny_llama, r"teacher\.path '.*tiny-llama' holds no vision model that opens \(a llama model does not read images\)"),
        (tmp_path / "none", r"teacher\.path '.*none' has no config\.json"),
        (file, r"does not open as weights of the network '' .*; set objective\.semantic\.teacher\.network"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train([*words, *taught(path)])
    with pytest.raises(ValueError, match=r"does not open as weights of the network 'resnet18' .*Missing key|Error"):
        train([*words, *taught(file, "network=resnet18")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["train.batch_size=1"], r"objective\.semantic\.words tells the pictures of a batch apart; set train\.batch_size to 2 or more"),
        (["objective.semantic.words.levels=[2]"], r"objective\.semantic\.words\.levels \[2\] must be below 2"),
        (["model.codebook.mode=free", "model.codebook.num_rows=32"], r"needs rows of a language model, which .*mode=free has not"),
        (["objective.semantic.words.model=''"], r"objective\.semantic\.words\.model is empty; name the folder of the language model"),
        (["objective.semantic.words.weight=-1"], r"weight \(-1\.0\).* cannot be negative"),
        (["data.captions=none.json"], r"none of \d+ pictures has one, as train/.*; set data\.captions"),
    ],
)
def test_what_cannot_work_is_refused_before_work_starts(words: list[str], tmp_path: Path, change: list[str], message: str) -> None:
    write_json(tmp_path / "none.json", [])
    change = [setting.replace("none.json", str(tmp_path / "none.json")) for setting in change]
    with pytest.raises(ValueError, match=message):
        train([*words, *change])


def test_captions_of_data_sets(tmp_path: Path) -> None:
    def captions(**settings: Any) -> dict[str, Any]:
        config = DataConfig(**settings)
        dataset = build_dataset(config, image_size=16, train=False)
        ask = open_captions(dataset, config)
        return {key: list(ask(key)) for key in dataset.keys[:3]}

    for name in ("a.png", "sub/b.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    (tmp_path / "sub" / "b.txt").write_text("a bee\nsecond line")
    (tmp_path / "c.txt").write_text("\n")
    assert captions(name="folder", root=str(tmp_path)) == {"a.png": [], "c.png": [], "sub/b.png": ["a bee"]}
    turns = make_turns(["<image>\nis it?", "yes", "describe it", "a bee on a flower"])
    write_json(tmp_path / "l.json", [{"image": "b.png", "conversations": turns}, {"image": "b.png", "conversations": turns[:2]}, {"x": 1}])
    found = {"sub/b.png": ["a bee on a flower", "yes"]}
    assert captions(name="llava", root=str(tmp_path), path="l.json@sub") == found
    assert captions(name="folder", root=str(tmp_path), captions="l.json@sub") == {"a.png": [], "c.png": []} | found
    assert all(re.search("circle|square|triangle|star", texts[0]) for texts in captions().values())
