"""The LLaVA baseline in training: its two stages, what they change and leave, resuming, ranks, pictures that cannot be read."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from warm import free_port, start

from unicode.common.config import load_config
from unicode.common.files import write_json
from unicode.llm.llava import LlavaModel
from unicode.llm.load import open_model
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import CodebookConfig, TokenizerConfig
from unicode.tokenizer.model import ImageTokenizer
from unicode.train.config import TrainLlmConfig
from unicode.train.llm import LlmTrainer, LlmTraining

ROOT = Path(__file__).parents[2]
SIZE = 16
WHITE = {"top": (0, 0, 16, 8), "big": (0, 0, 8, 16), "two": (4, 4, 12, 12)}
"""Answer -> the part of the picture that is white."""
ADAPTER, PROJECTOR = "adapter_model.safetensors", "projector.safetensors"


def draw(name: str) -> Image.Image:
    """A picture that is wider than high; its middle square is what is seen."""
    picture = Image.new("RGB", (20, 16), (30, 60, 120))
    left, top, right, bottom = WHITE[name]
    picture.paste((255, 255, 255), (left + 2, top, right + 2, bottom))
    return picture


def conversation(*turns: str, **fields: Any) -> list[dict[str, Any]]:
    """A list of one record."""
    return [{**fields, "conversations": [{"from": ("human", "gpt")[number % 2], "value": turn} for number, turn in enumerate(turns)]}]


@pytest.fixture
def settings(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings of a run of 12 small steps on pictures of three kinds and some conversations without pictures."""
    monkeypatch.setenv("UNICODE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    small: dict[str, Any] = {"channels": 8, "multipliers": [1, 2], "num_res_blocks": 1, "latent_channels": 12}
    autoencoder = AutoencoderConfig(**small, encoder_attention=[], decoder_attention=[])
    codebook = CodebookConfig(mode="free", num_rows=32)
    tower = ImageTokenizer(TokenizerConfig(image_size=SIZE, autoencoder=autoencoder, codebook=codebook))
    with torch.no_grad():
        tower.quant_conv.weight.mul_(8)  # random features hardly differ
    tower.save_pretrained(tmp_path / "tower")
    (tmp_path / "pictures").mkdir()
    random, records = Random(0), list[dict[str, Any]]()
    for number in range(48):
        name = random.choice(list(WHITE))
        draw(name).save(tmp_path / "pictures" / f"{number}.png")
        records += conversation("<image>\nhow is it?", name, image=f"{number}.png")
    for _ in range(16):
        records += conversation("say a big thing", "two squares")
    write_json(tmp_path / "train.json", records)
    values = {
        "model.path": tiny_llama,
        "model.template": "llava_llama_2",
        "lora.r": 4,
        "lora.alpha": 8,
        "vision.enabled": "true",
        "vision.kind": "tokenizer",
        "vision.path": tmp_path / "tower",
        "vision.feature": "latent",
        "vision.images": f"[{tmp_path / 'pictures'}]",
        "data.files": f"[{tmp_path / 'train.json'}]",
        "optimizer.lr": 5e-3,
        "train.steps": 12,
        "train.batch_size": 8,
        "train.log_every": 4,
        "train.save_every": 4,
        "run.dir": tmp_path / "run",
        "run.device": "cpu",
        "run.threads": 1,
    }
    return [f"{key}={value}" for key, value in values.items()]


ONLY_PROJECTOR = ["lora.enabled=false", "vision.projector_only=true"]


def build(settings: list[str], *changes: str) -> LlmTraining:
    return LlmTraining(load_config(TrainLlmConfig, None, [*settings, *changes]))


def train(settings: list[str], *changes: str) -> Path:
    return build(settings, *changes).run()


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_the_first_stage_trains_the_projector_and_nothing_else(settings: list[str], tiny_llama: Path) -> None:
    training = build(settings, *ONLY_PROJECTOR, "train.steps=24", "optimizer.lr=3e-2")
    assert {name.split(".")[0] for name, value in training.model.named_parameters() if value.requires_grad} == {"projector"}
    before = {name: value.clone() for name, value in training.model.projector.state_dict().items()}
    run = training.run()
    assert losses(run)[24] < losses(run)[4]
    base = AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict()
    assert all(torch.equal(base[name], value) for name, value in training.model.lm.state_dict().items())
    after = load_file(run / PROJECTOR)
    assert all(not torch.equal(before[name], value) for name, value in after.items())
    assert not list(run.rglob("*model*.safetensors"))
    assert open_model(run, device="cpu").card.kind == "llava"
    assert json.loads((run / "summary.json").read_text())["unreadable_pictures"] == 0


def test_the_second_stage_goes_on_with_the_projector_at_its_own_rate(settings: list[str], tmp_path: Path) -> None:
    first = train(settings, *ONLY_PROJECTOR, f"run.dir={tmp_path / 'first'}")
    changes = [f"vision.projector_path={first}", "optimizer.projector_lr=1e-4", "optimizer.marker_lr=2e-3"]
    training = build(settings, *changes)
    assert all(torch.equal(load_file(first / PROJECTOR)[name], value) for name, value in training.model.projector.state_dict().items())
    rates: dict[str, set[float]] = {}
    create = LlmTrainer.create_optimizer

    def watch(trainer: LlmTrainer, model: Any = None) -> Any:
        optimizer = create(trainer, model)
        names = {value: name for name, value in training.model.named_parameters()}
        for group in optimizer.param_groups:
            for value in group["params"]:
                kind = names[value].split(".")[0] if "trainable_tokens" not in names[value] else "markers"
                rates.setdefault(kind, set()).add(group["lr"])
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlmTrainer, "create_optimizer", watch)
        run = training.run()
    assert rates == {"projector": {1e-4}, "lm": {5e-3}, "markers": {2e-3}}
    moved = [
        (load_file(run / PROJECTOR)[name] - value).abs().max().item() for name, value in load_file(first / PROJECTOR).items()
    ]
    assert 0 < max(moved) < 2e-3, "12 steps of 1e-4"
    assert load_file(run / ADAPTER)


