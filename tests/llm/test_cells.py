"""Cells: an image of an answer takes one position for each cell, and a model folder opens with the head that it was trained with."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unicode.ids.layout import Layout
from unicode.ids.text import write_run
from unicode.llm.card import read_card, write_card
from unicode.llm.cell_head import FILE, CellHead, CellSettings, save_cell_head
from unicode.llm.examples import IGNORED, ExampleBuilder
from unicode.llm.load import open_model
from unicode.llm.template import get_template
from unicode.llm.vocabulary import Markers
from unicode.run.merge_lora import main as merge
from unicode.tokenizer.load import load_tokenizer

LAYOUT = Layout("hierarchical", ((2, 2), (4, 4)))
IDS = list(range(100, 120))


@pytest.fixture
def builder(byte_level) -> ExampleBuilder:
    return ExampleBuilder(get_template("vicuna_v1"), byte_level, Markers(500, 501, 502, 503), LAYOUT, 504, output_mode="cells")


def learned_cells(example) -> list[list[int]]:
    """The ids of the cells that are learned, in order."""
    cells = torch.cat((example.input_ids[example.extra_at][:, None], example.extra_ids), dim=1)
    return cells[example.labels[example.extra_at] != IGNORED].tolist()


CELLS = torch.tensor(IDS).view(4, 5)


@pytest.mark.parametrize(
    ("turns", "runs", "options", "cells", "marks"),
    [
        (["Draw.", write_run(IDS)], [], {}, CELLS, [500, 501]),
        (["", write_run(IDS)], [], {}, CELLS, [500, 501]),
        (["Draw.", "<image>"], [IDS[:10]], {}, CELLS[:2], [500, 501]),
        (["Draw.", "One: <image> two: <image>."], [IDS, IDS[:10]], {}, torch.cat((CELLS, CELLS[:2])), [500, 501] * 2),
        (["Unpack <image>.", "<image>"], [IDS, IDS], {"input_mode": "sum"}, CELLS, [500, 501]),
        (["<image> Again.", "<image>", "Now?", "A bus."], [IDS, IDS], {}, CELLS, [500, 501]),
        (["<image>\nWhat?", "A bus.", "Where?", "Here."], [IDS], {"isolate_turns": True}, CELLS[:0], []),
    ],
    ids=["drawing", "unconditional", "whole rows", "two in an answer", "decompression", "two turns", "isolated turns"],
)
def test_learned_are_exactly_the_cells_of_answers(builder, turns, runs, options, cells, marks):
    example, plain = builder.build(turns, runs, **options), replace(builder, output_mode="ids").build(turns, runs, **options)
    assert learned_cells(example) == cells.tolist()
    image = example.is_image
    assert (example.labels[image] != IGNORED).sum() == len(cells), "cells and nothing else of an image are learned"
    assert example.labels[~image].tolist() == plain.labels[~plain.is_image].tolist(), "words and markers are learned as with ids"
    assert example.input_ids[~image].tolist() == plain.input_ids[~plain.is_image].tolist()
    learned = example.labels != IGNORED
    assert torch.equal(example.labels[learned], example.input_ids[learned])
    assert [index for index in example.labels.tolist() if index in (500, 501, 502, 503)] == marks
    assert example.num_image_targets == plain.num_image_targets == cells.numel()
    assert len(example) == builder.measure(turns, runs, **options)


def test_an_open_image_ends_behind_its_given_cells(builder):
    for rows in range(3):
        example = builder.build(["Draw."], [IDS[: 10 * rows]], open_image=True)
        whole = builder.build(["Draw.", "<image>"], [IDS])
        assert torch.equal(example.input_ids, whole.input_ids[: len(example)])
        assert learned_cells(example) == CELLS[: 2 * rows].tolist()
        assert whole.is_image[len(example)] if rows < 2 else whole.input_ids[len(example)] == 501


def test_cells_need_a_layout(builder):
    with pytest.raises(ValueError, match=r"output_mode is 'cells', but the layout"):
        replace(builder, layout=None).build(["Draw.", "<image>"], [IDS])


@pytest.fixture
def run(tuned, tmp_path) -> Path:
    """A run folder of a model that writes cells, with a random head."""
    folder = tmp_path / "run"
    shutil.copytree(tuned.run, folder)
    card = read_card(folder)
    torch.manual_seed(0)
    rows = load_tokenizer(tuned.image_tokenizer).row_ids
    head = CellHead(CellSettings(width=24, heads=2), hidden_size=32, table_width=32, layout=card.layout, row_ids=rows)
    fingerprint = head.fingerprint(card.base_fingerprint)
    save_cell_head(folder, head.state_dict(), fingerprint=fingerprint)
    write_card(folder, replace(card, output_mode="cells", cells=head.describe() | {"fingerprint": fingerprint}))
    return folder


def test_a_folder_opens_with_its_head_merged_or_not(run, tuned, tmp_path):
    assert merge([str(run), str(tmp_path / "merged")]) == 0
    for folder in (run, tmp_path / "merged"):
        model = open_model(folder, device="cpu", dtype="bfloat16")
        assert model.cell_head is not None and not model.cell_head.training
        assert model.cell_head.steps.dtype == torch.bfloat16
        assert torch.equal(model.cell_head.row_ids, load_tokenizer(tuned.image_tokenizer).row_ids)
        assert model.prompt(["Draw.", write_run(range(20, 40)), "Again."]).example.extra_ids.shape == (4, 4)
    assert open_model(tuned.run, device="cpu").cell_head is None


def test_a_wrong_head_is_refused(run, tmp_path):
    card, cells = read_card(run), read_card(run).cells
    changed = [
        (cells | {"cell_length": 4}, "describes a cell head .*'cell_length': 4.* make it .*'cell_length': 5"),
        (cells | {"rows": 23}, "'rows': 23.*'rows': 24"),
        (cells | {"layers": 3}, "does not fit the head that the card describes"),
        (cells | {"fingerprint": "0" * 16}, "another table, set of image ids or layout"),
    ]
    for described, message in changed:
        write_card(run, replace(card, cells=described))
        with pytest.raises(ValueError, match=message):
            open_model(run, device="cpu")
    write_card(run, replace(card, layout=replace(card.layout, order="rows")))
    with pytest.raises(ValueError, match=r"not the tokenizer's 'rows'.*convert_tokenizer SRC OUT --order nested"):
        open_model(run, device="cpu")
    write_card(run, card)
    (run / FILE).write_bytes(b"0" * 100)
    with pytest.raises(ValueError, match="cannot be read"):
        open_model(run, device="cpu")
    (run / FILE).unlink()
    with pytest.raises(FileNotFoundError, match=FILE):
        open_model(run, device="cpu")
    with pytest.raises(ValueError, match="output_mode is 'cells', which needs a layout"):
        replace(card, cells=None)
