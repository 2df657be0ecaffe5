"""Blocks of exactly the right length and levels, whatever the scores; none without the constraint."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList

from unicode.generate.engine import OUTSIDE, CachedDecoder, ImageConstraint
from unicode.generate.interleaved import write_answers
from unicode.generate.sampling import Sampling
from unicode.ids.layout import Layout
from unicode.llm.vocabulary import Markers

VOCAB = 64
MARKERS = Markers(60, 61, 62, 63)
NESTED = Layout("hierarchical", ((1, 2), (2, 4)))
ROWS = Layout("hierarchical", ((1, 2), (2, 4)), order="rows")
DEEP = Layout("residual", ((2, 3),), depth=3)
COARSE, FINE = torch.arange(5, 20), torch.arange(15, 50)
END = 2


@pytest.fixture(scope="module")
def lm() -> LlamaForCausalLM:
    """Random weights, loud enough that start markers come often."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes)).eval()
    with torch.no_grad():
        model.lm_head.weight *= 10
        model.lm_head.weight[MARKERS.image_start] = model.lm_head.weight.mean(0)
    return model


def level_ids(layout: Layout) -> list[torch.Tensor]:
    return [COARSE, FINE] if layout.num_levels == 2 else [COARSE, FINE, COARSE]


def blocks_of(row: list[int], layout: Layout, num_ids: int) -> int:
    """Count the blocks of an answer after checking each of them: length, levels, markers."""
    count, place, levels, sets = 0, 0, layout.levels().tolist(), [set(ids.tolist()) for ids in level_ids(layout)]
    while place < len(row):
        if row[place] == MARKERS.image_start:
            block = row[place + 1 : place + 1 + num_ids]
            assert len(block) == num_ids, "a block that was cut off"
            assert all(token in sets[level] for token, level in zip(block, levels, strict=False))
            assert row[place + 1 + num_ids] == MARKERS.image_end
            count, place = count + 1, place + num_ids + 2
            continue
        assert row[place] not in MARKERS.ids()
        place += 1
    return count


@pytest.mark.parametrize(("layout", "num_ids"), [(NESTED, 0), (ROWS, 0), (DEEP, 0), (DEEP, DEEP.row_length)], ids=str)
def test_a_thousand_answers_are_exact(lm, layout, num_ids):
    length = num_ids or layout.num_codes
    decoder, found, free = CachedDecoder(lm), [], []
    for start in range(0, 250, 50):
        torch.manual_seed(start)
        prompts = torch.randint(5, 60, (50, 4))
        constraint = ImageConstraint(MARKERS, layout, level_ids(layout), vocab_size=VOCAB, num_ids=num_ids, max_blocks=3)
        constraint.begin(prompts)
        features = decoder.start(torch.ones_like(prompts), input_ids=prompts, max_new=70)
        seeds = torch.arange(start, start + 50)
        answers = write_answers(
            decoder, features, constraint, num_tokens=70, end_ids=[END], seeds=seeds, words=Sampling(2.0), pictures=Sampling(1.5, top_k=8)
        )
        found += [blocks_of(row, layout, length) for row in answers.tolist()]
        loose = lm.generate(prompts, max_new_tokens=70, do_sample=True, temperature=2.0, eos_token_id=END, pad_token_id=0)
        free += loose[:, 4:].tolist()
    assert len(found) == 250 and len(set(found)) > 2 and max(found) <= 3
    whole = 0
    for row in free:
        try:
            whole += blocks_of(row, layout, length) > 0
        except (AssertionError, IndexError):
            continue
    assert whole == 0, "a block came out right without the constraint"