def test_what_was_saved_computes_the_same(settings: list[str], tmp_path: Path) -> None:
    training = build(settings, "optimizer.lr=2e-2")
    run = training.run()
    model = open_model(run, device="cpu")
    picture = model.picture(Image.open(tmp_path / "pictures" / "0.png"))
    prompts = [model.prompt(["<image>\nhow is it?"], [picture]), model.prompt(["say a big thing"])]
    trained: LlavaModel = training.model.eval()
    with torch.no_grad():
        for prompt in prompts:
            inputs = model.inputs([prompt])
            torch.testing.assert_close(model.causal(**inputs).logits, trained.lm(**inputs).logits, atol=1e-5, rtol=0)
            at = prompt.example.is_image.nonzero().flatten()
            own = trained(prompt.example.input_ids[None], pixels=prompt.pixels, image_at=at if len(at) else None).logits
            torch.testing.assert_close(model.causal(**inputs).logits, own, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stage", ["projector", "lora", "full"])
def test_a_resumed_run_ends_with_the_same_weights(settings: list[str], tmp_path: Path, stage: str) -> None:
    changes = {"projector": ONLY_PROJECTOR, "lora": ["lora.dropout=0.1"], "full": ["lora.enabled=false"]}[stage]
    run = train(settings, *changes)
    whole = {file.name: load_file(file) for file in run.glob("*.safetensors")}
    assert whole.keys() == {"projector": {PROJECTOR}, "lora": {PROJECTOR, ADAPTER}, "full": {PROJECTOR, "model.safetensors"}}[stage]
    for name in [*whole, "summary.json"]:
        (run / name).unlink()
    shutil.rmtree(run / "checkpoint-12")
    assert train(settings, *changes) == run
    for name, expected in whole.items():
        found = load_file(run / name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name


def test_pictures_that_cannot_be_read_are_left_out_and_counted(
    settings: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pictures" / "5.png").write_bytes(b"not a picture")
    (tmp_path / "pictures" / "7.png").unlink()
    training = build(settings, "train.steps=8", "train.group_by=none")
    with caplog.at_level("WARNING"):
        run = training.run()
    assert "1 of 48 pictures looked for are missing, as '7.png'" in caplog.text
    assert "image '5.png' cannot be read (not an image); its conversation is left out" in caplog.text
    assert json.loads((run / "summary.json").read_text())["unreadable_pictures"] == 2
    examples = [training.data.train[index] for index in (4, 5, 48)]
    assert training.vision is not None
    batch = LlmTrainer(training).data_collator(examples)
    assert batch["inputs"]["pixels"].shape == (2, 3, SIZE, SIZE)
    assert batch["inputs"]["pixels"][1].unique().tolist() == [128]
    assert set((batch["targets"].at // (len(examples[0]) or 1)).tolist()) and len(batch["targets"].ids) == sum(
        examples[place].num_text_targets for place in (0, 2)
    )


MISTAKES: list[tuple[list[str], Callable[[Path], None], str]] = [
    (["vision.images=[]"], lambda _: None, "vision.images is empty; name the folders that the image paths of data.files start from"),
    (["vision.images=[nowhere]"], lambda _: None, "no pictures at 'nowhere'; --images and vision.images take folders"),
    (["vision.images=[shapes]"], lambda _: None, "none of 48 pictures is in shapes, as '0.png'"),
    (["vision.path=nowhere"], lambda _: None, "no folder 'nowhere'"),
    (["vision.projector=mlp"], lambda _: None, "vision.projector is 'mlp'; choose linear"),
    (["vision.projector_path=nowhere"], lambda _: None, "no projector at 'nowhere'"),
    (["vision.projector_only=true"], lambda _: None, "trains no adapter; set lora.enabled=false"),
    (["data.stores=[ids]"], lambda _: None, "data.stores holds ids, but vision.enabled=true reads image files"),
    (["model.input_mode=sum"], lambda _: None, "adds up ids, but vision.enabled=true reads none"),
    ([], lambda file: write_json(file, conversation("draw it", "<image>", image="0.png")), "<image> in an answer, but a model that reads"),
    ([], lambda file: write_json(file, conversation("<vistok>3-4-5</vistok>\nwhat?", "red")), "the record holds ids, but this model reads"),
]


@pytest.mark.parametrize(("changes", "spoil", "message"), MISTAKES, ids=[message[:30] for *_, message in MISTAKES])
def test_mistakes_are_named_before_work_starts(
    settings: list[str], tmp_path: Path, changes: list[str], spoil: Callable[[Path], None], message: str
) -> None:
    spoil(tmp_path / "train.json")
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace("(", r"\(")):
        build(settings, *changes)


@pytest.mark.slow
def test_checkpoints_of_deepspeed_lack_the_frozen_weights_and_resume(settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("{}\n")
    words = ["train_llm", tmp_path / "empty.yaml", *settings, *ONLY_PROJECTOR, "train.save_every=6", "train.steps=12"]
    words += [f"run.deepspeed={ROOT / 'configs' / 'deepspeed' / 'zero2.json'}"]
    run = tmp_path / "run"
    assert (first := start(*words, log=tmp_path / "first.log", DS_ACCELERATOR="cpu")).wait() == 0, first.printed
    (states,) = (run / "checkpoint-12").rglob("*model_states.pt")
    saved = {name for name in torch.load(states, weights_only=False)["module"] if not name.startswith("projector.")}
    assert saved <= {"lm.lm_head.weight"}, "of a tied table DeepSpeed keeps the second name"
    whole = load_file(run / PROJECTOR)
    for name in (PROJECTOR, "summary.json"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoint-12")
    assert (again := start(*words, log=tmp_path / "again.log", DS_ACCELERATOR="cpu")).wait() == 0, again.printed
    assert "resuming" in again.printed
    assert all(torch.equal(value, whole[name]) for name, value in load_file(run / PROJECTOR).items())


@pytest.mark.slow
def test_ranks_under_zero3_equal_one_process(settings: list[str], tmp_path: Path) -> None:
    """Rows with and without pictures fall to the ranks as they come, and no rank waits for another for ever."""
    settings += ["train.group_by=none", "train.micro_batch_size=1", "train.batch_size=4", "train.log_every=1", "train.save_every=0"]
    settings += ["lora.dropout=0", "lora.train_markers=off"]
    one = train(settings, f"run.dir={tmp_path / 'one'}")
    (tmp_path / "empty.yaml").write_text("{}\n")
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--no_local_rank"]
    launcher += ["--master_port", str(free_port())]
    words = ["--module", "unicode.run.train_llm", str(tmp_path / "empty.yaml"), *settings]
    words += [f"run.dir={tmp_path / 'two'}", f"run.deepspeed={ROOT / 'configs' / 'deepspeed' / 'zero3.json'}"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*launcher, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(one) == pytest.approx(losses(tmp_path / "two"), abs=1e-3)
    for name in (PROJECTOR, ADAPTER):
        expected, found = load_file(one / name), load_file(tmp_path / "two" / name)
        assert expected.keys() == found.keys()
        assert max(float((expected[key] - found[key]).abs().max()) for key in expected) < 1e-3, name


def test_it_learns_to_see(settings: list[str], tiny_llama: Path, tmp_path: Path) -> None:
    """The question is always the same, so only the pictures can tell which answer is right."""
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    lm = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        lm.get_input_embeddings().weight.mul_(15)  # the rows stay as they are, and with random ones this short no answer can be certain
    lm.save_pretrained(base)
    changes = [f"model.path={base}", "lora.enabled=false", "train.steps=160", "train.batch_size=16"]
    training = build(settings, *changes, "train.save_every=0", "train.log_every=40")
    training.run()
    model: LlavaModel = training.model.eval()
    examples = (training.data.train[index] for index in range(48))
    asked = {training.text_tokenizer.decode(example.labels[example.labels >= 0]).strip(" </s>"): example for example in examples}
    assert set(asked) == set(WHITE)
    pixels = {name: model.tower.transform(draw(name))[None] for name in WHITE}

    def loss(answer: str, seen: str) -> float:
        example = asked[answer]
        at = example.is_image.nonzero().flatten()
        return float(model(example.input_ids[None], pixels=pixels[seen], image_at=at, labels=example.labels[None]).loss)

    for answer in WHITE:
        others = [loss(answer, seen) for seen in WHITE if seen != answer]
        assert loss(answer, answer) < min(others) - 0.2, (answer, loss(answer, answer), others)
