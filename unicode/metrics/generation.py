"""Drawn images -> FID, inception score and CLIP score, and the share of drawn scenes that show what was asked for.

Scenes are plain data: for every image the things that were asked for and those that are recognized in it, each thing a tuple
(colour, shape, size, place). Sums are float64 and are added over the ranks once.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unicode.metrics import NotComputed, entry
from unicode.metrics.frechet import FeatureSums, frechet_entry, reduce_sums_

Thing = tuple[str, str, str, str]
PROPERTIES = ("colour", "shape", "size", "place")
ASPECTS = (*PROPERTIES, "count", "all")
INCEPTION_CLASSES = 1008


class GenerationMetrics:
    """Sums over drawn images and over those to compare them with.

    `inception`: (B, 3, H, W) uint8 -> (B, 2048) features, or why there is none. The same kind on every rank. `clip`: the CLIP model of
    `load_clip`, or why there is none. `splits`: groups of the inception score. `device`: of the sums; with NCCL the rank's GPU.
    """

    def __init__(
        self, *, inception: nn.Module | NotComputed, clip: "ClipScore | NotComputed", splits: int = 10, device: torch.device | str = "cpu"
    ) -> None:
        self.inception, self.clip, self.splits = inception, clip, splits
        self._drawn, self._real = FeatureSums.pair(inception, device=device)
        self._shares = torch.zeros(splits, INCEPTION_CLASSES, dtype=torch.float64, device=device)
        self._informed = torch.zeros(splits, 2, dtype=torch.float64, device=device)  # number of images, sum of p log p
        self._clip = torch.zeros(2, dtype=torch.float64, device=device)  # number of pairs, sum of scores

    @torch.no_grad()
    def add_drawn(self, images: Tensor, *, first: int, prompts: Sequence[str] | None = None) -> None:
        """Add drawn images (B, 3, H, W) uint8; `first` is the number of the first among all, `prompts` are their texts."""
        if not isinstance(self.inception, NotComputed):
            features = self.inception(images)
            self._drawn.update_(features)
            classes: Any = getattr(self.inception, "class_weight", None)
            if classes is not None:
                self._add_shares((features @ classes.T).double(), first)
        if prompts is not None and not isinstance(self.clip, NotComputed):
            scores = self.clip(images, prompts).double()
            self._clip += torch.stack([torch.tensor(float(len(scores)), device=scores.device, dtype=torch.float64), scores.sum()])

    @torch.no_grad()
    def add_real(self, images: Tensor) -> None:
        """Add images to compare with, (B, 3, H, W) uint8."""
        if not isinstance(self.inception, NotComputed):
            self._real.update_(self.inception(images))

    def _add_shares(self, logits: Tensor, first: int) -> None:
        log_shares = logits.log_softmax(-1)
        shares = log_shares.exp()
        group = (torch.arange(len(logits), device=logits.device) + first) % self.splits
        self._shares.index_add_(0, group, shares)
        told = torch.stack([torch.ones_like(shares[:, 0]), (shares * log_shares).sum(-1)], dim=-1)
        self._informed.index_add_(0, group, told)

    def compute(self, *, reference: str) -> dict[str, Any]:
        """Add up the ranks (a collective call, once) and return name -> entry.

        `reference`: which images were compared with, in words; "" where none were.
        """
        reduce_sums_([*self._drawn.tensors(), *self._real.tensors(), self._shares, self._informed, self._clip])
        compared = f"{int(self._drawn.count)} drawn images against {int(self._real.count)} of {reference or 'no set'}"
        remedy = "name images to compare with: --images DIR, or a --config with data"
        fid = frechet_entry(self.inception, self._real, self._drawn, compared=compared, remedy=remedy)
        return {"fid": fid, "inception_score": self._inception_score(), "clip_score": self._clip_score()}

    def _inception_score(self) -> dict[str, Any]:
        """exp of the mean divergence of p(class | image) from p(class), per group (Salimans et al. 2016); mean over the groups."""
        if isinstance(self.inception, NotComputed):
            return self.inception.to_dict()
        number = self._informed[:, 0]
        if float(number.min()) < 2:
            reason = f"{int(number.sum())} images do not fill {self.splits} groups, or the network has no classes"
            return NotComputed(reason, "draw more images or set splits=1").to_dict()
        marginal = self._shares / number[:, None]
        scores = (self._informed[:, 1] / number - torch.special.xlogy(marginal, marginal).sum(-1)).exp()
        spread = float(scores.std()) if self.splits > 1 else 0.0
        how = f"{int(number.sum())} images in {self.splits} groups (every {self.splits}-th image), standard deviation {spread:.4f}"
        return entry(float(scores.mean()), unit="", protocol=how)

    def _clip_score(self) -> dict[str, Any]:
        if isinstance(self.clip, NotComputed):
            return self.clip.to_dict()
        number, total = self._clip.tolist()
        if number == 0:
            return NotComputed("no image has a prompt", "draw from captions").to_dict()
        how = f"100 x cosine of image and prompt, at least 0, mean over {int(number)} pairs; {self.clip.source}"
        return entry(total / number, unit="", protocol=how)


class ClipScore:
    """CLIP score (Hessel et al. 2021): 100 times the cosine of image and prompt, at least 0.

    torchmetrics' own does not run with transformers 5, whose CLIP gives its features another form. `path`: a folder of transformers' CLIP
    model and processor. Raises FileNotFoundError: no such folder. Raises ValueError: it holds no CLIP model that opens.
    """

    def __init__(self, path: str | Path, *, device: torch.device | str = "cpu") -> None:
        self.model, self.processor = open_pretrained(path, "CLIPModel", "CLIPProcessor", what="CLIP model", option="--clip", device=device)
        self.source = f"model {Path(path).resolve().name}"

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) uint8 and B prompts -> (B,)."""
        limit = self.model.config.text_config.max_position_embeddings
        pixels = self.processor.image_processor(list(images.cpu()), return_tensors="pt")["pixel_values"]
        text = self.processor.tokenizer(list(prompts), return_tensors="pt", padding=True, truncation=True, max_length=limit)
        out = self.model(pixel_values=pixels.to(self.model.device), **{name: part.to(self.model.device) for name, part in text.items()})
        return 100 * torch.cosine_similarity(out.image_embeds.float(), out.text_embeds.float()).clamp_min(0)