@pytest.mark.parametrize("layout", [NESTED, ROWS, DEEP], ids=str)
def test_in_the_generation_of_transformers(lm, layout):
    torch.manual_seed(1)
    prompts = torch.randint(5, 60, (32, 5))
    prompts[:8, -1] = MARKERS.image_start
    prompts[8, -2:] = torch.tensor([MARKERS.image_start, 7])
    constraint = ImageConstraint(MARKERS, layout, level_ids(layout), vocab_size=VOCAB, max_blocks=2, max_length=65)
    answers = lm.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=60, do_sample=True, temperature=2.0, eos_token_id=END,
        pad_token_id=0, logits_processor=LogitsProcessorList([constraint]),
    )  # fmt: skip
    counts = [blocks_of(row, layout, layout.num_codes) for row in answers.tolist()]
    assert min(counts[:9]) >= 1 and max(counts) == 2


def test_no_block_where_the_task_allows_none(lm):
    constraint = ImageConstraint(MARKERS, NESTED, COARSE, vocab_size=VOCAB, max_blocks=0)
    constraint.begin(torch.ones(3, 2, dtype=torch.int64))
    allowed = constraint.mask(torch.zeros(3, VOCAB)).isfinite()
    assert not allowed[:, list(MARKERS.ids())].any() and allowed.sum() == 3 * (VOCAB - 4)


def test_the_states_of_rows_are_their_own():
    constraint = ImageConstraint(MARKERS, NESTED, [COARSE, FINE], vocab_size=VOCAB)
    constraint.begin(torch.tensor([[1, 1, 60], [60, 7, 9], [60, 7, 61]]))
    assert constraint.step.tolist() == [0, 2, OUTSIDE] and constraint.blocks.tolist() == [1, 1, 0]
    allowed = constraint.mask(torch.zeros(3, VOCAB)).isfinite()
    assert allowed[0].nonzero().flatten().tolist() == COARSE.tolist()
    assert allowed[1].nonzero().flatten().tolist() == FINE.tolist()
    assert allowed[2, 60] and not allowed[2, 61]
    assert constraint.survey(torch.tensor([False, False, True])) == (False, 8)
    assert constraint.survey(torch.tensor([False, False, False])) == (False, 0)
    assert constraint.survey(torch.tensor([True, True, True]))[0]
    for _ in range(8):
        constraint.advance(torch.tensor([7, 16, 30]))
    assert constraint.step.tolist() == [8, 10, OUTSIDE]
    assert constraint.mask(torch.zeros(3, VOCAB)).isfinite()[1].nonzero().flatten().tolist() == [61]
    constraint.advance(torch.tensor([7, 61, 60]))
    assert constraint.step.tolist() == [9, OUTSIDE, 0]
    assert not constraint.mask(torch.zeros(3, VOCAB)).isfinite()[1, 60], "one block was allowed"


def test_a_block_that_would_not_fit_does_not_begin():
    constraint = ImageConstraint(MARKERS, NESTED, COARSE, vocab_size=VOCAB)
    constraint.begin(torch.ones(1, 3, dtype=torch.int64))
    constraint.limit(12)
    assert constraint.mask(torch.zeros(1, VOCAB)).isfinite()[0, 60]
    constraint.advance(torch.ones(1, dtype=torch.int64))
    assert not constraint.mask(torch.zeros(1, VOCAB)).isfinite()[0, 60]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"row_ids": torch.tensor([5, 64])}, "ids 0 to 63"),
        ({"row_ids": torch.tensor([], dtype=torch.int64)}, "range from none"),
        ({"row_ids": torch.tensor([5, 61])}, "id 61 is a marker"),
        ({"row_ids": [COARSE] * 3}, "3 sets of image ids"),
        ({"row_ids": COARSE, "num_ids": 11}, "1 to 10"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageConstraint(MARKERS, NESTED, vocab_size=VOCAB, **arguments)


def test_a_prompt_with_too_many_ids():
    constraint = ImageConstraint(MARKERS, NESTED, COARSE, vocab_size=VOCAB)
    with pytest.raises(ValueError, match="begins an image with 11 ids; a block here has 10"):
        constraint.begin(torch.tensor([[60, *[7] * 11]]))
