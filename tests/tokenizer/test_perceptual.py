"""LPIPS as a loss: frozen, unseen by optimizers and checkpoints, weights from a local file or a clear message."""

import pytest
import torch
from torch import nn
from torchvision.models import vgg16

from unicode.tokenizer.losses import Objective, ObjectiveConfig, PerceptualConfig, PerceptualLoss, load_lpips

lpips = pytest.importorskip("lpips")


@pytest.fixture(scope="module")
def loss() -> PerceptualLoss:
    return load_lpips("alex", random=True)


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = vgg16(weights=None).features.state_dict(prefix="features.")
    path = tmp_path_factory.mktemp("weights") / "vgg16-397923af.pth"
    torch.save(state, path)
    return str(path)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def build(**values: object) -> PerceptualLoss | None:
    return Objective(ObjectiveConfig(perceptual=PerceptualConfig(**values)), entropy_weight=0.0).perceptual  # type: ignore[arg-type]


def test_one_distance_per_image(loss: PerceptualLoss, images: torch.Tensor) -> None:
    distances = loss(images, images.flip(0))
    assert distances.shape == (2,)
    assert (distances > 0).all()
    assert torch.equal(loss(images, images), torch.zeros(2))


def test_gradient_reaches_the_images_only(loss: PerceptualLoss, images: torch.Tensor) -> None:
    fake = images.flip(0).requires_grad_()
    loss(fake, images).mean().backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in loss.network.parameters())


def test_invisible_to_optimizers_and_checkpoints(loss: PerceptualLoss) -> None:
    owner = nn.ModuleDict({"loss": loss, "model": nn.Linear(2, 2)})
    assert len(list(owner.parameters())) == 2
    assert set(owner.state_dict()) == {"model.weight", "model.bias"}
    owner.train()
    assert not any(module.training for module in loss.network.modules())


def test_moves_with_its_owner(trunk_file: str) -> None:
    loss = load_lpips("vgg", path=trunk_file)
    nn.ModuleList([loss]).to(torch.bfloat16)
    assert {parameter.dtype for parameter in loss.network.parameters()} == {torch.bfloat16}


def test_local_weights_are_the_ones_used(trunk_file: str, images: torch.Tensor) -> None:
    loss = load_lpips("vgg", path=trunk_file)
    state = torch.load(trunk_file, weights_only=True)
    assert torch.equal(loss.network.net.slice5[-2].weight, state["features.28.weight"])
    library = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    library.net.load_state_dict({key: state[f"features.{key.split('.', 1)[1]}"] for key in library.net.state_dict()})
    expected = library(images, images.flip(0)).flatten()
    torch.testing.assert_close(loss(images, images.flip(0)), expected, atol=1e-4, rtol=0)


def test_random_weights_are_the_same_everywhere_and_leave_the_random_state(loss: PerceptualLoss, images: torch.Tensor) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = load_lpips("alex", random=True)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(again(images, images.flip(0)), loss(images, images.flip(0)))


def test_weight_zero_builds_nothing() -> None:
    assert build(weight=0.0, vgg_path="nowhere") is None


def test_missing_file_names_setting_and_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"vgg16-397923af\.pth \(objective\.perceptual\.vgg_path\) is expected there"):
        build(vgg_path="nowhere/vgg.pth")


def test_no_download_says_where_to_put_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"or name it in objective\.perceptual") as caught:
        build()
    assert f"put the file at {tmp_path}/checkpoints/vgg16-397923af.pth" in str(caught.value)


def test_other_files_are_refused(tmp_path) -> None:
    other = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match=r"expected features.0.weight of shape \(64, 3, 3, 3\), found \(1,\)"):
        load_lpips("vgg", path=other)
    other.write_text("not a checkpoint")
    with pytest.raises(ValueError, match="not a file of plain tensors"):
        load_lpips("vgg", path=other)
    with pytest.raises(ValueError, match=r"perceptual\.weight is -1"):
        PerceptualConfig(weight=-1)
