"""Moving averages of the weights: the arithmetic, and what putting them in for a while leaves behind."""

import pytest
import torch

from unicode.codebook.codebook import CodebookConfig, ProjectedCodebook
from unicode.codebook.embedding_table import LanguageTable
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.model import ImageTokenizer
from unicode.train.tokenizer import WeightAverage


@pytest.fixture
def tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    autoencoder = AutoencoderConfig(channels=8, multipliers=[1, 2], num_res_blocks=1, latent_channels=8, decoder_attention=[])
    config = TokenizerConfig(image_size=16, autoencoder=autoencoder, codebook=CodebookConfig(mode="projected", width=4))
    return ImageTokenizer(config, LanguageTable(torch.randn(40, 12), torch.arange(4), "tiny", ""))


def move_(tokenizer: ImageTokenizer) -> None:
    """Do what an optimizer step does: other parameters, rows of the new projection."""
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for codebook in tokenizer.codebooks:
        codebook.refresh_()


def snapshot(tokenizer: ImageTokenizer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tokenizer.state_dict().items() if isinstance(tensor, torch.Tensor)}


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_averages_follow_by_their_decay(tokenizer: ImageTokenizer) -> None:
    average = WeightAverage(tokenizer, decay=0.75)
    expected = {name: parameter.detach().clone() for name, parameter in tokenizer.named_parameters()}
    for _ in range(3):
        move_(tokenizer)
        average.update_()
        expected = {name: 0.75 * expected[name] + 0.25 * parameter.detach() for name, parameter in tokenizer.named_parameters()}
    for name, value in average.averages.items():
        torch.testing.assert_close(value, expected[name])


def test_applied_gives_every_bit_back(tokenizer: ImageTokenizer) -> None:
    average = WeightAverage(tokenizer, decay=0.5)
    move_(tokenizer)
    average.update_()
    before, addresses = snapshot(tokenizer), [parameter.data_ptr() for parameter in tokenizer.parameters()]
    images = 2 * torch.rand(2, 3, 16, 16) - 1
    codes, pixels = tokenizer.encode(images), tokenizer.decode(tokenizer.encode(images))
    with average.applied():
        inside = {name: parameter.detach().clone() for name, parameter in tokenizer.named_parameters()}
        assert same_bits(inside, average.averages)
        assert not same_bits(snapshot(tokenizer), before)
    assert same_bits(snapshot(tokenizer), before)
    assert [parameter.data_ptr() for parameter in tokenizer.parameters()] == addresses
    assert torch.equal(tokenizer.encode(images), codes)
    assert torch.equal(tokenizer.decode(codes), pixels)


def test_applied_gives_the_weights_back_after_an_error_too(tokenizer: ImageTokenizer) -> None:
    average = WeightAverage(tokenizer, decay=0.5)
    move_(tokenizer)
    before = snapshot(tokenizer)
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert same_bits(snapshot(tokenizer), before)


def test_rows_belong_to_the_averaged_projection_while_it_is_applied(tokenizer: ImageTokenizer) -> None:
    average = WeightAverage(tokenizer, decay=0.5)
    move_(tokenizer)
    average.update_()
    live = [codebook.rows.clone() for codebook in tokenizer.codebooks]
    with average.applied():
        for codebook, rows in zip(tokenizer.codebooks, live, strict=True):
            assert isinstance(codebook, ProjectedCodebook)
            assert torch.equal(codebook.rows, codebook.training_rows())
            assert not torch.equal(codebook.rows, rows)
    for codebook, rows in zip(tokenizer.codebooks, live, strict=True):
        assert torch.equal(codebook.rows, rows)


def test_averages_of_a_checkpoint_are_taken_over(tokenizer: ImageTokenizer) -> None:
    average = WeightAverage(tokenizer, decay=0.5)
    move_(tokenizer)
    average.update_()
    saved = {name: value.clone() for name, value in average.averages.items()}
    other = WeightAverage(tokenizer, decay=0.5)
    other.load_state_dict(saved)
    assert same_bits(other.averages, saved)
    move_(tokenizer)
    other.update_()
    assert not same_bits(other.averages, saved)
