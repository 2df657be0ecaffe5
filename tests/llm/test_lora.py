"""Which weights are trained: adapters, marker rows, whole models."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unicode.llm.lora import LoraSettings, add_lora_, count_parameters, freeze_table_, marker_rows_train, shares_table
from unicode.llm.model import open_base
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


def test_full_tuning_keeps_all_rows_but_those_of_markers(tiny_llama: Path) -> None:
    for tied in (True, False):
        model = open_tiny(tiny_llama, tied=tied)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        freeze_table_(model, MARKERS)
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
    with pytest.raises(ValueError, match=r"lora\.train_markers 'perhaps'"):
        LoraSettings(train_markers="perhaps")
