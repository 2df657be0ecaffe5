"""Steps with a cache equal the whole forward pass; guidance in one batch equals two passes; heads of every kind."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from unicode.generate.engine import CachedDecoder, block_rows, draw_block
from unicode.generate.sampling import Sampling, guide

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
            assert torch.allclose(decoder.scores(features)[row], expected, atol=1e-4)
            some = torch.tensor([70, 3, 11])
            assert torch.allclose(decoder.rows(some).scores(features)[row], expected[some], atol=1e-4)
        features = decoder.step(torch.full((3,), 20 + number))


@torch.no_grad()
def test_an_adapter_around_everything():
    model = adapted()
    decoder = CachedDecoder(model)
    ids, mask = padded(PROMPTS)
    features = decoder.start(mask, input_ids=ids, max_new=1)
    expected = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0)).logits[:, -1]
    assert torch.allclose(decoder.scores(features), expected, atol=1e-4)
    some = torch.tensor([70, 3, 11])
    assert torch.allclose(decoder.rows(some).scores(features), expected[:, some], atol=1e-4)


@torch.no_grad()
def test_embeddings_in_place_of_ids():
    model = make()
    decoder = CachedDecoder(model)
    ids, mask = padded(PROMPTS)
    first = decoder.start(mask, input_ids=ids, max_new=2)
    again = decoder.start(mask, embeddings=model.get_input_embeddings()(ids), max_new=2)
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
        expected = without.scores(other) + 3.0 * (given.scores(one) - without.scores(other))
        assert torch.allclose(guide(both.scores(features), 3.0), expected, atol=1e-4)
        tokens = torch.tensor([number, 30, 40 + number])
        features, one, other = both.step(tokens.repeat(2)), given.step(tokens), without.step(tokens)


def test_levels_with_ids_of_their_own():
    decoder = CachedDecoder(make())
    rows = block_rows(decoder, [torch.arange(10, 20), torch.arange(15, 60)], torch.tensor([0, 1, 1, 0, 1, 1]))
    ids, mask = padded(PROMPTS)
    features = decoder.start(mask, input_ids=ids, max_new=6)
    places = torch.tensor([0, 2, 3])
    drawn, _ = draw_block(decoder, features, rows, places=places, count=3, sampling=Sampling(5.0), seeds=torch.arange(3), step=0)
    for row, place in enumerate(places.tolist()):
        for number, token in enumerate(drawn[row].tolist()):
            assert token in (range(10, 20) if (place + number) % 3 == 0 else range(15, 60))


def test_unknown_caches():
    with pytest.raises(ValueError, match="choose one of dynamic, static"):
        CachedDecoder(make(), cache="paged")
    with pytest.raises(ValueError, match="needs the static cache"):
        CachedDecoder(make(), compiled=True)
    with pytest.raises(ValueError, match="sliding_attention; take dynamic"):
        CachedDecoder(make("mistral"), cache="static")
