"""Cached steps equal the whole pass; images in answers are complete blocks on their levels, whatever the logits."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from unicode.generate import engine
from unicode.generate.engine import (
    NONE,
    TEXT,
    CachedDecoder,
    ImageConstraint,
    ImageHead,
    ReservedLayer,
    decode_answers,
    reserved_cache,
    sample_image_tokens,
)
from unicode.generate.sampling import Sampling, guide
from unicode.ids.layout import Layout
from unicode.llm.vocabulary import Markers

SIZES = {"vocab_size": 80, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def make(kind: str = "llama", attention: str = "eager"):
    torch.manual_seed(0)
    config = {
        "llama": lambda: LlamaConfig(**SIZES, num_key_value_heads=2, attn_implementation=attention),
        "mistral": lambda: MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=6, attn_implementation=attention),
        "gemma2": lambda: Gemma2Config(
            **SIZES, num_key_value_heads=2, head_dim=8, final_logit_softcapping=3.0, sliding_window=6, attn_implementation=attention
        ),
    }[kind]()
    model = {"llama": LlamaForCausalLM, "mistral": MistralForCausalLM, "gemma2": Gemma2ForCausalLM}[kind](config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 6 if weight.ndim == 2 else 1
    return model


def adapted():
    model = make()
    settings = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, trainable_token_indices={"embed_tokens": [3, 70]})
    return get_peft_model(model, settings).eval()


def padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [3]]


@pytest.mark.parametrize(
    ("kind", "attention", "cache"),
    [
        ("llama", "eager", "dynamic"), ("llama", "sdpa", "dynamic"), ("llama", "eager", "static"), ("llama", "sdpa", "static"),
        ("mistral", "eager", "dynamic"), ("gemma2", "eager", "dynamic"),
    ],
)
@torch.no_grad()
def test_steps_equal_the_whole_pass(kind, attention, cache):
    model = make(kind, attention)
    decoder = CachedDecoder(model, cache=cache)
    ids, mask = padded(PROMPTS)
    features = decoder.start(mask, input_ids=ids, max_new=9)
    for number in range(9):
        for row, prompt in enumerate(PROMPTS):
            expected = model(input_ids=torch.tensor([prompt + [20 + n for n in range(number)]])).logits[0, -1]
            assert torch.allclose(decoder.logits(features)[row], expected, atol=1e-4)
            some = torch.tensor([70, 3, 11])
            assert torch.allclose(decoder.rows(some).logits(features)[row], expected[some], atol=1e-4)
        features = decoder.step(torch.full((3,), 20 + number))


@torch.no_grad()
def test_a_static_cache_is_kept_for_smaller_batches_and_shorter_prompts():
    model = make()
    decoder, plain = CachedDecoder(model, cache="static"), CachedDecoder(model)
    caches, lengths = [], []
    for prompts, max_new in ((PROMPTS, 60), (PROMPTS[:2], 5), ([[4] * 70, [5, 6], [7]], 9), (PROMPTS, 9), (PROMPTS[:1], 9)):
        ids, mask = padded(prompts)
        one, other = (each.start(mask, input_ids=ids, max_new=max_new) for each in (decoder, plain))
        for number in range(4):
            assert torch.allclose(one, other, atol=1e-4)
            tokens = torch.arange(len(prompts)) + 20 + number
            one, other = decoder.step(tokens), plain.step(tokens)
        caches.append(decoder._cache)
        lengths.append(decoder._cache.layers[0].max_cache_len)
    assert caches[0] is caches[1] and caches[2] is caches[3] and lengths == [128, 128, 128, 128, 64]
    with pytest.raises(AssertionError, match="static"):
        decoder.select(torch.tensor([0]), torch.tensor([True]))


@torch.no_grad()
def test_an_adapter_around_everything():
    model = adapted()
    decoder = CachedDecoder(model)
    ids, mask = padded(PROMPTS)
    features = decoder.start(mask, input_ids=ids, max_new=1)
    expected = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits[:, -1]
    assert torch.allclose(decoder.logits(features), expected, atol=1e-4)
    some = torch.tensor([70, 3, 11])
    assert torch.allclose(decoder.rows(some).logits(features), expected[:, some], atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@torch.no_grad()
def test_states_and_logits_behind_cells_of_several_ids(kind):
    model = make(kind)
    decoder = CachedDecoder(model)
    decoder.keeps_states = True
    ids, mask = padded(PROMPTS)
    features, embed = decoder.start(mask, input_ids=ids, max_new=3), model.get_input_embeddings()
    cells = torch.tensor([[[20, 21, 22], [23, NONE, NONE], [24, 25, NONE]], [[30, NONE, NONE], [31, 32, 33], [34, 35, 36]]])
    for number in range(3):
        for row, prompt in enumerate(PROMPTS):
            written = [embed(cell[row][cell[row] >= 0]).sum(0, keepdim=True) for cell in cells[:number]]
            expected = model(inputs_embeds=torch.cat((embed(torch.tensor(prompt)), *written))[None], output_hidden_states=True)
            assert torch.allclose(decoder.logits(features)[row], expected.logits[0, -1], atol=1e-4)
            assert torch.allclose(decoder.states(features)[row], expected.hidden_states[-1][0, -1], atol=1e-4)
        features = decoder.step(cells[number]) if number < 2 else features


@torch.no_grad()
def test_embeddings_in_place_of_ids():
    model = make()
    decoder = CachedDecoder(model)
    ids, mask = padded(PROMPTS)
    first = decoder.start(mask, input_ids=ids, max_new=2)
    again = decoder.start(mask, inputs_embeds=model.get_input_embeddings()(ids), max_new=2)
    assert torch.equal(first, again)


@torch.no_grad()
def test_guidance_in_one_batch_equals_two_passes():
    model, free = make(), [[1, 2], [1, 2], [1, 2]]
    both, given, without = CachedDecoder(model), CachedDecoder(model), CachedDecoder(model)
    ids, mask = padded(PROMPTS + free)
    features = both.start(mask, input_ids=ids, max_new=8)
    ids, mask = padded(PROMPTS)
    one = given.start(mask, input_ids=ids, max_new=8)
    ids, mask = padded(free)
    other = without.start(mask, input_ids=ids, max_new=8)
    for number in range(8):
        expected = without.logits(other) + 3.0 * (given.logits(one) - without.logits(other))
        assert torch.allclose(guide(both.logits(features), 3.0), expected, atol=1e-4)
        tokens = torch.tensor([number, 30, 40 + number])
        features, one, other = both.step(tokens.repeat(2)), given.step(tokens), without.step(tokens)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_a_beginning_that_rows_share_is_read_once(attention, monkeypatch):
    monkeypatch.setattr(engine, "_GROWTH", 2)  # the blocks grow on the way
    model = make("llama", attention)
    decoder = CachedDecoder(model)
    assert decoder.can_select and not CachedDecoder(make("mistral")).can_select
    ids, mask = padded([[5, 6, 7, 8], [9]])
    rest, rest_mask = padded([[30], [31, 32, 33], [34, 35], [36]])
    decoder.start(mask, input_ids=ids, max_new=3 + 4)
    decoder.select(torch.tensor([1, 0, 0, 0]), torch.tensor([True, True, False, True]))
    features = decoder.extend(rest_mask, input_ids=rest)
    prompts = [[9, 30], [5, 6, 7, 8, 31, 32, 33], [34, 35], [5, 6, 7, 8, 36]]
    for number in range(4):
        for row, prompt in enumerate(prompts):
            expected = model(input_ids=torch.tensor([prompt + [20 + n for n in range(number)]])).logits[0, -1]
            assert torch.allclose(decoder.logits(features)[row], expected, atol=1e-4)
        features = decoder.step(torch.full((4,), 20 + number))


@torch.no_grad()
def test_a_step_that_cannot_be_compiled_runs_uncompiled(monkeypatch, caplog):
    def fail(*_, **__):
        raise torch._dynamo.exc.TorchDynamoException("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    model = make()
    decoder, plain = CachedDecoder(model, cache="static", compiled=True), CachedDecoder(model, cache="auto", num_batches=100)
    assert not plain._static, "on a CPU nothing is compiled unasked"
    ids, mask = padded(PROMPTS)
    for each in (decoder, plain):
        each.start(mask, input_ids=ids, max_new=2)
    assert torch.allclose(decoder.step(torch.arange(3)), plain.step(torch.arange(3)), atol=1e-4)
    assert "cannot be compiled" in caplog.text and "no C++ compiler" in caplog.text


def test_unknown_caches():
    with pytest.raises(ValueError, match="choose one of auto, dynamic, static"):
        CachedDecoder(make(), cache="paged")
    with pytest.raises(ValueError, match="needs the static cache"):
        CachedDecoder(make(), compiled=True)
    with pytest.raises(ValueError, match="sliding_attention; take dynamic"):
        CachedDecoder(make("mistral"), cache="static")


def test_the_cache_grows_as_transformers_own_and_stays_where_it_is():
    ours, theirs = reserved_cache(LlamaConfig(**SIZES), 12), DynamicCache(config=LlamaConfig(**SIZES))
    places = set()
    for length in (5, 1, 1, 4):
        for layer in range(2):
            keys, values = torch.randn(3, 2, length, 4), torch.randn(3, 2, length, 4)
            found, expected = ours.update(keys, values, layer), theirs.update(keys, values, layer)
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
            places.add(found[0].data_ptr())
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1, 0) == theirs.get_mask_sizes(1, 0)
    assert len(places) == 2


def test_windows_stay_transformers_own():
    kinds = {type(layer) for layer in reserved_cache(MistralConfig(**SIZES, sliding_window=4), 12).layers}
    assert ReservedLayer not in kinds


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


def image_head(lm: LlamaForCausalLM, layout: Layout = NESTED, row_ids=COARSE) -> ImageHead:
    return ImageHead(CachedDecoder(lm), row_ids, layout, markers=MARKERS)


@pytest.mark.parametrize("layout", [NESTED, ROWS, DEEP], ids=str)
def test_a_thousand_answers_are_exact(lm, layout):
    decoder, found, free = CachedDecoder(lm), [], []
    head = ImageHead(decoder, level_ids(layout), layout, markers=MARKERS)
    for start in range(0, 250, 50):
        torch.manual_seed(start)
        prompts = torch.randint(5, 60, (50, 4))
        options = {"limits": [70] * 50, "end_ids": [END], "words": Sampling(2.0), "images": Sampling(1.5, top_k=8), "max_images": 3}
        for one in (head, None):
            features = decoder.start(torch.ones_like(prompts), input_ids=prompts, max_new=70)
            decoded = decode_answers(decoder, features, **options, seeds=range(start, start + 50), head=one)
            assert all(len(ids) + ended == 70 or ended for ids, ended in zip(decoded.ids, decoded.ended, strict=True))
            (found if one else free).extend(decoded.ids)
    counts = [blocks_of(row, layout, layout.num_codes) for row in found]
    assert len(counts) == 250 and len(set(counts)) > 2 and max(counts) <= 3
    whole = 0
    for row in free:
        try:
            whole += blocks_of(row, layout, layout.num_codes) > 0
        except (AssertionError, IndexError):
            continue
    assert whole == 0, "a block came out right without the constraint"


def test_rows_end_at_their_limits_and_stops(lm):
    decoder, prompts = CachedDecoder(lm), torch.tensor([[5, 6], [7, 8], [9, 10]])
    options = {"end_ids": [END], "seeds": range(3), "words": Sampling(2.0)}

    def decode(limits, **more):
        features = decoder.start(torch.ones_like(prompts), input_ids=prompts, max_new=max(limits))
        return decode_answers(decoder, features, limits=limits, **options, **more)

    long, short = decode([20, 20, 20]), decode([3, 20, 1])
    assert [len(ids) for ids in short.ids] == [3, len(long.ids[1]), 1] and short.ended == [False, long.ended[1], False]
    assert all(one == other[: len(one)] for one, other in zip(short.ids, long.ids, strict=True))
    stopped = decode([20, 20, 20], has_stopped=lambda tokens: tokens[:, -1] == long.ids[1][4])
    assert stopped.ids[1] == long.ids[1][: long.ids[1].index(long.ids[1][4]) + 1] and not stopped.ended[1]


def test_levels_with_ids_of_their_own(lm):
    decoder = CachedDecoder(lm)
    head = ImageHead(decoder, [COARSE, FINE], NESTED, markers=MARKERS)
    ids, mask = padded(PROMPTS)
    features = decoder.start(mask, input_ids=ids, max_new=6)
    places = torch.tensor([0, 2, 3])
    sampled = sample_image_tokens(decoder, features, head, places=places, count=3, sampling=Sampling(5.0), seeds=torch.arange(3), step=0)
    for row, place in enumerate(places.tolist()):
        for number, token in enumerate(sampled[row].tolist()):
            assert token in (COARSE if NESTED.levels()[place + number] == 0 else FINE)


def test_no_block_where_none_is_allowed_or_fits(lm):
    none = ImageConstraint(image_head(lm), vocab_size=VOCAB, rows=3, num_tokens=50, max_images=0)
    allowed = none.mask(torch.zeros(3, VOCAB)).isfinite()
    assert not allowed[:, list(MARKERS.ids())].any() and allowed.sum() == 3 * (VOCAB - 4)
    constraint = ImageConstraint(image_head(lm), vocab_size=VOCAB, rows=1, num_tokens=12)
    assert constraint.mask(torch.zeros(1, VOCAB)).isfinite()[0, 60]
    constraint.advance(torch.ones(1, dtype=torch.int64))
    assert not constraint.mask(torch.zeros(1, VOCAB)).isfinite()[0, 60]


def test_the_states_of_rows_are_their_own(lm):
    constraint = ImageConstraint(image_head(lm, row_ids=[COARSE, FINE]), vocab_size=VOCAB, rows=3, num_tokens=50)
    for tokens in ([1, 60, 1], [1, 7, 1], [60, 9, 1]):
        constraint.advance(torch.tensor(tokens))
    assert constraint.step.tolist() == [0, 2, TEXT]
    allowed = constraint.mask(torch.zeros(3, VOCAB)).isfinite()
    assert allowed[0].nonzero().flatten().tolist() == COARSE.tolist()
    assert allowed[1].nonzero().flatten().tolist() == FINE.tolist()
    assert allowed[2, 60] and not allowed[2, 61]
    assert constraint.certain(torch.tensor([False, False, True])) == 8
    assert constraint.certain(torch.tensor([False, False, False])) == 0
    for _ in range(8):
        constraint.advance(torch.tensor([7, 16, 30]))
    assert constraint.step.tolist() == [8, 10, TEXT]
    assert constraint.mask(torch.zeros(3, VOCAB)).isfinite()[1].nonzero().flatten().tolist() == [61]
    constraint.advance(torch.tensor([7, 61, 60]))
    assert constraint.step.tolist() == [9, TEXT, 0]
    assert not constraint.mask(torch.zeros(3, VOCAB)).isfinite()[1, 60], "one block was allowed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"row_ids": torch.tensor([5, 64])}, "ids 0 to 63"),
        ({"row_ids": torch.tensor([], dtype=torch.int64)}, "range from none"),
        ({"row_ids": torch.tensor([5, 61])}, "id 61 is a marker"),
        ({"row_ids": [COARSE] * 3}, "3 sets of image ids"),
    ],
)
def test_bad_image_ids(lm, arguments, message):
    with pytest.raises(ValueError, match=message):
        image_head(lm, **arguments)


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_the_static_compiled_step_equals_the_dynamic_one():
    model, (ids, mask) = make(attention="sdpa").cuda(), padded(PROMPTS)
    decoders = CachedDecoder(model, cache="static", compiled=True), CachedDecoder(model)
    for each in decoders:
        each.start(mask.cuda(), input_ids=ids.cuda(), max_new=4)
    for number in range(3):
        made, expected = (each.logits(each.step(torch.full((3,), 20 + number, device="cuda"))) for each in decoders)
        assert torch.allclose(made, expected, atol=1e-2)
