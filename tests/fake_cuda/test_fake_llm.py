"""A step of every LLM config on a fake GPU: no tensor on another device, and no operation for which the host waits."""

from dataclasses import fields, replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda.device import CUDA, HostSyncs, fake_gpu, real_backward, to_gpu
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from unicode.annotations.records import IMAGE_TO_TEXT, TEXT_ONLY, make_record
from unicode.annotations.templates import TEXT_TO_IMAGE
from unicode.common.config import load_config
from unicode.common.files import write_json
from unicode.ids.text import write_run
from unicode.llm import lora
from unicode.llm.llava import LlavaModel
from unicode.tokenizer.load import load_tokenizer
from unicode.train.config import TrainLlmConfig
from unicode.train.llm import LlmTrainer, LlmTraining
from unicode.train.loss import LossTable, Targets
from unicode.train.soft_targets import SoftTargets

ROOT = Path(__file__).parents[2]
SMALL = ["lora.r=2", "data.num_workers=0", "data.max_length=200", "data.val_files=[]", "data.stores=[]", "train.steps=1"]
SMALL += ["train.batch_size=4", "train.micro_batch_size=2", "run.deepspeed=", "run.device=cpu", "run.precision=bf16"]
SMALL += ["model.gradient_checkpointing=false"]  # it asks the real card for the state of its random numbers
VARIANTS = {
    "lora, ids": [],
    "lora, sums": ["model.input_mode=sum"],
    "lora, dropout 0, eager": ["lora.dropout=0", "model.attention=eager"],
    "full": ["lora.enabled=false"],
    "full, sums": ["lora.enabled=false", "model.input_mode=sum"],
    "ids, soft": ["optimizer.code_smoothing=0.4"],
    "cells": ["model.output_mode=cells"],
    "cells, full, soft, packed": ["model.output_mode=cells", "lora.enabled=false", "optimizer.code_smoothing=0.4", "data.pack=true"],
    "packed": ["data.pack=true"],
    "isolated turns": ["data.isolate_turns=true"],
    "isolated turns, sums": ["data.isolate_turns=true", "model.input_mode=sum"],
}


def computing_alike() -> dict[str, Path]:
    """One config of each group that differs in data, sizes and times alone, by the names of all in the group."""
    groups: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "configs/llm").glob("*.yaml")):
        config = load_config(TrainLlmConfig, path)
        model, data, vision = config.model, config.data, config.vision
        key: tuple[Any, ...] = (model.output_mode, config.optimizer.code_smoothing > 0)
        key += (model.input_mode, model.attention, model.dtype, config.lora.enabled, config.lora.train_markers, config.lora.dropout > 0)
        key += (data.isolate_turns, data.pack, vision.enabled, vision.kind, vision.dtype, vision.projector_only, vision.projector)
        groups.setdefault(repr(key), []).append(path)
    return {" ".join(path.stem for path in paths): paths[0] for paths in groups.values()}


CONFIGS = computing_alike()


@pytest.fixture(autouse=True)
def tables_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train marker rows as beside the tables of real models; beside small ones peft's layer copies ids to the device in each forward."""
    monkeypatch.setattr(lora, "LARGE_TABLE", 0)


