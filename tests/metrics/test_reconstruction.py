"""The report of a tokenizer's reconstructions against scikit-image, torchmetrics and lpips on the same arrays; two real ranks."""

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance

from unicode.metrics import NotComputed, entry, frechet
from unicode.metrics.reconstruction import ReconstructionMetrics, count_rows_, format_report, psnr, ssim, to_8bit, usage_report

ABSENT = NotComputed(reason="no weights", remedy="put FILE at PATH")


class Features(nn.Module):
    """A small stand-in for Inception."""

    num_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))


def _distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first - second).abs().amax((1, 2, 3))


def _images(number: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Smooth pictures, noisy copies (some values beyond [-1, 1]) and their codes (number, 5)."""
    generator = torch.Generator().manual_seed(0)
    smooth = nn.functional.interpolate(torch.rand(number, 3, 6, 6, generator=generator) * 2 - 1, size=48, mode="bicubic").clamp(-1, 1)
    noise = torch.randn(smooth.shape, generator=generator) * torch.linspace(0.02, 0.4, number)[:, None, None, None]
    return smooth, smooth + noise, torch.randint(0, 16, (number, 5), generator=generator)


def _metrics(**changes: object) -> ReconstructionMetrics:
    lpips = {"vgg": _distance, "alex": ABSENT}
    settings = {"image_size": 48, "num_rows": 16, "num_levels": 2, "coarse": True, "lpips": lpips, "inception": Features()}
    return ReconstructionMetrics(**(settings | changes))


def _update(metrics: ReconstructionMetrics, originals: torch.Tensor, fakes: torch.Tensor, codes: torch.Tensor) -> None:
    metrics.update(originals, fakes, [codes[:, :1], codes[:, 1:]], coarse=fakes * 0.5)


def _report(batch_size: int) -> dict:
    metrics = _metrics()
    for batch in zip(*(tensor.split(batch_size) for tensor in _images()), strict=True):
        _update(metrics, *batch)
    return metrics.compute({"image_set": "made up"})


def _pictures() -> tuple[np.ndarray, np.ndarray]:
    return tuple(to_8bit(images).permute(0, 2, 3, 1).numpy() for images in _images()[:2])


def test_8bit_rounding_is_that_of_a_png(tmp_path: Path) -> None:
    from PIL import Image
    from torchvision.utils import save_image

    fakes = _images()[1]
    for index, fake in enumerate(fakes):
        save_image((fake + 1) / 2, tmp_path / "picture.png")
        assert np.array_equal(np.asarray(Image.open(tmp_path / "picture.png")), _pictures()[1][index])


def test_agrees_with_scikit_image() -> None:
    real, fake = _pictures()
    report = _report(3)["metrics"]
    settings = {"channel_axis": -1, "data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = {
        "psnr": np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(real, fake, strict=True)]),
        "ssim": np.mean([structural_similarity(a, b, **settings) for a, b in zip(real, fake, strict=True)]),
        "l1": np.abs(real / 255 - fake / 255).mean(),
        "l2": np.square(real / 255 - fake / 255).mean(),
    }
    for name, value in expected.items():
        assert report[name]["value"] == pytest.approx(value, abs=1e-4), name


def test_agrees_with_torchmetrics() -> None:
    real, fake = (to_8bit(images) for images in _images()[:2])
    first, second = real.float() / 255, fake.float() / 255
    expected = torchmetrics_psnr(first, second, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr(real, fake), expected, atol=1e-4, rtol=0)
    _, full = structural_similarity_index_measure(first, second, data_range=1.0, return_full_image=True)
    torch.testing.assert_close(ssim(real, fake), full[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=1e-4, rtol=0)
    fid = FrechetInceptionDistance(feature=Features())
    fid.update(real, real=True)
    fid.update(fake, real=False)
    assert _report(3)["metrics"]["rfid"]["value"] == pytest.approx(float(fid.compute()), abs=1e-4, rel=1e-4)


def test_agrees_with_lpips() -> None:
    lpips = pytest.importorskip("lpips")
    torch.manual_seed(0)
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    originals, fakes, codes = _images()
    metrics = _metrics(lpips={"alex": network})
    _update(metrics, originals, fakes, codes)
    pictures = (lpips.im2tensor(image) for images in _pictures() for image in images)
    loaded = torch.cat(list(pictures))
    expected = network(loaded[: len(originals)], loaded[len(originals) :]).mean().item()
    assert metrics.compute({})["metrics"]["lpips_alex"]["value"] == pytest.approx(expected, abs=1e-4)


def test_mean_over_images_whatever_the_batches() -> None:
    one, three = _report(1), _report(3)
    assert one["protocol"] == three["protocol"]
    for name in ("psnr", "ssim", "l1", "l2", "coarse_psnr", "lpips_vgg", "rfid"):
        assert one["metrics"][name]["value"] == pytest.approx(three["metrics"][name]["value"], rel=1e-6), name
    assert one["codes"] == three["codes"]


def test_codes_are_counted_per_level() -> None:
    codes = _images()[2]
    levels = _report(3)["codes"]["levels"]
    assert [level["codes"] for level in levels] == [7, 28]
    assert levels[0]["used"] == len(codes[:, :1].unique())
    shares = torch.bincount(codes[:, 1:].flatten()) / 28
    assert levels[1]["top1_share"] == pytest.approx(shares.max().item())
    assert levels[1]["entropy_bits"] == pytest.approx(-sum(share * math.log2(share) for share in shares.tolist() if share))
    assert _report(3)["codes"]["all_levels"]["used"] == len(codes.unique())


def test_what_is_missing_is_reported_as_not_computed() -> None:
    originals, fakes, codes = _images(1)
    metrics = _metrics(inception=ABSENT)
    _update(metrics, originals, fakes, codes)
    report = metrics.compute({})["metrics"]
    absent = {"value": None, "reason": "no weights", "remedy": "put FILE at PATH"}
    assert report["lpips_alex"] == absent
    assert report["rfid"] == absent
    metrics = _metrics()
    _update(metrics, originals, fakes, codes)
    assert "a covariance needs 2" in metrics.compute({})["metrics"]["rfid"]["reason"]
    small = ReconstructionMetrics(image_size=8, num_rows=16, num_levels=1, coarse=False, lpips={"vgg": _distance}, inception=Features())
    small.update(originals[..., :8, :8], fakes[..., :8, :8], [codes])
    report = small.compute({})["metrics"]
    assert [report[name]["value"] for name in ("ssim", "lpips_vgg", "coarse_psnr")] == [None, None, None]


def test_protocol_is_part_of_the_report() -> None:
    protocol = _report(3)["protocol"]
    assert (protocol["num_images"], protocol["world_size"], protocol["image_set"]) == (7, 1, "made up")
    assert set(protocol["versions"]) == {"torch", "torchmetrics", "lpips", "torch-fidelity"}
    assert all(metric["protocol"] for metric in _report(3)["metrics"].values() if metric["value"] is not None)


def test_equal_images_count_100_db() -> None:
    originals, _, codes = _images()
    metrics = _metrics()
    _update(metrics, originals, originals, codes)
    report = metrics.compute({})
    assert report["metrics"]["psnr"]["value"] == pytest.approx(100)
    assert report["protocol"]["identical_images"] == 7
    assert report["metrics"]["rfid"]["value"] == pytest.approx(0, abs=1e-4)


def test_nothing_to_measure_and_broken_reconstructions_are_errors() -> None:
    with pytest.raises(ValueError, match="no image could be read"):
        _metrics().compute({})
    originals, fakes, codes = _images()
    fakes[2, 0, 0, 0] = math.nan
    metrics = _metrics()
    _update(metrics, originals, fakes, codes)
    with pytest.raises(ValueError, match="1 of 7 reconstructions hold NaN"):
        metrics.compute({})


def _share(rank: int) -> ReconstructionMetrics:
    """The metrics of one of three ranks; the third has no image at all."""
    metrics = _metrics()
    if rank < 2:
        _update(metrics, *(tensor[rank::2] for tensor in _images()))
    return metrics


def test_ranks_together_count_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, sums = _report(7), list[torch.Tensor]()
    monkeypatch.setattr(frechet, "all_reduce_sum_", lambda tensor: sums.append(tensor.clone()) or tensor)
    for rank in range(3):
        with contextlib.suppress(ValueError):  # the third rank alone has nothing to measure
            _share(rank).compute({})
    monkeypatch.setattr(frechet, "all_reduce_sum_", lambda tensor: tensor.copy_(sum(sums)))
    reports = [_share(rank).compute({"image_set": "made up"}) for rank in range(3)]
    assert reports[0] == reports[1] == reports[2]
    assert reports[0]["protocol"] == alone["protocol"]
    for name, metric in alone["metrics"].items():
        if metric["value"] is not None:
            assert reports[0]["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-9), name
    assert reports[0]["codes"] == alone["codes"]


def test_counts_add_up_over_batches() -> None:
    counts = torch.zeros(4, dtype=torch.int64)
    count_rows_(counts, torch.tensor([[0, 1], [1, 3]]))
    count_rows_(counts, torch.tensor([3, 3]))
    assert counts.tolist() == [1, 2, 0, 3]


def test_usage_report() -> None:
    report = usage_report(torch.tensor([2, 1, 1, 0]))
    assert report == {
        "rows": 4,
        "codes": 4,
        "used": 3,
        "usage_percent": 75.0,
        "perplexity": pytest.approx(2**1.5),
        "entropy_bits": pytest.approx(1.5),
        "top1_share": 0.5,
    }


def test_even_use_has_the_perplexity_of_all_rows_and_no_use_is_no_crash() -> None:
    assert usage_report(torch.full((8,), 5))["perplexity"] == pytest.approx(8)
    assert usage_report(torch.zeros(8, dtype=torch.int64))["entropy_bits"] == 0


def test_report_on_the_console() -> None:
    level = {"level": 0, "rows": 8, "codes": 4, "used": 2, "usage_percent": 25.0, "perplexity": 2.0, "entropy_bits": 1.0, "top1_share": 0.5}
    metrics = {"psnr": entry(24.5, unit="dB", protocol="8 bit"), "rfid": NotComputed("no weights", "put FILE at PATH").to_dict()}
    assert format_report({"metrics": metrics, "codes": {"levels": [level]}}).splitlines() == [
        "psnr    24.5000 dB",
        "rfid not computed: no weights; put FILE at PATH",
        "codes level 0: 2 of 8 rows used (25.0 %), perplexity 2.0, entropy 1.00 bits, commonest row 50.0 %",
    ]
