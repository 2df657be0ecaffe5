"""What tests of several packages share: no network, and a language model of a few thousand weights in a folder."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["UNICODE_CACHE"] = ""  # indexes of annotation files are not kept from test to test


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a card where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="module", autouse=True)
def own_accelerator_of_a_file() -> Iterator[None]:
    """Forget the precision that a training of another file set in this process, which a later one may not change."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium of browser.py; skips where there is none."""
    from browser import Browser, find_browser

    path = find_browser()
    if path is None:
        pytest.skip("no Chromium on this machine; install one (apt-get install chromium) or name it in UNICODE_BROWSER")
    with Browser(path) as opened:
        yield opened


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


@dataclass(frozen=True)
class Tuned:
    """Folders of a tiny model that reads and writes images, with random weights."""

    base: Path
    image_tokenizer: Path
    run: Path


def write_tuned(folder: Path, *, tied: bool = True, input_mode: str = "ids", context: int = 512) -> Tuned:
    """Write the folders of `Tuned`; see `make_tuned`."""
    from unicode.llm.card import Card, fingerprint_base, write_card
    from unicode.llm.lora import LoraSettings, add_lora_
    from unicode.llm.model import fit_embeddings_, open_base, table_rows
    from unicode.llm.vocabulary import choose_markers
    from unicode.tokenizer.load import load_tokenizer

    found = Tuned(folder / "base", folder / "image_tokenizer", folder / "run")
    _write_base(found.base, tied=tied, context=context)
    _write_image_tokenizer(found.image_tokenizer)
    images = load_tokenizer(found.image_tokenizer)
    model, text = open_base(found.base, device="cpu")
    markers = choose_markers(text, table_rows=table_rows(model))
    fit_embeddings_(model, markers)
    adapted = add_lora_(model, LoraSettings(r=4, alpha=8.0, dropout=0.0), markers)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(found.run, save_embedding_layers=False)
    text.save_pretrained(found.run)
    card = Card(
        kind="lora",
        base=str(found.base),
        base_fingerprint=fingerprint_base(found.base),
        template="vicuna_v1",
        input_mode=input_mode,
        layout=images.layout,
        image_tokenizer={"path": str(found.image_tokenizer), "fingerprint": images.fingerprint},
        markers=markers,
    )
    write_card(found.run, card)
    return found


@pytest.fixture(scope="session")
def make_tuned(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tuned]:
    """Make a LLaMA of 140 rows, an HQ-VAE of 16 px on 24 of them (2x2 + 4x4 codes) and a run folder with an adapter as training writes it.

    `tied`: whether its output layer is its table; the four markers are then tokens of the vocabulary, else rows to be added.
    """

    def make(**options: Any) -> Tuned:
        return write_tuned(tmp_path_factory.mktemp("tuned"), **options)

    return make


@pytest.fixture(scope="session")
def tuned(make_tuned: Callable[..., Tuned]) -> Tuned:
    """One of them, with tied weights."""
    return make_tuned()


@pytest.fixture(scope="session")
def tuned_cells(tuned: Tuned, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """The same with a random cell head: it draws 4 cells of 5 ids."""
    from unicode.llm.card import read_card, write_card
    from unicode.llm.cell_head import CellHead, CellSettings, save_cell_head
    from unicode.tokenizer.load import load_tokenizer

    run = tmp_path_factory.mktemp("cells") / "run"
    shutil.copytree(tuned.run, run)
    card, rows = read_card(run), load_tokenizer(tuned.image_tokenizer).row_ids
    assert card.layout is not None
    torch.manual_seed(0)
    head = CellHead(CellSettings(width=24, heads=2), hidden_size=32, table_width=32, layout=card.layout, row_ids=rows)
    fingerprint = head.fingerprint(card.base_fingerprint)
    save_cell_head(run, head.state_dict(), fingerprint=fingerprint)
    write_card(run, replace(card, output_mode="cells", cells=head.describe() | {"fingerprint": fingerprint}))
    return replace(tuned, run=run)


def _write_base(folder: Path, *, tied: bool, context: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = ["<image_start>", "<image_end>", "<compressed_start>", "<compressed_end>"] if tied else []
    alphabet = [*map(chr, range(ord("!"), ord("~") + 1)), "Ġ", "Ċ"]
    special = ["<unk>", "<s>", "</s>", *names]
    trainer = trainers.BpeTrainer(vocab_size=140, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["a red circle is at the top left of two big green squares", "how many blue things are there?"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=140, max_position_embeddings=context, initializer_range=0.3, tie_word_embeddings=tied, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def _write_image_tokenizer(folder: Path) -> None:
    from unicode.codebook.codebook import CodebookConfig
    from unicode.codebook.embedding_table import LanguageTable, row_digest
    from unicode.tokenizer.autoencoder import AutoencoderConfig
    from unicode.tokenizer.config import TokenizerConfig
    from unicode.tokenizer.model import ImageTokenizer

    rows = 0.1 * torch.randn(140, 20, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    no_attention: dict[str, list[int]] = {"encoder_attention": [], "decoder_attention": []}
    autoencoder = AutoencoderConfig(channels=8, multipliers=[1, 2], num_res_blocks=1, latent_channels=12, **no_attention)
    codebook = CodebookConfig(mode="projected", width=6, num_rows=24)
    config = TokenizerConfig(type="hqvae", image_size=16, autoencoder=autoencoder, codebook=codebook)
    ImageTokenizer(config, LanguageTable(rows, torch.arange(10), "tiny", row_digest(rows))).save_pretrained(folder)
