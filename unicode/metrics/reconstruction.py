"""Reconstruction metrics and codebook usage, batch by batch, on any number of ranks."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from unicode.common.distributed import world_size
from unicode.metrics import NotComputed, entry, format_metrics
from unicode.metrics.frechet import FeatureSums, frechet_entry, reduce_sums_


def count_rows_(counts: Tensor, codes: Tensor) -> None:
    """Add the codes (any shape, int64 in [0, K)) of a batch to `counts` (K,), without waiting for the device."""
    flat = codes.reshape(-1)
    counts.index_add_(0, flat, torch.ones((), dtype=counts.dtype, device=counts.device).expand(flat.numel()))


def usage_report(counts: Tensor) -> dict[str, Any]:
    """Summarize counts (K,): entropy in bits, perplexity = 2^entropy, usage in percent of the K rows.

    `codes` is the number of codes counted: with fewer codes than rows the usage cannot reach 100 %.
    """
    total = counts.sum().clamp_min(1)
    shares = counts.double() / total
    entropy = float(-torch.special.xlogy(shares, shares).sum() / torch.log(torch.tensor(2.0, dtype=torch.float64)))
    used = int((counts > 0).sum())
    return {
        "rows": counts.numel(),
        "codes": int(counts.sum()),
        "used": used,
        "usage_percent": 100.0 * used / counts.numel(),
        "perplexity": 2.0**entropy,
        "entropy_bits": entropy,
        "top1_share": float(shares.max()),
    }


Distance = Callable[[Tensor, Tensor], Tensor]  # two (B, 3, H, W) in [-1, 1] -> (B,)

PSNR_CAP = 100.0  # dB, of an image that is reconstructed without a difference
SSIM_BORDER = 5  # half of the 11 x 11 window
LPIPS_MIN_SIZE = 32  # below, the deepest feature map of the trunk is empty


def to_8bit(images: Tensor) -> Tensor:
    """(B, 3, H, W) about [-1, 1] -> uint8 0..255: clamped and rounded as in writing a PNG file."""
    return images.float().add(1).mul(127.5).add(0.5).clamp(0, 255).to(torch.uint8)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of uint8 images (B, 3, H, W) -> (B,) float32, at most 100 (equal images)."""
    mse = (first.float() - second.float()).div(255).square().mean((1, 2, 3))
    return -10 * mse.clamp_min(10 ** (-PSNR_CAP / 10)).log10()


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of uint8 images (B, 3, H, W), sides of at least 11 -> (B,) (Wang et al. 2004).

    Gaussian window 11 x 11 of sigma 1.5, values in [0, 1], each colour apart, mean over the windows that lie inside the
    image: scikit-image's with `gaussian_weights=True, use_sample_covariance=False`. torchmetrics' own mean also counts the
    5 pixels at each border, where its window sees mirrored pixels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # seconds to import

    _, full = structural_similarity_index_measure(
        first.float() / 255, second.float() / 255, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )
    inside = slice(SSIM_BORDER, -SSIM_BORDER)
    return full[..., inside, inside].mean((1, 2, 3))


