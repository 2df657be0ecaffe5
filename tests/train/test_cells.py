"""Training with output_mode cells: what is learned, what is saved, that ranks and resumed runs agree; soft targets of image ids."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from llm_runs import ADAPTER, build, largest_difference, lines, losses, train
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from warm import run_ranks, start

from unicode.common.checkpoint import newest_checkpoint
from unicode.ids.layout import Layout
from unicode.llm.card import read_card
from unicode.llm.cell_head import FILE
from unicode.llm.load import open_model
from unicode.train import loss, soft_targets
from unicode.train.llm import LlmTrainer
from unicode.train.loss import IMAGE, TEXT, LossTable, _cross_entropy, find_places, find_targets
from unicode.train.soft_targets import spread_targets

ROOT = Path(__file__).parents[2]
FULL = ["lora.enabled=false", "optimizer.lr=1e-3"]


@pytest.mark.parametrize("changes", [[], FULL], ids=["lora", "full"])
def test_a_run_leaves_a_head_that_opens_as_it_was_trained(cells_overrides: list[str], changes: list[str]) -> None:
    training = build(cells_overrides, *changes, "model.input_mode=sum")
    first = {name: value.clone() for name, value in training.model.cell_head.state_dict().items()}
    run = training.run()
    held_out = [line for line in lines(run) if "eval_loss" in line]
    assert held_out[-1]["eval_image_loss"] < held_out[0]["eval_image_loss"]
    assert {"loss/level_0", "loss/level_1", "text_loss", "image_loss"} <= set().union(*lines(run))
    trained = training.model.cell_head.state_dict()
    assert not torch.equal(first["steps"], trained["steps"])
    card = read_card(run)
    assert card.output_mode == "cells"
    assert card.cells is not None
    assert card.cells["cell_length"] == 5
    for folder in (run, newest_checkpoint(run)):
        assert folder is not None
        assert largest_difference(trained, load_file(folder / FILE)) == 0.0
        names = [path for path in folder.glob("*.safetensors") if path.name != FILE]
        assert names
        assert not any("cell_head" in name for path in names for name in load_file(path))
    model = open_model(run, device="cpu")
    assert model.cell_head is not None
    assert largest_difference(trained, model.cell_head.state_dict()) == 0.0
    if changes:
        _, report = AutoModelForCausalLM.from_pretrained(run, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]


def test_the_loss_is_that_of_the_steps_of_the_sampler(cells_overrides: list[str]) -> None:
    """In float64, teacher-forced: -log of the product of the probabilities that `CellHead.sample` gives, and of the words'."""
    training = build(cells_overrides)
    trainer = LlmTrainer(training)
    model, head = training.model.double().eval(), training.model.cell_head
    batch = trainer.data_collator([training.data.train[index] for index in (0, 45, 46)])
    with torch.no_grad():
        found, targets = trainer._forward(model, batch)
        logits = model(**batch["inputs"], logits_at=targets.at, use_cache=False).cell_logits
        states = []
        keep = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: states.append(args[0]))
        inputs = {name: value for name, value in batch["inputs"].items() if name not in ("cells", "cells_at")}
        model(**inputs, use_cache=False)
        keep.remove()
        cells, before = batch["inputs"]["cells"], states[0].flatten(0, 1)[batch["inputs"]["cells_at"]]
        tables, steps = head.tables(model.get_input_embeddings()(head.row_ids)), []

        def choose(outputs: torch.Tensor, step: int) -> torch.Tensor:
            logits = outputs @ tables.outputs.T
            steps.append(logits.log_softmax(1).gather(1, cells[:, step, None]))
            return head.row_ids[cells[:, step]]

        written = head.sample(before, tables, choose=choose)
    assert len(cells) == 8
    assert torch.equal(written, head.row_ids[cells])
    expected = -torch.cat(steps, dim=1).flatten()
    places = cells.flatten()[:, None]
    torch.testing.assert_close(-logits.log_softmax(1).gather(1, places)[:, 0], expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(found[len(targets.at) :].double(), expected, atol=1e-5, rtol=0)


def test_cut_packed_or_isolated_the_same_is_learned(cells_overrides: list[str], tmp_path: Path) -> None:
    settings = [*cells_overrides, "lora.dropout=0", "data.val_files=[]", "train.steps=6", "train.save_every=0", "train.log_every=1"]
    settings += ["model.input_mode=sum", "data.isolate_turns=true", "optimizer.code_smoothing=0.3"]
    whole = train(settings, f"run.dir={tmp_path / 'whole'}")
    changes = {"parts": ["train.micro_batch_size=1"], "packed": ["data.pack=true", "train.micro_batch_size=4"], "again": []}
    changes["again"] = ["model.gradient_checkpointing=true"]
    for name, change in changes.items():
        run = train(settings, f"run.dir={tmp_path / name}", *change)
        assert largest_difference(losses(whole), losses(run)) < 1e-4, name
        assert largest_difference(load_file(whole / ADAPTER), load_file(run / ADAPTER)) < 1e-3, name
        assert largest_difference(load_file(whole / FILE), load_file(run / FILE)) < 1e-3, name


def test_bfloat16_trains(cells_overrides: list[str], own_accelerator: None) -> None:
    run = train(cells_overrides, "run.precision=bf16", "train.steps=4", "data.val_files=[]", "optimizer.code_smoothing=0.3")
    assert all(
        value.dtype == torch.float32 and value.isfinite().all() for name, value in load_file(run / FILE).items() if name != "row_ids"
    )


@pytest.mark.parametrize("changes", [[], [*FULL, "lora.train_words=true", "optimizer.code_smoothing=0.4"]], ids=["lora", "full"])
def test_killed_and_started_again_it_ends_with_the_same_bits(cells_overrides: list[str], tmp_path: Path, changes: list[str]) -> None:
    (tmp_path / "empty.yaml").write_text("{}\n")
    settings = [*cells_overrides, *changes, "train.micro_batch_size=4", "data.val_files=[]"]
    whole = train(settings, f"run.dir={tmp_path / 'whole'}")
    words = (tmp_path / "empty.yaml", *settings, "train.save_every=2")
    first = start("train_llm", *words, log=tmp_path / "first.log")
    while newest_checkpoint(tmp_path / "llm") is None:
        assert first.process.is_alive(), first.printed
        time.sleep(0.02)
    os.kill(first.process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    first.process.join()
    second = start("train_llm", *words, log=tmp_path / "second.log")
    assert second.wait() == 0, second.printed
    assert "resuming" in second.printed
    for name in (FILE, "model.safetensors" if changes else ADAPTER):
        assert largest_difference(load_file(whole / name), load_file(tmp_path / "llm" / name)) == 0.0


ZERO = [pytest.param(stage, marks=pytest.mark.slow) for stage in ("zero2", "zero3")]


@pytest.mark.parametrize("engine", ["ddp", *ZERO])
@pytest.mark.parametrize("changes", [[], pytest.param(FULL, marks=pytest.mark.slow)], ids=["lora", "full"])
def test_two_ranks_equal_one(cells_overrides: list[str], tmp_path: Path, engine: str, changes: list[str]) -> None:
    """Same losses and weights; micro-batches of two with and without cells, so that some ranks have none."""
    (tmp_path / "empty.yaml").write_text("{}\n")
    settings = [*cells_overrides, *changes, "lora.dropout=0", "train.steps=8", "train.save_every=0", "train.log_every=1"]
    settings += ["model.gradient_checkpointing=true", f"lora.train_markers={'off' if engine == 'zero3' else 'on'}"]
    one = train(settings, f"run.dir={tmp_path / 'one'}")
    engines = [] if engine == "ddp" else [f"run.deepspeed={ROOT}/configs/deepspeed/{engine}.json"]
    more = [*settings, *engines, "train.micro_batch_size=2", "train.save_every=4"]
    run_ranks("train_llm", tmp_path / "empty.yaml", *more, logs=tmp_path, DS_ACCELERATOR="cpu", ACCELERATE_USE_CPU="true")
    two = tmp_path / "llm"
    assert largest_difference(losses(one), losses(two)) < 1e-3
    for name in (FILE, "model.safetensors" if changes else ADAPTER):
        found, expected = load_file(two / name), load_file(one / name)
        found.pop("lm_head.weight", None)  # DeepSpeed saves a tied table twice
        assert largest_difference(expected, found) < 1e-3
    assert len(list((two / "checkpoint-8").rglob("*optim_states.pt"))) == (0 if engine == "ddp" else 2)
    assert largest_difference(load_file(two / FILE), load_file(two / "checkpoint-8" / FILE)) == 0.0
    (two / "summary.json").unlink()
    shutil.rmtree(two / "checkpoint-8")
    whole = load_file(two / FILE)
    run_ranks("train_llm", tmp_path / "empty.yaml", *more, logs=tmp_path, DS_ACCELERATOR="cpu", ACCELERATE_USE_CPU="true")
    assert largest_difference(whole, load_file(two / FILE)) == 0.0, "resumed with other bits"


def test_words_learn_and_rows_of_pictures_stay(cells_overrides: list[str], tiny_llama: Path) -> None:
    training = build(cells_overrides, *FULL, "lora.train_words=true", "optimizer.weight_decay=0.1", "train.steps=4")
    run, pictures = training.run(), training.data.image_ids
    assert pictures is not None
    before, after = (load_file(path / "model.safetensors")["model.embed_tokens.weight"] for path in (tiny_llama, run))
    changed = (before != after).any(dim=1)
    assert changed.any() and not changed[pictures].any()


def test_the_head_has_a_learning_rate_of_its_own(cells_overrides: list[str]) -> None:
    training = build(cells_overrides, "optimizer.cell_head_lr=0.01", "optimizer.weight_decay=0.1")
    groups = LlmTrainer(training).create_optimizer().param_groups
    found = {(group["lr"], group["weight_decay"]): sum(map(torch.numel, group["params"])) for group in groups}
    head = list(training.model.cell_head.parameters())
    assert found[0.01, 0.1] == sum(part.numel() for part in head if part.ndim > 1)
    assert found[0.01, 0.0] == sum(part.numel() for part in head if part.ndim == 1)


def test_a_batch_learns_words_and_cells_and_counts_no_other(cells_overrides: list[str]) -> None:
    training = build(cells_overrides, "model.input_mode=sum")
    collator, data = LlmTrainer(training).data_collator, training.data.train
    reading, drawing, talking = 0, 40, 80
    examples = [data[index] for index in (reading, drawing, talking)]
    batch = collator(examples)
    targets, head = batch["targets"], training.model.cell_head
    width = max(map(len, examples))
    at, ids = examples[1].extra_at, torch.cat((examples[1].input_ids[examples[1].extra_at][:, None], examples[1].extra_ids), 1)
    assert torch.equal(batch["inputs"]["cells_at"], at + width - 1)
    assert torch.equal(head.row_ids[batch["inputs"]["cells"]], ids)
    words = len(targets.at)
    assert words == sum(example.num_text_targets for example in examples)
    assert (targets.kinds[:words] == TEXT).all()
    assert (targets.kinds[words:] == IMAGE).all()
    assert targets.levels.tolist() == [0] * words + [1, 2, 2, 2, 2] * 4
    assert targets.total_weights().tolist() == [words, 20]
    alone = collator([data[reading], data[talking]])
    assert (alone["inputs"]["cells"].shape, alone["targets"].total_weights()[IMAGE]) == ((1, 5), 0)
    table = LossTable(torch.device("cpu"), levels=2)
    table.add(torch.ones(len(alone["targets"].ids)), alone["targets"])
    assert table.take().keys() == {"text_loss", "text_targets", "loss/image_to_text", "loss/text_only"}
    with pytest.raises(ValueError, match=r"holds the id 5, which model\.image_tokenizer does not write"):
        find_places(torch.tensor([[5]]), head.row_ids)


def test_levels_of_ids_are_those_of_their_places() -> None:
    layout = Layout("hierarchical", ((1, 2), (2, 4)))
    image = torch.tensor([[0, *[1] * 10, 0, 0, 1, 1, 1, 1, 1, 0]]).bool()
    found = find_targets(torch.ones_like(image).long(), image, torch.zeros_like(image).long(), torch.ones(1), layout=layout)
    assert found.levels.tolist() == [1, 2, 2, 2, 2, 1, 2, 2, 2, 2, 0, 0, 1, 2, 2, 2, 2, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.image_tokenizer="], r"model\.output_mode=cells needs the codebook of the image tokenizer"),
        (
            ["model.output_mode=ids", "model.image_tokenizer=", "optimizer.code_smoothing=0.4"],
            r"optimizer\.code_smoothing needs the codebook",
        ),
        (["model.output_mode=ids", "model.image_tokenizer=", *FULL, "lora.train_words=true"], r"lora\.train_words needs the codebook"),
        (["optimizer.code_smoothing=1"], r"code_smoothing 1\.0 is a share"),
        (["vision.enabled=true", "vision.path=tower"], r"model\.output_mode=cells is for image ids, but vision\.enabled=true"),
        (["model.output_mode=cell"], "'cell' is unknown; choose ids, cells"),
        (["cells.heads=5"], r"cells\.width 32 is no multiple of cells\.heads 5"),
    ],
)
def test_what_cannot_work_is_refused(cells_overrides: list[str], changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(cells_overrides, *changes)


def test_another_head_in_the_run_folder_is_refused(cells_overrides: list[str]) -> None:
    train(cells_overrides, "train.steps=2", "data.val_files=[]")
    with pytest.raises(ValueError, match=r"cells\.layers=2, this one has 3"):
        build(cells_overrides, "cells.layers=3")
    with pytest.raises(ValueError, match=r"model\.output_mode=cells, this one has ids"):
        build(cells_overrides, "model.output_mode=ids")


@pytest.mark.parametrize("limit", [2048, 8], ids=["all rows", "nearest rows"])
def test_soft_targets_are_spread_by_distance(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(soft_targets, "LIMIT", limit)
    monkeypatch.setattr(soft_targets, "NEAREST", 12)
    random = torch.Generator().manual_seed(0)
    books = [torch.randn(30, 4, generator=random), torch.randn(30, 6, generator=random)]
    row_ids = torch.randperm(50, generator=random)[:30]
    soft = spread_targets(books, row_ids, levels=3, smoothing=0.4, device=torch.device("cpu"))
    order = row_ids.argsort()
    places, levels = torch.randint(0, 30, (200,), generator=random), torch.randint(0, 4, (200,), generator=random)
    whole = torch.zeros(4, 30, 30)  # shares of every place, by level
    whole[0] = torch.eye(30)
    for level in (1, 2, 3):
        rows = books[min(level, 2) - 1][order]
        near, shares = soft.of(torch.arange(30), torch.full((30,), level), in_vocabulary=False)
        whole[level].scatter_(1, torch.arange(30).expand(30, 30) if near is None else near, shares)
        assert float(whole[level].diagonal().mean()) == pytest.approx(0.6, abs=1e-5)
        distance = torch.cdist(rows, rows).square()
        first, second = (whole[level][0].topk(3).indices[1:]).tolist()
        t = float((distance[0, second] - distance[0, first]) / (whole[level][0, first] / whole[level][0, second]).log())
        expected = torch.softmax(-distance / t, 1)
        if limit > 30:
            torch.testing.assert_close(whole[level], expected, atol=1e-4, rtol=0)
    logits = torch.randn(200, 30, generator=random)
    found = _cross_entropy(logits, places, levels, soft, in_vocabulary=False)
    torch.testing.assert_close(found, F.cross_entropy(logits, whole[levels, places], reduction="none"))
    wide, words = torch.randn(200, 50, generator=random), row_ids.sort().values
    targets = torch.zeros(200, 50).index_add_(1, words, whole[levels, places])
    found = _cross_entropy(wide, words[places], levels, soft, in_vocabulary=True)
    torch.testing.assert_close(found, F.cross_entropy(wide, targets, reduction="none"))
    monkeypatch.setattr(loss, "CHUNK", 700)
    torch.testing.assert_close(_cross_entropy(wide, words[places], levels, soft, in_vocabulary=True), found)


@pytest.mark.parametrize("mode", ["ids", "cells"])
def test_soft_targets_are_for_training_alone(cells_overrides: list[str], mode: str) -> None:
    training = build(cells_overrides, f"model.output_mode={mode}", "optimizer.code_smoothing=0.4")
    trainer = LlmTrainer(training)
    batch = trainer.data_collator([training.data.train[index] for index in (0, 40, 80)])
    for part in training.model.train().modules():
        part.training &= not isinstance(part, torch.nn.Dropout)
    soft, targets = trainer._forward(training.model, batch)
    hard, _ = trainer._forward(training.model.eval(), batch)
    image = targets.kinds == IMAGE
    torch.testing.assert_close(soft[~image], hard[~image])
    assert ((soft[image] - hard[image]).abs() > 1e-4).any()
