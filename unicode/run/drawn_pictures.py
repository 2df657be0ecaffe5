"""The folder of `generate_images` as its evaluation reads it: pictures, prompts and references, and the judge of the shapes world."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from unicode.common.ranks import all_reduce_sum_, is_main, rank, world_size
from unicode.common.records import read_json, read_jsonl
from unicode.generate.config import GenerationConfig
from unicode.generate.drawing_file import RESULTS, SETTINGS
from unicode.images.datasets import ImageDataset, build_dataset, open_images
from unicode.images.loader import build_loader
from unicode.images.scene import ShapesConfig
from unicode.images.shapes import find_scene, judge
from unicode.images.transforms import to_float, to_uint8
from unicode.metrics.entry import NotComputed
from unicode.metrics.generation import GenerationMetrics, Thing, scene_metrics
from unicode.run.encode_images import default_workers


class Drawn:
    """The pictures of a folder.

    Attributes:
        settings: what they were drawn with.
        num_errors: prompts that could not be drawn.
        side: of the pictures in pixels.

    Raises:
        FileNotFoundError: there are no results.
        ValueError: no picture, or a picture that its line names is not there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / RESULTS).is_file():
            raise FileNotFoundError(f"{folder} has no {RESULTS}; draw with python -m unicode.run.generate_images --out {folder}")
        records = list(read_jsonl(self.folder / RESULTS))
        self.records = [record for record in records if "file" in record]
        self.num_errors = len(records) - len(self.records)
        self.settings: dict[str, Any] = read_json(self.folder / SETTINGS) if (self.folder / SETTINGS).is_file() else {}
        if not self.records:
            raise ValueError(f"{folder} holds no pictures, only {self.num_errors} errors; {RESULTS} says why")
        lost = [record["file"] for record in self.records if not (self.folder / record["file"]).is_file()]
        if lost:
            raise ValueError(f"{folder} lacks {len(lost)} pictures, the first is {lost[0]}; draw again with the same command")
        self.side = self.picture(0).shape[-1]

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, index: int) -> Tensor:
        """Picture `index`, (3, H, W) uint8."""
        with Image.open(self.folder / self.records[index]["file"]) as opened:
            return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)

    def batches(self, size: int) -> Iterator[tuple[int, Tensor, list[str] | None]]:
        """This rank's batches: number of the first picture, (B, 3, H, W) uint8, prompts where every picture has one."""
        for start in range(rank() * size, len(self), size * world_size()):
            places = range(start, min(start + size, len(self)))
            prompts = [str(self.records[place].get("prompt", "")) for place in places]
            yield start, torch.stack([self.picture(place) for place in places]), prompts if all(prompts) else None


def open_reference(source: str, config: GenerationConfig, *, side: int, named: bool) -> ImageDataset | None:
    """The pictures to compare with: `source`, else those of the protocol's data; None where neither is named.

    Raises:
        FileNotFoundError, ValueError: as `open_images` and `build_dataset`.
    """
    if source:
        return open_images(source, image_size=side, config=config.data)
    return build_dataset(config.data, image_size=side, train=False) if named else None


def feed(
    metrics: GenerationMetrics, drawn: Drawn, reference: ImageDataset | None, *, batch_size: int, num_workers: int, device: torch.device
) -> int:
    """Add this rank's share of the pictures, where a network is there to look at them; returns how many references all ranks skipped."""
    if not (isinstance(metrics.inception, NotComputed) and isinstance(metrics.clip, NotComputed)):
        for first, images, prompts in tqdm(drawn.batches(batch_size), desc="drawn", unit=" batches", disable=not is_main()):
            metrics.add_drawn(images.to(device), first=first, prompts=prompts)
    skipped = 0
    if reference is not None and not isinstance(metrics.inception, NotComputed):
        share = range(rank(), len(reference), world_size())
        batches: Sequence[list[int]] = [list(share[start : start + batch_size]) for start in range(0, len(share), batch_size)]
        workers = default_workers(device) if num_workers < 0 else num_workers
        for batch in tqdm(build_loader(reference, batches, num_workers=workers, device=device), desc="reference", disable=not is_main()):
            skipped += len(batch.skipped)
            if batch.indices:
                metrics.add_real(to_uint8(batch.images))
    return int(all_reduce_sum_(torch.tensor(skipped)))


def judge_drawn(drawn: Drawn) -> dict[str, Any]:
    """Name -> entry of the exact judge for pictures whose prompts came from the shapes world; nothing for others."""
    world = drawn.settings.get("world")
    if not world or drawn.settings.get("task") == "decompress":
        return {}
    config = ShapesConfig(**world)
    wanted: list[list[Thing]] = []
    seen: list[list[Thing]] = []
    for index, record in enumerate(drawn.records):
        key = str(record["id"] if drawn.settings.get("task") == "complete" else record.get("reference", ""))
        wanted.append(list(find_scene(config, key).things))
        seen.append(list(judge(to_float(drawn.picture(index)).numpy(), config).things))
    return scene_metrics(wanted, seen)
