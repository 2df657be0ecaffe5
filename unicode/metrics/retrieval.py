"""Drawn images, a gallery of pictures with properties -> how often the nearest picture is the right one, or shares a property with it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unicode.metrics import entry
from unicode.metrics.generation import open_pretrained, shuffled

Attributes = Mapping[str, str]  # Property of a picture -> its value: {"concept": "firefighter", "tone": "dark"}


def pixel_features(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> (B, 3 * H * W) float32 in [0, 1]: squared distances between them are those of the pixels."""
    return images.flatten(1).float() / 255


class VisionFeatures:
    """Features of a vision model: CLIP's image embedding, or of a plain vision transformer (DINO) its pooled output; of length one.

    `path`: a folder of a model and its image processor. Raises FileNotFoundError: no such folder. Raises ValueError: no model that opens.
    """

    def __init__(self, path: str | Path, *, device: torch.device | str = "cpu") -> None:
        names = {"what": "vision model", "option": "--features"}
        self.model, self.processor = open_pretrained(path, "AutoModel", "AutoImageProcessor", **names, device=device)
        self.name = Path(path).resolve().name

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, D) float32."""
        pixels = self.processor(list(images.cpu()), return_tensors="pt")["pixel_values"].to(self.model.device)
        out = getattr(self.model, "get_image_features", self.model)(pixel_values=pixels)
        if not isinstance(out, Tensor):
            pooled = getattr(out, "pooler_output", None)
            out = out.last_hidden_state[:, 0] if pooled is None else pooled
        return torch.nn.functional.normalize(out.float().flatten(1), dim=-1).cpu()


def featurize(compute: Callable[[Tensor], Tensor], images: Tensor, *, batch_size: int = 256) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, D) features, a batch at a time."""
    return torch.cat([compute(batch) for batch in images.split(batch_size)])


def nearest(queries: Tensor, gallery: Tensor, *, chunk: int = 512) -> Tensor:
    """(Q, D) and (N, D) float32 -> (Q,) int64, the row of the gallery at the least squared distance; the first of equal ones."""
    half = (gallery**2).sum(1) / 2  # argmin |q - g|^2 = argmax q.g - |g|^2 / 2
    return torch.cat([(part @ gallery.T - half).argmax(1) for part in queries.split(chunk)])


def retrieval_metrics(
    found: Sequence[int], wanted: Sequence[int], attributes: Sequence[Attributes], *, name: str, how: str
) -> dict[str, Any]:
    """Return name -> entry: the share of images nearest to the right picture, and to one that has its value of each property.

    As a baseline ("shuffled_nearest") each image is compared with the right picture of another. `found`, `wanted`: for each drawn image the
    row of the nearest picture and that of the right one. `attributes`: of every picture of the gallery; a property counts for those images
    whose right picture has it. `name`: what the distance is between, as "pixels"; it begins the names of the entries. `how`: the protocol
    in words.
    """
    assert len(found) == len(wanted) > 0, (len(found), len(wanted))
    names = [key for key in dict.fromkeys(key for one in attributes for key in one) if len({one.get(key) for one in attributes}) > 1]
    report = {}
    for prefix, right in (("nearest", list(wanted)), ("shuffled_nearest", [wanted[place] for place in shuffled(len(wanted), seed=0)])):
        note = how if prefix == "nearest" else f"{how}, each compared with the prompt of another"
        share = sum(one == other for one, other in zip(found, right, strict=True)) / len(right)
        report[f"{prefix}_{name}"] = entry(100 * share, unit="%", protocol=f"{note}; exactly the right one")
        for key in names:
            both = [(attributes[one].get(key), attributes[other].get(key)) for one, other in zip(found, right, strict=True)]
            both = [(one, other) for one, other in both if other]
            if both:
                share = sum(one == other for one, other in both) / len(both)
                what = f"{note}; of {len(both)} with a {key} the nearest has the right one"
                report[f"{prefix}_{name}_{key}"] = entry(100 * share, unit="%", protocol=what)
    return report