def open_pretrained(path: str | Path, model: str, processor: str, *, what: str, option: str, device: torch.device | str) -> tuple[Any, Any]:
    """Return model and processor, of two classes of transformers, from a folder. Errors as `ClipScore`; they name `what` and `option`."""
    import transformers

    if not (Path(path) / "config.json").is_file():
        raise FileNotFoundError(f"no {what} {path}; give a folder with config.json, weights and processor with {option}")
    try:
        safe = {"local_files_only": True, "trust_remote_code": False}
        opened, prepare = (getattr(transformers, name).from_pretrained(path, **safe) for name in (model, processor))
    except Exception as error:  # transformers fails in many ways on a folder of another model
        raise ValueError(f"{path} holds no {what} that opens ({str(error).splitlines()[0][:160]})") from error
    return opened.eval().to(device), prepare


def load_clip(path: str | Path, *, device: torch.device | str = "cpu") -> ClipScore | NotComputed:
    """The CLIP score of a folder; without a folder why there is none. Raises FileNotFoundError, ValueError: as `ClipScore`."""
    if not path:
        return NotComputed("no CLIP model was named", "give a folder of one with --clip, as that of openai/clip-vit-base-patch16")
    return ClipScore(path, device=device)


def scene_shares(wanted: Sequence[Sequence[Thing]], found: Sequence[Sequence[Thing]]) -> dict[str, float]:
    """Share of images that are right in each of ASPECTS.

    An image is right in colour (shape, size, place) where those of the found things are those of the wanted ones, each as often; in
    count where there are as many; in all where every thing is there as wanted, and nothing else.
    """
    assert len(wanted) == len(found), (len(wanted), len(found))
    right = Counter(dict.fromkeys(ASPECTS, 0))
    for asked, seen in zip(wanted, found, strict=True):
        for index, name in enumerate(PROPERTIES):
            right[name] += Counter(thing[index] for thing in asked) == Counter(thing[index] for thing in seen)
        right["count"] += len(asked) == len(seen)
        right["all"] += Counter(map(tuple, asked)) == Counter(map(tuple, seen))
    return {aspect: right[aspect] / max(1, len(wanted)) for aspect in ASPECTS}


def scene_metrics(wanted: Sequence[Sequence[Thing]], found: Sequence[Sequence[Thing]]) -> dict[str, Any]:
    """Return name -> entry: each aspect over all images, then by the number of objects, then for shuffled prompts.

    Raises ValueError: no images.
    """
    if not wanted:
        raise ValueError("no drawn image has a scene as its reference; draw with --prompts shapes:val")
    how = f"objects recognized exactly in the shapes world, {len(wanted)} images"
    report = _entries(scene_shares(wanted, found), "{}", how)
    for number in sorted({len(things) for things in wanted}):
        places = [place for place, things in enumerate(wanted) if len(things) == number]
        shares = scene_shares([wanted[place] for place in places], [found[place] for place in places])
        report |= _entries(shares, f"{{}}_{number}", f"{len(places)} images of {number} objects")
    others = scene_shares([wanted[place] for place in shuffled(len(wanted), seed=0)], found)
    return report | _entries(others, "shuffled_{}", f"{how}, each compared with the prompt of another")


def _entries(shares: Mapping[str, float], name: str, how: str) -> dict[str, Any]:
    meaning = {aspect: f"the {aspect}s of all objects, each as often as wanted" for aspect in PROPERTIES}
    meaning |= {"count": "as many objects as wanted", "all": "every object as wanted and no other"}
    return {name.format(aspect): entry(100 * share, unit="%", protocol=f"{how}; {meaning[aspect]}") for aspect, share in shares.items()}


def shuffled(number: int, *, seed: int) -> list[int]:
    """A permutation of 0..number-1 in which, from 2 on, nothing keeps its place."""
    order = list(range(number))
    random.Random(seed).shuffle(order)
    place = {value: index for index, value in enumerate(order)}
    return [order[(place[value] + 1) % number] for value in range(number)]
