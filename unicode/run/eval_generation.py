"""Measure drawn images: FID, inception score, CLIP score; in the shapes world the objects that are recognized."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from unicode.common.distributed import all_reduce_sum_, is_main, open_job, rank, world_size
from unicode.common.files import read_json, read_jsonl
from unicode.common.logging import get_logger
from unicode.images.shapes import ShapesConfig, find_scene, parse_scene
from unicode.metrics.entry import NotComputed
from unicode.run.command import command
from unicode.run.encode_images import default_workers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unicode.generate.images import GenerationConfig
    from unicode.images.dataset import ImageDataset
    from unicode.metrics.generation import GenerationMetrics, Thing


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
        from unicode.generate.jobs import RESULTS, SETTINGS

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
        import torch

        from unicode.images.decode import open_image

        with open_image(self.folder / self.records[index]["file"]) as opened:
            return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)

    def batches(self, size: int) -> Iterator[tuple[int, Tensor, list[str] | None]]:
        """This rank's batches: number of the first picture, (B, 3, H, W) uint8, prompts where every picture has one."""
        import torch

        for start in range(rank() * size, len(self), size * world_size()):
            places = range(start, min(start + size, len(self)))
            prompts = [str(self.records[place].get("prompt", "")) for place in places]
            yield start, torch.stack([self.picture(place) for place in places]), prompts if all(prompts) else None


def open_reference(source: str, config: GenerationConfig, *, side: int, named: bool) -> ImageDataset | None:
    """The pictures to compare with: `source`, else those of the protocol's data; None where neither is named.

    Raises:
        FileNotFoundError, ValueError: as `open_images` and `build_dataset`.
    """
    from unicode.images.dataset import build_dataset, open_images

    if source:
        return open_images(source, image_size=side, config=config.data)
    return build_dataset(config.data, image_size=side, train=False) if named else None


def feed(
    metrics: GenerationMetrics, drawn: Drawn, reference: ImageDataset | None, *, batch_size: int, num_workers: int, device: torch.device
) -> int:
    """Add this rank's share of the pictures, where a network is there to look at them; returns how many references all ranks skipped."""
    import torch

    from unicode.images.decode import to_uint8
    from unicode.images.loader import build_loader

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
    from unicode.images.decode import to_float
    from unicode.metrics.generation import scene_metrics

    world = drawn.settings.get("world")
    if not world or drawn.settings.get("task") == "decompress":
        return {}
    config = ShapesConfig(**world)
    wanted: list[list[Thing]] = []
    seen: list[list[Thing]] = []
    for index, record in enumerate(drawn.records):
        key = str(record["id"] if drawn.settings.get("task") == "complete" else record.get("reference", ""))
        wanted.append(list(find_scene(config, key).things))
        seen.append(list(parse_scene(to_float(drawn.picture(index)).numpy(), config).things))
    return scene_metrics(wanted, seen)


log = get_logger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(prog="python -m unicode.run.eval_generation", description="Measure drawn pictures.")
    parser.add_argument("--pictures", required=True, help="folder that generate_images filled")
    parser.add_argument("--out", default="", help="JSON file of the report (default: metrics.json in the folder of the pictures)")
    parser.add_argument("--images", default="", help="pictures to compare with (FID): folder, list, LLaVA .json, tar shards, shapes:SPLIT")
    parser.add_argument("--config", default=None, help="YAML of a protocol; its data are the pictures to compare with")
    parser.add_argument("--inception", default="", help="file of torch-fidelity's Inception weights, for FID and inception score")
    parser.add_argument("--clip", default="", help="folder of a CLIP model of transformers, for the CLIP score")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures at a time (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=-1, help="processes per rank that read pictures (default: up to 8; none on a CPU)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="find everything, say what could not be computed, measure nothing")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of the protocol, as splits=1 or data.limit=5000")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_intermixed_args(argv)
    from unicode.common.config import load_config
    from unicode.common.files import write_json
    from unicode.generate.images import GenerationConfig
    from unicode.metrics.entry import NotComputed
    from unicode.metrics.generation import GenerationMetrics, load_clip
    from unicode.run.metric_networks import load_inception_everywhere

    if args.batch_size < 1:
        raise ValueError(f"--batch-size is {args.batch_size}; it must be at least 1")
    config = load_config(GenerationConfig, args.config, args.settings)
    device = open_job(args.device)
    drawn = Drawn(args.pictures)
    reference = open_reference(args.images, config, side=drawn.side, named=args.config is not None)
    inception = load_inception_everywhere(args.inception, device=device)
    clip = load_clip(args.clip, device=device)
    missing = [f"{name}: {one.reason} ({one.remedy})" for name, one in (("FID and inception score", inception), ("CLIP score", clip))
               if isinstance(one, NotComputed)]  # fmt: skip
    if args.dry_run:
        lacking = " | ".join(missing) or "nothing"
        log.info("%d pictures, %d to compare with; not to be computed: %s", len(drawn), len(reference or ()), lacking)
        return 0
    metrics = GenerationMetrics(inception=inception, clip=clip, splits=config.splits, device=device)
    skipped = feed(metrics, drawn, reference, batch_size=args.batch_size, num_workers=args.workers, device=device)
    name = "" if reference is None else (args.images or config.data.name)
    report: dict[str, Any] = {"metrics": judge_drawn(drawn) | metrics.compute(reference=name)}
    report["protocol"] = {
        "num_pictures": len(drawn),
        "num_errors": drawn.num_errors,
        "num_reference": 0 if reference is None else len(reference) - skipped,
        "reference": name,
        "transform": "" if reference is None else reference.protocol,
        "published": config.published,
        "drawn_by": drawn.settings,
    }
    if is_main():
        write_json(Path(args.out or Path(args.pictures) / "metrics.json"), report)
        print(format_metrics(report["metrics"]))
    return 0


def format_metrics(metrics: dict[str, Any]) -> str:
    """A line per metric."""
    lines = []
    for name, metric in metrics.items():
        if metric["value"] is None:
            lines.append(f"{name:<18} not computed: {metric['reason']}; {metric['remedy']}")
        else:
            lines.append(f"{name:<18}{metric['value']:10.4f} {metric['unit']}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
