"""The splice: features in the places of pictures, the same modules for every batch, batches equal to single rows, real ranks."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unicode.llm.llava import LlavaModel, Tower, build_projector, read_projector

ROOT = Path(__file__).parents[2]
SIZE, CELLS, WIDTH, D = 8, 4, 12, 32


class Patches(Tower):
    """The four quarters of a picture through a fixed random matrix: a tower without files."""

    image_size, num_features, width, fingerprint = SIZE, CELLS, WIDTH, "0" * 16

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.matrix = torch.nn.Parameter(torch.randn(3 * SIZE * SIZE // CELLS, WIDTH, generator=generator) / 7)
        self.freeze_()

    def features(self, pixels: Tensor) -> Tensor:
        half = SIZE // 2
        quarters = pixels.unfold(2, half, half).unfold(3, half, half).flatten(2, 3).transpose(1, 2)
        return quarters.flatten(2) @ self.matrix


def make_model(folder: Path, kind: str = "mlp2x_gelu") -> LlavaModel:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return LlavaModel(lm, Patches(), build_projector(kind, WIDTH, D))


def make_batch() -> dict[str, Tensor]:
    """Two rows; the first with two pictures, the second with none."""
    torch.manual_seed(1)
    input_ids = torch.randint(4, 50, (2, 14))
    image_at = torch.tensor([2, 3, 4, 5, 8, 9, 10, 11])
    labels = input_ids.clone()
    labels[0, :12] = -100
    labels[1, :4] = -100
    return {"input_ids": input_ids, "labels": labels, "pixels": torch.rand(2, 3, SIZE, SIZE) * 2 - 1, "image_at": image_at}


def test_features_stand_where_the_placeholders_were(tiny_llama: Path) -> None:
    model, batch = make_model(tiny_llama), make_batch()
    embeddings = model.embed(batch["input_ids"], pixels=batch["pixels"], image_at=batch["image_at"])
    words = model.get_input_embeddings()(batch["input_ids"])
    features = model.projector(model.tower(batch["pixels"]))
    assert torch.equal(embeddings[0, 2:6], features[0]) and torch.equal(embeddings[0, 8:12], features[1])
    kept = [0, 1, 6, 7, 12, 13]
    assert torch.equal(embeddings[0, kept], words[0, kept]) and torch.equal(embeddings[1], words[1])
    other = batch["input_ids"].clone()
    other.view(-1)[batch["image_at"]] = 0
    assert torch.equal(model(other, pixels=batch["pixels"], image_at=batch["image_at"]).logits, model(inputs_embeds=embeddings).logits)


def test_whole_bytes_equal_floats(tiny_llama: Path) -> None:
    from unicode.images.decode import to_float

    model = make_model(tiny_llama)
    pixels = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    assert torch.equal(model.tower(pixels), model.tower(to_float(pixels)))


def test_a_batch_of_words_runs_the_projector_and_changes_nothing(tiny_llama: Path) -> None:
    model, batch = make_model(tiny_llama), make_batch()
    calls = []
    model.projector.register_forward_hook(lambda *_: calls.append(1))
    loss = model(batch["input_ids"], labels=batch["labels"]).loss
    assert len(calls) == 1
    assert torch.equal(loss, model.lm(batch["input_ids"], labels=batch["labels"]).loss)
    loss.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.projector.parameters())
    model.zero_grad()
    model(**batch).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.projector.parameters())


def test_the_tower_is_out_of_reach(tiny_llama: Path) -> None:
    model = make_model(tiny_llama)
    assert not any("tower" in name for name in model.state_dict())
    assert not any("tower" in name for name, _ in model.named_modules())
    model.train().to(torch.bfloat16)
    assert model.tower.dtype == torch.float32 and not model.tower.training
    batch = make_batch()
    assert model(batch["input_ids"], pixels=batch["pixels"], image_at=batch["image_at"]).logits.dtype == torch.bfloat16


def test_left_padded_rows_are_answered_as_alone(tiny_llama: Path) -> None:
    model = make_model(tiny_llama).eval()
    torch.manual_seed(2)
    pixels = torch.rand(3, 3, SIZE, SIZE) * 2 - 1
    rows = [torch.randint(4, 50, (length,)) for length in (12, 7, 9)]
    alone = []
    for row, picture in zip(rows, pixels, strict=True):
        inputs: dict[str, Any] = {"pixels": picture[None], "image_at": torch.arange(1, 5), "attention_mask": torch.ones(1, len(row)).long()}
        alone.append(model.generate(row[None], **inputs, max_new_tokens=6, do_sample=False, eos_token_id=59, pad_token_id=0))
    width = max(map(len, rows))
    pads = [width - len(row) for row in rows]
    ids = torch.stack([torch.cat([torch.zeros(pad, dtype=torch.long), row]) for pad, row in zip(pads, rows, strict=True)])
    mask = torch.stack([(torch.arange(width) >= pad).long() for pad in pads])
    places = torch.cat([row * width + pad + torch.arange(1, 5) for row, pad in enumerate(pads)])
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 59, "pad_token_id": 0}
    together = model.generate(ids, pixels=pixels, image_at=places, attention_mask=mask, **options)
    assert together.shape == (3, 6)  # the new tokens only
    assert torch.equal(together, torch.cat(alone))


def make_lora(lm: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(lm, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def test_lora_keeps_to_the_language_model_and_is_saved_as_a_standard_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = make_model(tiny_llama)
    model.lm = make_lora(model.lm)
    assert not any("lora" in name for name in model.projector.state_dict())
    assert all(parameter.requires_grad for parameter in model.projector.parameters())
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.eval()
    expected = model(**make_batch()).logits
    gathered = tmp_path / "gathered"
    model.save_pretrained(tmp_path)
    model.save_pretrained(gathered, state_dict=model.state_dict())
    for folder in (tmp_path, gathered):
        assert not list(folder.glob("model*.safetensors")), "full weights beside an adapter would be loaded in its place"
        lm = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager"), folder)
        again = LlavaModel(lm, Patches(), build_projector("mlp2x_gelu", WIDTH, D)).eval()
        again.projector.load_state_dict(read_projector(folder / "projector.safetensors"))
        torch.testing.assert_close(again(**make_batch()).logits, expected, atol=1e-5, rtol=0)


class Rows(torch.utils.data.Dataset):
    """Four conversations with one picture each, of different numbers of targets."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(4, 50, (12,), generator=generator)
        labels = torch.where(torch.arange(12) < 6 + index, -100, ids)
        return {"input_ids": ids, "labels": labels, "pixels": torch.rand(3, SIZE, SIZE, generator=generator)}