@pytest.fixture(scope="module")
def files(tuned: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with conversations about ids and about pictures, and a CLIP tower."""
    folder, random = tmp_path_factory.mktemp("fake_llm"), Random(0)
    tokenizer = load_tokenizer(tuned.image_tokenizer)
    rows = tokenizer.row_ids.tolist()
    options: Any = {"layout": tokenizer.layout.describe(), "tokenizer": tokenizer.fingerprint}

    def record(number: int) -> dict[str, Any]:
        run = write_run(random.choices(rows, k=tokenizer.layout.num_codes))
        turns = [[f"{run}\nhow many?", "two", "what is it?", "a red circle"], ["a red circle", run], ["how many?", "two"]][number % 3]
        return make_record(str(number), (IMAGE_TO_TEXT, TEXT_TO_IMAGE, TEXT_ONLY)[number % 3], turns, **options)

    write_json(folder / "ids.json", [record(number) for number in range(12)])
    turns = [("human", "<image>\nhow many?"), ("gpt", "two"), ("human", "what is it?"), ("gpt", "a red circle")]
    asked = {"image": "0.png", "conversations": [{"from": who, "value": text} for who, text in turns]}
    write_json(folder / "pictures.json", [{"id": str(number), **asked} for number in range(8)])
    (folder / "images").mkdir()
    Image.new("RGB", (20, 16)).save(folder / "images" / "0.png")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    CLIPVisionModel(CLIPVisionConfig(image_size=16, **sizes)).save_pretrained(folder / "clip")
    return folder


def build(path: Path | None, tuned: Any, files: Path, run: Path, *changes: str) -> LlmTraining:
    plain = load_config(TrainLlmConfig, path)
    settings = [*SMALL, f"model.path={tuned.base}", f"run.dir={run}", *changes]
    settings += ["model.template=vicuna_v1"] if plain.model.template == "chat" else []
    if plain.vision.enabled:
        tower = tuned.image_tokenizer if plain.vision.kind == "tokenizer" else files / "clip"
        settings += [f"vision.path={tower}", "vision.projector_path=", f"vision.images=[{files}/images]"]
        settings += [f"data.files=[{files}/pictures.json]"]
    else:
        settings += [f"data.files=[{files}/ids.json]", f"model.image_tokenizer={tuned.image_tokenizer}"]
    return LlmTraining(load_config(TrainLlmConfig, path, settings))


def move_(trainer: LlmTrainer, mode: Any) -> None:
    """Put everything of a trainer on the fake GPU."""
    to_gpu(mode, trainer.bare_model)
    if isinstance(trainer.bare_model, LlavaModel):
        to_gpu(mode, trainer.bare_model.tower)
    trainer.args.__dict__["_setup_devices"] = CUDA
    trainer.kind_weights = to_gpu(mode, trainer.kind_weights)
    trainer.losses = LossTable(CUDA, levels=trainer.num_levels)
    if trainer.soft is not None:
        moved = {one.name: to_gpu(mode, value) for one in fields(SoftTargets) if (value := getattr(trainer.soft, one.name)) is not None}
        trainer.soft = replace(trainer.soft, **moved)
    trainer.monitor.first_broken = to_gpu(mode, trainer.monitor.first_broken)


def fake_batch(mode: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch with tensors without values, on the CPU."""
    targets = Targets(*map(mode.from_tensor, batch["targets"]))
    inputs = {name: mode.from_tensor(value) if torch.is_tensor(value) else value for name, value in batch["inputs"].items()}
    return batch | {"inputs": inputs, "targets": targets}


def step(training: LlmTraining) -> dict[str, int]:
    """Train one step of two micro-batches; return how often the host waited."""
    trainer = LlmTrainer(training)
    batches = list(trainer.get_train_dataloader())
    with fake_gpu() as mode:
        move_(trainer, mode)
        trainer.create_optimizer()
        fakes = iter([fake_batch(mode, batch) for batch in batches])
        with HostSyncs() as syncs:
            samples, weights = trainer.get_batch_samples(fakes, len(batches), CUDA)
            for batch in samples:
                with torch.autocast("cuda", torch.bfloat16, enabled=training.runtime.bf16):
                    loss = trainer.training_step(trainer.bare_model, batch, weights)
                assert loss.device == CUDA
            learned = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            trainer.optimizer.step()
            control: Any = SimpleNamespace(should_log=False, should_save=False, should_evaluate=False, should_training_stop=False)
            trainer.monitor.on_step_end(trainer.args, trainer.state, control, model=trainer.bare_model)
    assert len(batches) == 2
    return dict(syncs.counts)


@pytest.mark.parametrize("names", CONFIGS)
def test_a_step_of_a_config(names: str, tuned: Any, files: Path, tmp_path: Path) -> None:
    assert step(build(CONFIGS[names], tuned, files, tmp_path)) == {}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_of_a_way_of_reading(variant: str, tuned: Any, files: Path, tmp_path: Path) -> None:
    assert step(build(None, tuned, files, tmp_path, *VARIANTS[variant])) == {}


def test_the_backward_pass_asks_for_no_values(tuned: Any, files: Path, tmp_path: Path) -> None:
    """The engine of autograd does not run without a card, so its operations are counted on the CPU."""
    with real_backward() as counts:
        build(None, tuned, files, tmp_path, "lora.enabled=false", "data.isolate_turns=true", "model.input_mode=sum").run()
    assert counts == {}
