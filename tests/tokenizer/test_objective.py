"""The generator's loss: its parts add up, what is off is not called, and gradients are finite."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from unicode.tokenizer.discriminator import DiscriminatorConfig, PatchDiscriminator
from unicode.tokenizer.losses import Objective, ObjectiveConfig, PerceptualConfig, image_psnr
from unicode.tokenizer.model import ImageTokenizer, Reconstruction

Make = Callable[..., ImageTokenizer]


class Refusing(nn.Module):
    """A discriminator that must not be called."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the discriminator was called")


def config(**changes: object) -> ObjectiveConfig:
    values = {"perceptual": PerceptualConfig(weight=0.0), "discriminator": DiscriminatorConfig(channels=8)}
    return ObjectiveConfig(**(values | changes))  # type: ignore[arg-type]


def images_of(size: int = 16) -> torch.Tensor:
    return 2 * torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(5)) - 1


def test_the_total_is_the_weighted_sum_of_the_parts(make: Make) -> None:
    tokenizer, images = make({"entropy_weight": 0.5}), images_of(32)
    objective = Objective(config(l1=0.3, l2=0.7, commitment=2.0, perceptual=PerceptualConfig(weight=0.4, random=True)), entropy_weight=0.5)
    discriminator = PatchDiscriminator(objective.config.discriminator).requires_grad_(False)
    last = tokenizer.decoder.conv_out
    made = tokenizer(images)
    _, parts = objective(made, images, discriminator=discriminator, adversarial_weight=0.25, last_layer=last)
    expected = {"l1", "l2", "lpips", "adversarial", "adaptive_weight", "commitment_0", "commitment_1", "entropy", "loss"}
    assert set(parts) == expected
    assert not any(part.requires_grad for part in parts.values())
    total = 0.3 * parts["l1"] + 0.7 * parts["l2"] + 0.4 * parts["lpips"] + 0.25 * parts["adaptive_weight"] * parts["adversarial"]
    total = total + 2.0 * (parts["commitment_0"] + parts["commitment_1"]) / 2 + 0.5 * parts["entropy"]
    torch.testing.assert_close(parts["loss"], total)
    torch.testing.assert_close(parts["l1"], (made.images - images).abs().mean().detach())
    torch.testing.assert_close(parts["l2"], (made.images - images).square().mean().detach())


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_without_weight_the_discriminator_is_not_called(make: Make, weight: float) -> None:
    tokenizer, images = make(), images_of()
    objective, last = Objective(config(), entropy_weight=0.0), tokenizer.decoder.conv_out
    discriminator = Refusing() if weight == 0 else None
    _, parts = objective(tokenizer(images), images, discriminator=discriminator, adversarial_weight=weight, last_layer=last)
    assert set(parts) == {"l1", "l2", "commitment_0", "commitment_1", "loss"}


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_gradients_are_those_of_the_weighted_sum_of_the_losses(make: Make, adaptive: bool) -> None:
    tokenizer, images = make({"entropy_weight": 0.5}), images_of(32)
    options = DiscriminatorConfig(channels=8, adaptive=adaptive)
    perceptual = PerceptualConfig(weight=0.4, random=True)
    objective = Objective(config(l1=0.3, l2=0.7, commitment=2.0, perceptual=perceptual, discriminator=options), entropy_weight=0.5)
    discriminator, last = PatchDiscriminator(options).requires_grad_(False), tokenizer.decoder.conv_out
    parameters = list(tokenizer.parameters())
    made = tokenizer(images)
    surrogate, parts = objective(made, images, discriminator=discriminator, adversarial_weight=0.25, last_layer=last)
    gradients = torch.autograd.grad(surrogate, parameters, retain_graph=True)
    # the formula of Esser et al., by a backward of each loss through the decoder
    rec = 0.3 * (made.images - images).abs().mean() + 0.7 * (made.images - images).square().mean()
    rec = rec + 0.4 * objective.perceptual(made.images, images).mean()
    adversarial, weight = -discriminator(made.images).mean(), 1.0
    if adaptive:
        norms = [torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm() for loss in (rec, adversarial)]
        weight = norms[0] / (norms[1] + 1e-4)
        torch.testing.assert_close(parts["adaptive_weight"], weight)
    total = rec + 0.25 * weight * adversarial + 2.0 * made.commitment.mean() + 0.5 * made.entropy
    torch.testing.assert_close(parts["loss"], total.detach())
    for name, gradient, expected in zip(dict(tokenizer.named_parameters()), gradients, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6, msg=name)