def collate_rows(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return batch | {"image_at": (torch.arange(len(rows))[:, None] * 12 + torch.arange(1, 5)).flatten()}


@pytest.mark.parametrize("adapter", [False, True])
def test_trainer_divides_the_loss_of_accumulated_steps_once(tiny_llama: Path, tmp_path: Path, adapter: bool) -> None:
    from transformers import Trainer, TrainingArguments

    projectors = []
    for micro, accumulate in ((4, 1), (1, 4)):
        model = make_model(tiny_llama)
        if adapter:
            torch.manual_seed(4)
            model.lm = make_lora(model.lm)
        else:
            model.lm.requires_grad_(False)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / f"{micro}"), use_cpu=True, per_device_train_batch_size=micro, gradient_accumulation_steps=accumulate,
            max_steps=3, learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", save_strategy="no", remove_unused_columns=False,
            max_grad_norm=0.0, disable_tqdm=True, logging_steps=1, train_sampling_strategy="sequential",
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=Rows(), data_collator=collate_rows)
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        projectors.append((losses, model.projector[0].weight.detach()))
    assert projectors[0][0] == pytest.approx(projectors[1][0], abs=1e-4)
    torch.testing.assert_close(projectors[0][1], projectors[1][1], atol=1e-5, rtol=0)


MIXED_RANKS = """
import sys
from pathlib import Path

from torch import distributed

sys.path.insert(0, sys.argv[1])
import test_splice as parts


def main(folder, trained):
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig
    optimizer = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
    config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 3}, "optimizer": optimizer}
    config["zero_force_ds_cpu_optimizer"] = False
    tower = parts.Patches()  # no part of what follows
    kept = HfDeepSpeedConfig(config)  # from_pretrained divides the language model from here on
    model = parts.make_model(folder)
    assert tower.matrix.numel() and hasattr(model.lm.model.embed_tokens.weight, "ds_id")
    if trained == "lora":
        model.lm = parts.make_lora(model.lm)
    else:
        model.lm.requires_grad_(False)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=[p for p in model.parameters() if p.requires_grad], config=config)
    assert engine.zero_optimization_stage() == 3, engine.zero_optimization_stage()
    rank = distributed.get_rank()
    for step in range(4):
        batch = parts.make_batch()
        if step % 2 != rank or step == 3:  # one rank reads pictures, the other none; in the end none does
            batch = {name: batch[name] for name in ("input_ids", "labels")}
        engine.backward(engine(**batch).loss)
        engine.step()
    print("finished", trained, rank, flush=True)


def start():
    import deepspeed
    deepspeed.init_distributed("gloo")
    for trained in ("projector", "lora"):
        main(Path(sys.argv[2]), trained)


start()
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_with_and_without_pictures_do_not_wait_for_each_other(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed.py").write_text(MIXED_RANKS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--no_local_rank", "--master_port", str(port)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [str(tmp_path / "mixed.py"), str(Path(__file__).parent), str(tiny_llama)]
    done = subprocess.run([*launcher, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("finished") == 4
