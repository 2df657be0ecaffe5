"""PatchGAN, its losses, LeCam, the adaptive weight and the schedule against values worked out by hand."""

import pytest
import torch
from torch import nn

from unicode.tokenizer.discriminator import (
    DiscriminatorConfig,
    LeCam,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    discriminator_trains,
    generator_loss,
    generator_weight,
)


def test_published_layout() -> None:
    model = PatchDiscriminator(DiscriminatorConfig())
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == {
        "main.0.weight": (64, 3, 4, 4),
        "main.0.bias": (64,),
        "main.2.weight": (128, 64, 4, 4),
        "main.3.weight": (128,),
        "main.3.bias": (128,),
        "main.5.weight": (256, 128, 4, 4),
        "main.6.weight": (256,),
        "main.6.bias": (256,),
        "main.8.weight": (1, 256, 4, 4),
        "main.8.bias": (1,),
    }
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(0.663e6, rel=0.01)
    assert abs(model.main[2].weight.std().item() - 0.02) < 1e-3
    with torch.device("meta"):
        assert PatchDiscriminator(DiscriminatorConfig())(torch.empty(2, 3, 256, 256)).shape == (2, 1, 62, 62)


@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_any_depth_and_norm(norm: str, num_layers: int) -> None:
    model = PatchDiscriminator(DiscriminatorConfig(norm=norm, num_layers=num_layers, channels=8))
    logits = model(torch.zeros(2, 3, 32, 32))
    assert logits.shape[:2] == (2, 1)
    assert f"main.{3 * num_layers + 2}.weight" in model.state_dict()
    assert ("main.2.bias" in model.state_dict()) == (norm == "none")


def test_hinge_losses() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 1.0))
    assert generator_loss(fake).item() == pytest.approx(1.0)


def test_lecam() -> None:
    lecam = LeCam(decay=0.5)
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-4.0, 0.0])
    lecam.update_(real, fake)
    assert lecam.real_mean.item() == pytest.approx(0.5)
    assert lecam.fake_mean.item() == pytest.approx(-1.0)
    # relu(real + 1)^2 = 9, 1; relu(0.5 - fake)^2 = 20.25, 0.25
    assert lecam(real, fake).item() == pytest.approx(5.0 + 10.25)
    assert set(lecam.state_dict()) == {"real_mean", "fake_mean"}


def test_adaptive_weight_is_the_ratio_of_gradient_norms_clamped_on_both_sides() -> None:
    torch.manual_seed(0)
    features, conv = torch.randn(2, 4, 8, 8), nn.Conv2d(4, 3, 3, padding=1)
    output = conv(features)
    losses = output.square().mean(), -output.sum() * 0.1
    at_images = [torch.autograd.grad(loss, output, retain_graph=True)[0] for loss in losses]
    of_rec, of_adversarial = (torch.autograd.grad(loss, conv.weight, retain_graph=True)[0] for loss in losses)
    expected = of_rec.norm() / (of_adversarial.norm() + 1e-4)
    torch.testing.assert_close(adaptive_weight(features, *at_images, conv, maximum=100.0), expected)
    assert adaptive_weight(features, *at_images, conv, maximum=7.0, minimum=2 * float(expected)) == 2 * expected
    assert adaptive_weight(features, *at_images, conv, maximum=0.5 * float(expected)) == 0.5 * expected


def test_ranks_share_the_weight_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    features, rec, adversarial = (torch.randn(6, channels, 4, 4, generator=generator) for channels in (5, 3, 3))
    conv = nn.Conv2d(5, 3, 3, padding=1)
    whole = adaptive_weight(features, rec / 6, adversarial / 6, conv, maximum=1e4)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr("unicode.tokenizer.discriminator.all_reduce_sum_", lambda tensor: seen.append(tensor.clone()) or tensor)
    adaptive_weight(features[3:], rec[3:] / 3, adversarial[3:] / 3, conv, maximum=1e4)
    monkeypatch.setattr("unicode.tokenizer.discriminator.all_reduce_sum_", lambda tensor: tensor.add_(seen[0]))
    monkeypatch.setattr("unicode.tokenizer.discriminator.world_size", lambda: 2)
    torch.testing.assert_close(adaptive_weight(features[:3], rec[:3] / 3, adversarial[:3] / 3, conv, maximum=1e4), whole)


def test_schedule() -> None:
    config = DiscriminatorConfig(start=10, alone_steps=5, ramp_steps=4, weight=0.8)
    assert [discriminator_trains(step, config) for step in (9, 10, 100)] == [False, True, True]
    assert [generator_weight(step, config) for step in (0, 14, 15, 16, 17, 19, 1000)] == pytest.approx([0, 0, 0, 0.2, 0.4, 0.8, 0.8])
    assert generator_weight(15, DiscriminatorConfig(start=10, alone_steps=5, ramp_steps=0, weight=0.8)) == 0.8
    off = DiscriminatorConfig(enabled=False, start=0)
    assert generator_weight(10**6, off) == 0.0
    assert not discriminator_trains(10**6, off)


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": -1},
        {"weight": float("nan")},
        {"norm": "batch"},
        {"num_layers": 0},
        {"lecam_decay": 1.0},
        {"adaptive_minimum": 2.0, "adaptive_maximum": 1.0},
    ],
)
def test_nonsense_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"discriminator.{list(wrong)[-1]}"):
        DiscriminatorConfig(**wrong)
