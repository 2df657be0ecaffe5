"""Batches mean what their examples mean: padded, packed or branched, a model gives every position the logits it has alone."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from unicode.annotations.records import TASKS
from unicode.annotations.templates import DECOMPRESSION
from unicode.ids.layout import Layout
from unicode.llm.collate import PADDING, branch_mask, collate, sum_inputs
from unicode.llm.examples import IGNORED, ExampleBuilder
from unicode.llm.template import get_template
from unicode.llm.vocabulary import Markers

LAYOUT = Layout("hierarchical", ((2, 2), (4, 4)))
IDS = list(range(100, 120))


@pytest.fixture(scope="module")
def builder(byte_level) -> ExampleBuilder:
    return ExampleBuilder(get_template("vicuna_v1"), byte_level, Markers(500, 501, 502, 503), LAYOUT, 504)


@pytest.fixture(scope="module")
def examples(builder):
    """Words alone, an image in a question, a compressed image written out."""
    return [
        builder.build(["How many dogs?", "two"], task="text_only"),
        builder.build(["<image>\nWhat is it?", "A bus.", "Sure?", "Yes, it is."], [IDS], task="image_to_text"),
        builder.build(["Unpack <image>.", "<image>"], [IDS, IDS], input_mode="sum", task=DECOMPRESSION),
    ]


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 504, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, max_position_embeddings=512, initializer_range=0.2)
    return LlamaForCausalLM._from_config(config, attn_implementation=request.param).eval()


@torch.no_grad()
def logits_of(model, batch) -> torch.Tensor:
    options = {name: batch[name] for name in ("attention_mask", "position_ids") if name in batch}
    if "branch" in batch:
        options["attention_mask"] = branch_mask(batch["example"], batch["branch"], dtype=torch.float32)
    return model(inputs_embeds=sum_inputs(model.get_input_embeddings(), batch), use_cache=False, **options).logits


def logits_alone(model, example) -> torch.Tensor:
    return logits_of(model, collate([example], pad_id=0))[0]


def test_what_a_batch_holds(examples):
    batch = collate(examples, pad_id=7)
    longest = max(map(len, examples))
    assert batch["input_ids"].shape == batch["labels"].shape == batch["is_image"].shape == (3, longest)
    assert (batch["input_ids"][batch["example"] == PADDING] == 7).all()
    assert (batch["labels"][batch["example"] == PADDING] == IGNORED).all()
    assert not {"attention_mask", "position_ids"} & set(batch), "a causal model never sees the padding behind a position"
    assert [TASKS[index] for index in batch["task"]] == ["text_only", "image_to_text", DECOMPRESSION]
    assert batch["is_image"].flatten()[batch["extra_at"]].all()
    assert batch["input_ids"].flatten()[batch["extra_at"]].tolist() == [100, 105, 110, 115]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, examples, side):
    batch = collate(examples, pad_id=0, side=side)
    assert ("position_ids" in batch) == ("attention_mask" in batch) == (side == "left")
    logits = logits_of(model, batch)
    for number, example in enumerate(examples):
        assert torch.allclose(logits[batch["example"] == number], logits_alone(model, example), atol=1e-5)


def test_packing_changes_nothing(model, examples):
    batch = collate(examples, pad_id=0, pack=True)
    assert batch["input_ids"].shape == (1, sum(map(len, examples)))
    assert "attention_mask" not in batch
    logits = logits_of(model, batch)
    for number, example in enumerate(examples):
        assert torch.allclose(logits[batch["example"] == number], logits_alone(model, example), atol=1e-5)


def test_nothing_is_learned_across_a_border(examples):
    batch = collate(examples, pad_id=0, pack=True)
    starts = [int((batch["example"] == number).nonzero()[0, 1]) for number in range(3)]
    assert (batch["labels"][0, starts] == IGNORED).all()


@pytest.mark.parametrize("pack", [False, True])
def test_branches_see_the_image_and_not_each_other(model, builder, examples, pack):
    turns = ["<image>\nHow many?", "two", "What colour is it?", "red", "Sure?", "yes"]
    branched = builder.build(turns, [IDS], isolate_turns=True)
    batch = collate([examples[1], branched, examples[0]], pad_id=0, pack=pack)
    assert "attention_mask" not in batch and max(value.ndim for value in batch.values()) == 2, "the mask is made on the device"
    logits = logits_of(model, batch)
    own = logits[batch["example"] == 1]
    for number, (question, answer) in enumerate(zip(("How many?", "What colour is it?", "Sure?"), turns[1::2], strict=True), 1):
        alone = logits_alone(model, builder.build([f"<image>\n{question}", answer], [IDS]))
        seen = (branched.branch == 0) | (branched.branch == number)
        assert torch.allclose(own[seen], alone, atol=1e-5)
    for place, example in ((0, examples[1]), (2, examples[0])):
        assert torch.allclose(logits[batch["example"] == place], logits_alone(model, example), atol=1e-5)
    assert torch.isfinite(logits).all()


def test_packed_branches_equal_the_loss_of_single_turns(model, builder):
    """One sequence of isolated turns has the loss of its turns asked one by one."""
    turns = ["<image>\nHow many?", "two", "What colour is it?", "red"]
    singles = [builder.build([f"<image>\n{turns[0][8:]}", "two"], [IDS]), builder.build(["<image>\nWhat colour is it?", "red"], [IDS])]
    losses = []
    for batch in (collate([builder.build(turns, [IDS], isolate_turns=True)], pad_id=0), collate(singles, pad_id=0)):
        logits = logits_of(model, batch)
        losses.append(nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED))
    assert torch.allclose(*losses, atol=1e-5)


def test_sums_are_sums_of_rows(examples):
    embed = nn.Embedding(504, 8)
    batch = collate(examples, pad_id=0)
    rows = sum_inputs(embed, batch)
    expected = embed(batch["input_ids"]).detach().clone()
    cells = torch.tensor(IDS).view(4, 5)
    for place, cell in zip(batch["extra_at"].tolist(), cells, strict=True):
        expected.view(-1, 8)[place] = embed(cell).sum(dim=0)
    assert torch.allclose(rows, expected, atol=1e-6)


def test_rows_are_looked_up_in_one_call(examples):
    calls = []
    embed = nn.Embedding(504, 8)
    embed.register_forward_hook(lambda *_: calls.append(1))
    for chosen in (examples, examples[:1]):
        sum_inputs(embed, collate(chosen, pad_id=0)).sum().backward()
    assert len(calls) == 2


def test_masks_of_other_types(builder):
    example = builder.build(["<image>\na", "b", "c", "d"], [IDS], isolate_turns=True)
    batch = collate([example], pad_id=0)
    plain, half = (branch_mask(batch["example"], batch["branch"], dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.bfloat16 and half.min() == torch.finfo(torch.bfloat16).min
    assert torch.equal(plain == 0, half == 0)
    assert torch.equal(
        branch_mask(torch.zeros(1, 3).long(), torch.tensor([[0, 1, 2]]), dtype=torch.float32)[0, 0] == 0,
        torch.tensor([[True, False, False], [True, True, False], [True, False, True]]),
    )


def test_nonsense_is_refused(examples):
    with pytest.raises(ValueError, match="0 examples"):
        collate([], pad_id=0)
    with pytest.raises(ValueError, match="side 'top'; expected one at least and one of: right, left"):
        collate(examples, pad_id=0, side="top")
