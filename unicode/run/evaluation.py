"""Images through a tokenizer into the metrics: this rank's share of a data set, batch by batch."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid
from tqdm import tqdm

from unicode.common.log import get_logger
from unicode.common.ranks import is_main, rank, world_size
from unicode.common.records import atomic_write
from unicode.ids.encode import arithmetic
from unicode.images.datasets import ImageDataset, Skipped
from unicode.images.loader import SkipReport, build_loader
from unicode.images.transforms import to_uint8
from unicode.metrics.reconstruction import ReconstructionMetrics

log = get_logger(__name__)


def feed_metrics(
    tokenizer: Any,
    dataset: ImageDataset,
    metrics: ReconstructionMetrics,
    *,
    batch_size: int,
    num_workers: int,
    precision: str = "float32",
    num_examples: int = 8,
) -> tuple[list[Skipped], Tensor]:
    """Encode and decode every world_size-th image, starting with this rank's, and add them to `metrics`.

    Args:
        tokenizer: an ImageTokenizer; decoded a second time from its coarsest level where it has several.
        precision: "float32" or "bf16", of the tokenizer; the metrics are computed in float32 or better.
        num_examples: how many of the first images to keep as a picture.

    Returns:
        The images that could not be read, and the examples: (rows, n, 3, H, W) uint8, originals, reconstructions, coarse level.
    """
    layout = tokenizer.config.layout(dataset.image_size, dataset.image_size)
    share = range(rank(), len(dataset), world_size())
    batches = [list(share[start : start + batch_size]) for start in range(0, len(share), batch_size)]
    loader = build_loader(dataset, batches, num_workers=num_workers, device=tokenizer.device)
    skipped: list[Skipped] = []
    examples = [torch.empty(3 if tokenizer.num_levels > 1 else 2, 0, 3, dataset.image_size, dataset.image_size, dtype=torch.uint8)]
    with tqdm(total=len(share), desc="evaluating", unit=" images", disable=not is_main()) as progress:
        for batch in loader:
            skipped += batch.skipped
            progress.update(len(batch.indices) + len(batch.skipped))
            if not batch.indices:
                continue
            with arithmetic(precision, tokenizer.device):
                codes = tokenizer.encode(batch.images)
                full = tokenizer.decode(codes, layout=layout).float()
                coarse = tokenizer.decode(codes, layout=layout, levels=1).float() if tokenizer.num_levels > 1 else None
            with arithmetic("float32", tokenizer.device):
                metrics.update(batch.images, full, layout.split(codes), coarse=coarse)
            missing = num_examples - sum(part.shape[1] for part in examples)
            if missing > 0:
                rows = [batch.images, full] if coarse is None else [batch.images, full, coarse]
                examples.append(to_uint8(torch.stack(rows)[:, :missing]).cpu())
    return skipped, torch.cat(examples, dim=1)


def gather_skipped(skipped: list[Skipped], path: Path) -> int:
    """Collect the skipped images of all ranks, write them to `path` if there are any, and return their number; a collective call."""
    everybody: list[Any] = [skipped]
    if distributed.is_initialized() and world_size() > 1:
        everybody = [None] * world_size()
        distributed.all_gather_object(everybody, skipped)
    report = SkipReport()
    for part in everybody:
        report.add(part)
    if is_main():
        path.unlink(missing_ok=True)  # of an earlier evaluation
        if len(report):
            report.write(path)
            log.warning("%s; all of them: %s", report.summary(), path)
    return len(report)


def write_grid(examples: Tensor, path: Path) -> None:
    """Write (rows, n, 3, H, W) uint8 as one PNG, an example per column."""
    picture = to_pil_image(make_grid(examples.flatten(0, 1), nrow=examples.shape[1], padding=2))
    with atomic_write(path, "wb") as file:
        picture.save(file, format="PNG")
