"""Pictures written by cells: what the sampler writes is what the whole pass gives, in every batch, with everything that ids can do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from unicode.generate.engine import CachedDecoder
from unicode.generate.images import FREE_QUESTION, DrawRequest, ImageSampler, caption_request
from unicode.generate.sampling import Sampling, choose, guide
from unicode.ids.layout import Layout
from unicode.llm.cell_head import CellHead, CellSettings
from unicode.llm.load import Prompt

LAYOUTS = [Layout("hierarchical", ((1, 2), (2, 4))), Layout("hierarchical", ((1, 1), (2, 2), (4, 4))), Layout("residual", ((2, 2),), 4)]


def requests(number: int) -> list[DrawRequest]:
    words = ["a red circle", "two blue squares and a very green triangle at the top left", "a cross"]
    return [caption_request(words[index % 3], seed=index) for index in range(number)]


@torch.no_grad()
def whole_passes(model, request: DrawRequest, sampling: Sampling) -> list[int]:
    """Draw without caches, folded tables or shortcuts: every position and every step computes everything before it again."""
    head, layout, embed = model.cell_head, model.layout, model.causal.get_input_embeddings()
    sampler = ImageSampler(model, sampling=sampling)
    asked = [request, replace(request, question=FREE_QUESTION)] if sampling.guided else [request]
    read = [model.inputs([Prompt(sampler.prompt(one))]) for one in asked]
    read = [one["inputs_embeds"] if "inputs_embeds" in one else embed(one["input_ids"]) for one in read]
    rows, found, number = embed(head.row_ids), [*request.given.tolist()], 0
    while len(found) < layout.num_codes:
        states = torch.cat([model.causal.get_decoder()(inputs_embeds=one, use_cache=False).last_hidden_state[:, -1] for one in read])
        cell: list[int] = []
        for _ in range(layout.cell_length):
            logits = F.linear(head(states, embed(torch.tensor([cell] * len(asked), dtype=torch.int64)))[:, -1], rows)
            logits = guide(logits, sampling.guidance) if sampling.guided else logits
            cell.append(int(choose(logits, head.row_ids, sampling, seeds=torch.tensor([request.seed]), step=number)))
            number += 1
        read = [torch.cat((one, embed(torch.tensor([cell])).sum(1, keepdim=True)), 1) for one in read]
        found += cell
    return found


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, 12, 0.9, 3.0), Sampling(temperature=0)], ids=["plain", "guided", "greedy"])
def test_a_picture_is_that_of_whole_passes_in_every_batch(cells_model, sampling):
    together = ImageSampler(cells_model, sampling=sampling).draw(requests(4))
    static = ImageSampler(cells_model, sampling=sampling, decoder=CachedDecoder(cells_model.causal, cache="static")).draw(requests(3))
    for place, request in enumerate(requests(4)):
        expected = whole_passes(cells_model, request, sampling)
        assert together[place].ids.tolist() == expected and len(expected) == 20, together[place].error
        assert place == 3 or np.array_equal(static[place].ids, together[place].ids)
    assert len({tuple(drawing.ids) for drawing in together}) > 1


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@torch.no_grad()
def test_step_probabilities_are_those_of_the_whole_cell(layout):
    torch.manual_seed(0)
    row_ids = torch.randperm(90)[:40]
    head = CellHead(CellSettings(width=24, heads=2), hidden_size=20, table_width=16, layout=layout, row_ids=row_ids).double()
    states, rows, seen = torch.randn(6, 20).double(), 0.05 * torch.randn(40, 16).double(), []
    tables = head.tables(rows)

    def pick(outputs, step):
        seen.append(F.linear(outputs, tables.outputs).log_softmax(-1))
        return head.row_ids[seen[-1].exp().multinomial(1)[:3, 0]]

    ids = head.sample(states, tables, choose=pick)
    assert ids.shape == (3, layout.cell_length) and torch.isin(ids, row_ids).all()
    given = rows[head.targets(ids[:, :-1])].repeat(2, 1, 1)
    expected = F.linear(head(states, given), rows).log_softmax(-1)
    assert torch.allclose(torch.stack(seen, 1), expected, rtol=1e-9, atol=1e-9)
