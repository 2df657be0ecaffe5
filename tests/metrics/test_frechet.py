"""The Fréchet distance against torchmetrics and closed forms; where the Inception weights come from."""

from pathlib import Path

import pytest
import torch
from torch import nn

from unicode.metrics import NotComputed
from unicode.metrics.frechet import FeatureSums, Inception, frechet_distance, load_inception


class Features(nn.Module):
    """A small stand-in for Inception: colour means of four quarters of the image."""

    num_features = 12

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def _sums(features: torch.Tensor) -> FeatureSums:
    sums = FeatureSums(features.shape[1])
    for batch in features.split(7):
        sums.update_(batch)
    return sums


def test_one_dimension_by_hand() -> None:
    mean, deviation = torch.tensor([1.0], dtype=torch.float64), torch.tensor([[4.0]], dtype=torch.float64)
    other = torch.tensor([3.0], dtype=torch.float64), torch.tensor([[9.0]], dtype=torch.float64)
    assert frechet_distance((mean, deviation), other) == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2)


def test_sums_give_mean_and_covariance() -> None:
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)) + 3
    mean, covariance = _sums(features).gaussian()
    torch.testing.assert_close(mean, features.double().mean(0))
    torch.testing.assert_close(covariance, features.double().T.cov())


def test_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    generator = torch.Generator().manual_seed(1)
    real = torch.randint(0, 200, (40, 3, 16, 16), generator=generator, dtype=torch.uint8)
    fake = torch.randint(60, 256, (40, 3, 16, 16), generator=generator, dtype=torch.uint8)
    theirs = FrechetInceptionDistance(feature=Features())
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    ours = frechet_distance(_sums(Features()(real)).gaussian(), _sums(Features()(fake)).gaussian())
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_fewer_images_than_features() -> None:
    features = torch.randn(4, 20, generator=torch.Generator().manual_seed(2))
    assert frechet_distance(_sums(features).gaussian(), _sums(features).gaussian()) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(_sums(features).gaussian(), _sums(features + 1).gaussian()) == pytest.approx(20, rel=1e-5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up weights in the layout of torch-fidelity's Inception."""
    from torch_fidelity import feature_extractor_inceptionv3 as library

    class Blank(library.FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: object, **kwargs: object) -> None:
            """Stays as it was initialized."""

    patch = pytest.MonkeyPatch()
    patch.setattr(library, "load_state_dict_from_url", lambda *args, **kwargs: {})
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(Blank("inception-v3-compat", ["2048"]).state_dict(), path)
    patch.undo()
    return path


def test_inception_from_a_file_agrees_with_torchmetrics(weights: Path) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    inception = load_inception(weights)
    assert isinstance(inception, Inception)
    assert inception.source == "inception.pth"
    assert inception(images).shape == (2, Inception.num_features)
    theirs = FrechetInceptionDistance(feature_extractor_weights_path=str(weights), antialias=False)
    torch.testing.assert_close(inception(images), theirs.inception(images))
    assert not inception.train().network.training


def test_missing_weights_are_reported_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity import feature_extractor_inceptionv3 as library

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(library, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    missing = load_inception()
    assert isinstance(missing, NotComputed)
    assert "no network" in missing.reason
    assert f"{tmp_path}/checkpoints/weights-inception-2015-12-05-6726825d.pth" in missing.remedy
    with pytest.raises(FileNotFoundError, match="--inception"):
        load_inception(tmp_path / "nothing.pth")
    other = tmp_path / "other.pth"
    other.write_text("text")
    with pytest.raises(ValueError, match="not a file of plain tensors"):
        load_inception(other)
    torch.save({"a": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="does not hold the Inception weights"):
        load_inception(other)
