"""What tests of several packages share: no network, and a language model of a few thousand weights in a folder."""

import os
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """A folder with a LLaMA of 60 rows and a tokenizer of 50 tokens: four special ones, a space, an added one at the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=49, special_tokens=["<unk>", "<s>", "</s>", "<unused0>"], show_progress=False)
    tokenizer.train_from_iterator(["a red circle is at the top left of two big green squares", "how many blue things are there?"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.add_tokens(["<image>"])
    assert len(fast) == 50
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[20] = 0
        rows[21] *= 1e-4
        rows[31] = rows[30]
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