class ReconstructionMetrics:
    """Sums over the images seen so far.

    `image_size`: side of the square images. `num_rows`: rows K of the codebook; codes are in [0, K). `num_levels`: levels of codes per
    image. `coarse`: whether `update` is given coarse-only reconstructions. `lpips`: name of the trunk -> distance function, or why there is
    none; the same names and kinds on every rank. `inception`: a module (B, 3, H, W) uint8 -> (B, `num_features`), or why there is none; the
    same on every rank. `device`: where images and sums live; with NCCL it has to be the rank's GPU.
    """

    def __init__(
        self,
        *,
        image_size: int,
        num_rows: int,
        num_levels: int,
        coarse: bool,
        lpips: Mapping[str, Distance | NotComputed],
        inception: nn.Module | NotComputed,
        device: torch.device | str = "cpu",
    ) -> None:
        self.image_size, self.coarse, self.lpips, self.inception = image_size, coarse, lpips, inception
        names = ["images", "broken", "identical", "psnr", "ssim", "l1", "l2", "coarse_psnr", *(f"lpips_{trunk}" for trunk in lpips)]
        self._sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in names}
        self._counts = [torch.zeros(num_rows, dtype=torch.int64, device=device) for _ in range(num_levels)]
        self._features = FeatureSums.pair(inception, device=device)

    @torch.no_grad()
    def update(self, originals: Tensor, reconstructions: Tensor, codes: Sequence[Tensor], *, coarse: Tensor | None = None) -> None:
        """Add a batch: originals (B, 3, H, W) in [-1, 1] and their reconstructions, about [-1, 1].

        `codes`: one int64 tensor per level, any shape, all codes of the batch. `coarse`: reconstructions from the coarsest level alone.
        """
        assert originals.shape == reconstructions.shape, (originals.shape, reconstructions.shape)
        assert len(codes) == len(self._counts), (len(codes), len(self._counts))
        assert (coarse is not None) == self.coarse, "coarse-only reconstructions are given always or never"
        real, fake = to_8bit(originals), to_8bit(reconstructions)
        difference = (real.float() - fake.float()).div(255)
        self._add("images", torch.ones(len(real), device=real.device))
        self._add("broken", ~reconstructions.isfinite().flatten(1).all(1))
        self._add("identical", (real == fake).flatten(1).all(1))
        self._add("l1", difference.abs().mean((1, 2, 3)))
        self._add("l2", difference.square().mean((1, 2, 3)))
        self._add("psnr", psnr(real, fake))
        if self.image_size > 2 * SSIM_BORDER:
            self._add("ssim", ssim(real, fake))
        if coarse is not None:
            self._add("coarse_psnr", psnr(real, to_8bit(coarse)))
        if self.image_size >= LPIPS_MIN_SIZE:
            pair = real.float().div(127.5).sub(1), fake.float().div(127.5).sub(1)
            for trunk, distance in self.lpips.items():
                if not isinstance(distance, NotComputed):
                    self._add(f"lpips_{trunk}", distance(*pair))
        if not isinstance(self.inception, NotComputed):
            for sums, images in zip(self._features, (real, fake), strict=True):
                sums.update_(self.inception(images))
        for counts, level in zip(self._counts, codes, strict=True):
            count_rows_(counts, level)

    def _add(self, name: str, values: Tensor) -> None:
        """Add one value per image (B,) to a sum."""
        self._sums[name] += values.double().sum()

    def compute(self, protocol: Mapping[str, Any]) -> dict[str, Any]:
        """Add up the ranks (a collective call, once) and return the report.

        `protocol`: what the caller knows of how the images were chosen and prepared; goes into the report. Returns {"metrics": {name:
        {"value", "unit", "protocol"} or {"value": None, "reason", "remedy"}}, "codes": {"levels": [...], "all_levels": {...}}, "protocol":
        {...}}. Raises ValueError: no image was counted, or reconstructions hold NaN or inf.
        """
        reduce_sums_([*self._sums.values(), *self._counts, *(tensor for sums in self._features for tensor in sums.tensors())])
        sums = {name: float(value) for name, value in self._sums.items()}
        number = int(sums["images"])
        if number == 0:
            raise ValueError("no image could be read, so there is nothing to measure; look at the list of skipped images")
        if sums["broken"]:
            broken = f"{int(sums['broken'])} of {number} reconstructions"
            raise ValueError(f"{broken} hold NaN or inf; the checkpoint is damaged, use an older one")
        means = {name: value / number for name, value in sums.items()}
        compared = f"{number} reconstructions against the same {number} originals"
        rfid = frechet_entry(self.inception, *self._features, compared=compared, remedy="give more images")
        return {
            "metrics": self._pixel_metrics(means) | self._perceptual_metrics(means) | {"rfid": rfid},
            "codes": {
                "levels": [{"level": level, **usage_report(counts)} for level, counts in enumerate(self._counts)],
                "all_levels": usage_report(torch.stack(self._counts).sum(0)),
            },
            "protocol": {
                "num_images": number,
                "identical_images": int(sums["identical"]),
                **protocol,
                "pixels": "both pictures clamped to [-1, 1] and rounded to 8 bits, as PNG files",
                "average": "mean over images",
                "world_size": world_size(),
                "versions": {name: version(name) for name in ("torch", "torchmetrics", "lpips", "torch-fidelity")},
            },
        }

    def _pixel_metrics(self, means: Mapping[str, float]) -> dict[str, Any]:
        """PSNR, SSIM, L1, L2 and the coarse-only PSNR of a report."""
        per_image = f"per image over all its pixels and colours, values in [0, 1]; equal images count {PSNR_CAP:g} dB"
        window = "Gaussian window 11 x 11, sigma 1.5, values in [0, 1], colours apart, windows inside the image only (as scikit-image)"
        small = NotComputed(f"images of {self.image_size} px are smaller than the window of 11", "use larger images").to_dict()
        single = NotComputed("the tokenizer has one level of codes", "use a tokenizer of several levels").to_dict()
        coarse = entry(means["coarse_psnr"], unit="dB", protocol=f"as psnr, decoded from the coarsest level alone; {per_image}")
        return {
            "psnr": entry(means["psnr"], unit="dB", protocol=per_image),
            "ssim": entry(means["ssim"], unit="", protocol=window) if self.image_size > 2 * SSIM_BORDER else small,
            "l1": entry(means["l1"], unit="", protocol="mean absolute difference of values in [0, 1]"),
            "l2": entry(means["l2"], unit="", protocol="mean squared difference of values in [0, 1]"),
            "coarse_psnr": coarse if self.coarse else single,
        }

    def _perceptual_metrics(self, means: Mapping[str, float]) -> dict[str, Any]:
        """LPIPS of every trunk in a report."""
        report: dict[str, Any] = {}
        for trunk, distance in self.lpips.items():
            if isinstance(distance, NotComputed):
                report[f"lpips_{trunk}"] = distance.to_dict()
            elif self.image_size < LPIPS_MIN_SIZE:
                reason = f"images of {self.image_size} px are too small for the network, which needs {LPIPS_MIN_SIZE}"
                report[f"lpips_{trunk}"] = NotComputed(reason, "use larger images").to_dict()
            else:
                how = f"LPIPS 0.1, {trunk} trunk, images at {self.image_size} px without a resize, float32"
                report[f"lpips_{trunk}"] = entry(means[f"lpips_{trunk}"], unit="", protocol=how)
        return report


def format_report(report: Mapping[str, Any]) -> str:
    """Return the report of `ReconstructionMetrics.compute` as a table for the console: a line per metric, a line per level of codes."""
    lines = [format_metrics(report["metrics"])]
    for level in report["codes"]["levels"]:
        lines.append(
            f"codes level {level['level']}: {level['used']} of {level['rows']} rows used ({level['usage_percent']:.1f} %), perplexity "
            f"{level['perplexity']:.1f}, entropy {level['entropy_bits']:.2f} bits, commonest row {100 * level['top1_share']:.1f} %"
        )
    return "\n".join(lines)
