"""Training with output_mode cells: what is learned, what is saved, that ranks and resumed runs agree; soft targets of image ids."""


import pytest
import torch
from llm_runs import build, largest_difference, lines
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from unicode.common.checkpoint import newest_checkpoint
from unicode.llm.card import read_card
from unicode.llm.cell_head import FILE
from unicode.llm.load import open_model

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
