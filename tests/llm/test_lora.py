"""Which weights are trained: adapters, marker rows, whole models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from unicode.llm import lora
from unicode.llm.lora import LoraSettings, add_lora_, count_parameters, freeze_table_, marker_rows_train, shares_table
from unicode.llm.model import add_adapter, open_base
from unicode.llm.vocabulary import Markers

MARKERS = Markers(3, 50, 51, 52)
IDS = torch.tensor([[5, 3, 20, 21, 50, 7, 8]])


def step(model: torch.nn.Module) -> None:
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.1, weight_decay=0.0)
    for _ in range(2):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def open_tiny(folder: Path, *, tied: bool = True):
    model, _ = open_base(folder, device="cpu")
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert shares_table(model) == tied
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_learns_beside_frozen_weights(tiny_llama: Path, tmp_path: Path, tied: bool) -> None:
    model = open_tiny(tiny_llama, tied=tied)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = add_lora_(model, LoraSettings(r=2, alpha=4), MARKERS)
    learned, total = count_parameters(adapted)
    shapes = 4 * [(32, 32)] + 3 * [(32, 48)]  # of the linear layers of one block, of which there are two
    assert learned == 2 * 2 * sum(map(sum, shapes)) + 4 * 32 * (1 if tied else 2)
    assert learned < total
    step(adapted)
    for name, value in adapted.state_dict().items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".token_adapter", "")
        if plain in before:
            assert torch.equal(value, before[plain]), name
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    rows = [value for name, value in load_file(tmp_path / "adapter_model.safetensors").items() if "trainable_tokens" in name]
    assert [tuple(value.shape) for value in rows] == [(4, 32)] * (1 if tied else 2)


class Copies(TorchDispatchMode):
    """Counts tensors as large as a table that operations make, views of the tables left out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.count, self.numel = 0, 60 * 32
        self.tables = {weight.untyped_storage().data_ptr() for weight in model.parameters() if weight.numel() == self.numel}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.numel() == self.numel:
            self.count += made.untyped_storage().data_ptr() not in self.tables
        return made


@pytest.mark.parametrize("tied", [True, False])
def test_rows_beside_large_tables_need_no_copy_of_them(tiny_llama: Path, tmp_path: Path, monkeypatch, tied: bool) -> None:
    found, copies = [], []
    for large in (2**22, 0):
        monkeypatch.setattr(lora, "LARGE_TABLE", large)
        torch.manual_seed(0)
        adapted = add_lora_(open_tiny(tiny_llama, tied=tied), LoraSettings(r=2, alpha=4, dropout=0.0), MARKERS)
        rows = [value for name, value in adapted.named_parameters() if "trainable_tokens" in name]
        with torch.no_grad():
            for value in rows:
                value += 1
        with Copies(adapted) as seen:
            made = adapted(input_ids=IDS, labels=IDS, use_cache=False)
            made.loss.backward()
        copies.append(seen.count)
        with adapted.disable_adapter():
            plain = adapted(input_ids=IDS).logits
        adapted.save_pretrained(tmp_path / str(large), save_embedding_layers=False)
        found.append([made.logits, plain, *(value.grad for value in rows)])
    assert copies[0] > 0 and copies[1] == 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("0", "4194304"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    opened = add_adapter(open_tiny(tiny_llama, tied=tied), tmp_path / "0", merge=False)
    torch.testing.assert_close(opened(input_ids=IDS).logits, found[0][0], rtol=1e-4, atol=1e-6)
    merged = add_adapter(open_tiny(tiny_llama, tied=tied), tmp_path / "0", merge=True)
    torch.testing.assert_close(merged(input_ids=IDS).logits, found[0][0], rtol=1e-4, atol=1e-5)


def test_full_tuning_keeps_all_rows_but_those_of_markers(tiny_llama: Path) -> None:
    for tied in (True, False):
        model = open_tiny(tiny_llama, tied=tied)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        freeze_table_(model, sorted(MARKERS.ids()))
        step(model)
        for name, value in model.state_dict().items():
            changed = (value != before[name]).flatten(1).any(1).nonzero().flatten().tolist() if value.ndim > 1 else None
            if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                assert changed and set(changed) <= set(MARKERS.ids()), name
            elif changed is not None:
                assert changed, name


def test_marker_rows_and_zero() -> None:
    assert marker_rows_train(LoraSettings(), zero_stage=2)
    assert not marker_rows_train(LoraSettings(), zero_stage=3)
    assert not marker_rows_train(LoraSettings(train_markers="off"), zero_stage=0)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="does not work with ZeRO-3 on a CPU"):
            marker_rows_train(LoraSettings(train_markers="on"), zero_stage=3)
    with pytest.raises(ValueError, match="train_words does not work with ZeRO-3"):
        marker_rows_train(LoraSettings(enabled=False, train_words=True), zero_stage=3)
    with pytest.raises(ValueError, match="train_words needs full tuning"):
        LoraSettings(train_words=True)
    with pytest.raises(ValueError, match=r"lora\.train_markers 'perhaps'"):
        LoraSettings(train_markers="perhaps")
