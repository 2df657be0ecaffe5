"""Pictures written by cells: what the sampler writes is what the whole pass gives, in every batch, with everything that ids can do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from unicode.generate.answers import AnswerConfig, answer_questions
from unicode.generate.chat import load_model
from unicode.generate.engine import CachedDecoder, ImageHead, decode_answers
from unicode.generate.images import FREE_QUESTION, DrawRequest, ImageSampler, caption_request
from unicode.generate.interleaved import ChatSampler
from unicode.generate.questions import AskedQuestion
from unicode.generate.sampling import Sampling, choose, guide
from unicode.ids.layout import Layout
from unicode.ids.text import split_runs, write_run
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


def test_one_compiled_step_draws_all_cells(cells_model, monkeypatch):
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, **_: compile_(step, backend=counter, dynamic=False))
    decoder, sampling = CachedDecoder(cells_model.causal, cache="static", compiled=True), Sampling(guidance=2.0)
    compiled = [ImageSampler(cells_model, sampling=sampling, decoder=decoder).draw(requests(2)) for _ in range(2)][1]
    plain = ImageSampler(cells_model, sampling=sampling).draw(requests(2))
    assert all(np.array_equal(one.ids, other.ids) for one, other in zip(compiled, plain, strict=True))
    assert counter.frame_count == 1 and decoder._compiled is not None


def test_given_rows_are_kept_and_compressed_images_are_read(cells_model):
    sampling = Sampling(0.9, guidance=2.0)
    sampler, ids = ImageSampler(cells_model, sampling=sampling), cells_model.images.row_ids[:20].numpy()
    begun = DrawRequest("Draw a ring.", seed=3, given=ids[:10])
    packed = DrawRequest(f"Restore {write_run(ids)}.", seed=4, compressed=True)
    plain = caption_request("a red circle", seed=5)
    drawn = sampler.draw([packed, begun, plain])
    for request, drawing in zip([packed, begun, plain], drawn, strict=True):
        assert drawing.ids.tolist() == whole_passes(cells_model, request, sampling), drawing.error
    assert drawn[1].ids[:10].tolist() == ids[:10].tolist()
    assert len(sampler.prompt(begun)) == len(sampler.prompt(replace(begun, given=ids[:0]))) + 2


def test_the_context_holds_cells_and_not_ids(cells_model):
    sampler, ids = ImageSampler(cells_model), cells_model.images.row_ids[:20].numpy()
    request = DrawRequest("Draw.", given=ids[:10])
    model = replace(cells_model)
    model.context = len(sampler.prompt(request)) + 2
    assert not ImageSampler(model).draw([request])[0].error
    model.context -= 1
    assert "with 2 positions to write" in ImageSampler(model).draw([request])[0].error


@pytest.fixture
def eager(cells_model):
    """The model with start markers as likely as anything else."""
    start, head = cells_model.markers.image_start, cells_model.lm.get_output_embeddings().weight
    before = head[start].clone()
    with torch.no_grad():
        head[start] = 3 * head[torch.tensor([5, 30, 60])].mean(0)
    yield cells_model
    with torch.no_grad():
        head[start] = before


def test_answers_mix_words_and_cells_as_each_alone(eager):
    asked = ["Draw a bus.", "And now?", "What is a red circle at the top left?", "Two."]
    sampler = ChatSampler(eager, words=Sampling(1.5), pictures=Sampling(0.8, 12), num_tokens=40, max_pictures=3)
    together = sampler.answer([[one] for one in asked], [[]] * 4, seeds=range(4))
    alone = [sampler.answer([[one]], [[]], seeds=[seed])[0] for seed, one in enumerate(asked)]
    assert together == alone
    runs = [[piece.ids for piece in split_runs(turn) if piece.ids is not None] for turn in together]
    assert len({len(one) for one in runs}) > 1, "rows at words and rows at cells"
    assert all(len(run) == 20 and np.isin(run, eager.images.row_ids.numpy()).all() for one in runs for run in one)


def test_a_picture_in_an_answer_is_that_of_whole_passes(eager):
    prompt, sampler = eager.prompt(["Draw a bus."]), ChatSampler(eager, words=Sampling(1.5), num_tokens=40)
    features = sampler.decoder.start(**eager.inputs([prompt]), max_new=40)
    options = {"limits": [40], "end_ids": eager.end_ids, "words": Sampling(1.5), "images": Sampling(0.8), "max_images": 1}
    decoded = decode_answers(sampler.decoder, features, seeds=[11], head=sampler.head, **options)
    (ids,), (length,), (ended,) = decoded.ids, decoded.lengths, decoded.ended
    start = ids.index(eager.markers.image_start)
    assert ids[start + 21] == eager.markers.image_end and length == len(ids) + ended - 16
    embed, head, found = eager.causal.get_input_embeddings(), eager.cell_head, []
    for cell in range(4):
        rows = embed(torch.tensor([*prompt.example.input_ids.tolist(), *ids[: start + 1]]))
        rows = torch.cat((rows, *(embed(torch.tensor(one)).sum(0, keepdim=True) for one in np.reshape(found, (-1, 5)))))
        state = eager.causal.get_decoder()(inputs_embeds=rows[None], use_cache=False).last_hidden_state[:, -1]

        def pick(outputs, step, cell=cell):
            logits = head.tables(embed(head.row_ids)).logits(outputs)
            return choose(logits, head.row_ids, Sampling(0.8), seeds=torch.tensor([11]), step=(start + 1 + cell) * 5 + step)

        found += head.sample(state, head.tables(embed(head.row_ids)), choose=pick)[0].tolist()
    assert found == ids[start + 1 : start + 21]


def test_questions_are_answered_with_whole_pictures_within_the_limit(eager):
    questions = [AskedQuestion(text, id=text) for text in ("Draw a bus.", "What?", "A red circle?")]
    config = AnswerConfig(batch_size=3, max_new_tokens=30, temperature=1.5)
    found = dict(answer_questions(eager, questions, config=config))
    alone = [next(answer_questions(eager, [one], config=config))[1] for one in questions]
    assert [found[place].text for place in range(3)] == [one.text for one in alone]
    runs = [piece.ids for one in alone for piece in split_runs(one.text) if piece.ids is not None]
    assert runs and all(len(run) == 20 for run in runs) and all(one.num_tokens <= 30 for one in alone)
    assert any(len(one.ids) > 30 for one in alone)


def test_load_model_draws(tuned_cells):
    assert load_model(tuned_cells.run, device="cpu").draw("a red circle", seed=1, guidance=2).size == (16, 16)


def test_heads_that_do_not_fit(cells_model):
    decoder, head = CachedDecoder(cells_model.causal), cells_model.cell_head
    with pytest.raises(ValueError, match="other image ids"):
        ImageHead(decoder, head.row_ids[:7], head.layout, markers=cells_model.markers, cells=head)
    with pytest.raises(ValueError, match="writes images of hierarchical 2x2"):
        ImageHead(decoder, head.row_ids, LAYOUTS[0], markers=cells_model.markers, cells=head)
    with pytest.raises(ValueError, match="without its cell head"):
        ImageSampler(replace(cells_model, cell_head=None))


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
    given = rows[torch.searchsorted(head.row_ids, ids[:, :-1].contiguous())].repeat(2, 1, 1)
    expected = F.linear(head(states, given), rows).log_softmax(-1)
    assert torch.allclose(torch.stack(seen, 1), expected, rtol=1e-9, atol=1e-9)
