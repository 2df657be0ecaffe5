"""The growing cache holds what transformers' own does, in one place."""

import torch
from transformers import DynamicCache, LlamaConfig, MistralConfig

from unicode.generate.engine import ReservedLayer, reserved_cache

SIZES = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_it_grows_as_transformers_own_and_stays_where_it_is():
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