def test_compiled_networks_train_with_the_adaptive_weight(make: Make) -> None:
    tokenizer, images = make(), images_of(32)
    objective = Objective(config(discriminator=DiscriminatorConfig(channels=8)), entropy_weight=0.0)
    discriminator, last = PatchDiscriminator(objective.config.discriminator), tokenizer.decoder.conv_out
    expected = [parameter.grad for parameter in step(tokenizer, discriminator, objective, images, last)]
    for network in (tokenizer, discriminator):
        network.compile(backend="aot_eager")  # with donated buffers, as inductor
    for parameter, gradient in zip(step(tokenizer, discriminator, objective, images, last), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def step(
    tokenizer: ImageTokenizer, discriminator: nn.Module, objective: Objective, images: torch.Tensor, last: nn.Conv2d
) -> list[nn.Parameter]:
    parameters = [*tokenizer.parameters(), *discriminator.parameters()]
    for parameter in parameters:
        parameter.grad = None
    discriminator.requires_grad_(False)
    made = tokenizer(images)
    surrogate, parts = objective(made, images, discriminator=discriminator, adversarial_weight=0.25, last_layer=last)
    assert "adaptive_weight" in parts
    surrogate.backward()
    discriminator.requires_grad_(True)
    discriminator(torch.cat([images, made.images.detach()])).square().mean().backward()
    return parameters


@pytest.mark.parametrize("adaptive", [True, False])
def test_every_parameter_of_the_tokenizer_gets_a_finite_gradient(make: Make, adaptive: bool) -> None:
    tokenizer, images = make(), images_of()
    options = DiscriminatorConfig(channels=8, adaptive=adaptive)
    objective = Objective(config(l1=0.5, discriminator=options), entropy_weight=0.0)
    discriminator = PatchDiscriminator(options).requires_grad_(False)
    last = tokenizer.decoder.conv_out
    surrogate, parts = objective(tokenizer(images), images, discriminator=discriminator, adversarial_weight=0.1, last_layer=last)
    assert ("adaptive_weight" in parts) == adaptive
    surrogate.backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(parameter.grad is None for parameter in discriminator.parameters())


def test_the_gradient_is_finite_where_the_picture_is_perfect() -> None:
    images = images_of(32)
    pixels = images.clone().requires_grad_()
    objective = Objective(config(l1=1.0, perceptual=PerceptualConfig(weight=1.0, random=True)), entropy_weight=0.0)
    made = Reconstruction(pixels, [], torch.zeros(2), torch.zeros(()), images)
    surrogate, parts = objective(made, images, discriminator=None, adversarial_weight=0.0, last_layer=nn.Conv2d(3, 3, 3, padding=1))
    surrogate.backward()
    assert parts["loss"].item() == pytest.approx(0.0, abs=1e-6)
    assert pixels.grad is not None
    assert pixels.grad.isfinite().all()


def test_losses_are_computed_in_float32_under_autocast(make: Make) -> None:
    tokenizer, images = make(), images_of()
    with torch.autocast("cpu", torch.bfloat16):
        made = tokenizer(images)
        _, parts = Objective(config(), entropy_weight=0.0)(
            made, images, discriminator=None, adversarial_weight=0.0, last_layer=tokenizer.decoder.conv_out
        )
    assert made.images.dtype == torch.bfloat16
    assert all(part.dtype == torch.float32 for part in parts.values())


def test_psnr_clamps_and_has_an_end() -> None:
    images = torch.zeros(3, 3, 4, 4)
    made = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 7.0), torch.zeros(3, 4, 4)])
    expected = [10 * math.log10(4 / 0.04), 10 * math.log10(4), 10 * math.log10(4e12)]
    assert image_psnr(made, images).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("values", [{"l1": 0.0, "l2": 0.0}, {"l1": -1.0}, {"commitment": -0.1}])
def test_objectives_without_pixels_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"objective\.l1"):
        ObjectiveConfig(**values)
