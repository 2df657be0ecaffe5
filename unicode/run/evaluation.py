"""Measuring for the evaluation commands: metric networks whose weights are available, this rank's images, reconstructions, their files."""

import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid
from tqdm import tqdm

from unicode.common.distributed import all_reduce_sum_, barrier, is_main, rank, world_size
from unicode.common.files import atomic_write
from unicode.images.dataset import ImageDataset, Skipped
from unicode.images.loader import Batch, SkipReport, build_loader
from unicode.metrics import NotComputed
from unicode.metrics.reconstruction import ReconstructionMetrics
from unicode.run.command import log
from unicode.run.encode_images import default_workers
from unicode.tokenizer.losses import load_lpips, trunk_file
from unicode.tokenizer.model import inference_precision

MetricNetwork = nn.Module | NotComputed

DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte before a download counts as failed; the libraries have no limit


def load_networks(makers: Mapping[str, Callable[[], MetricNetwork]], *, device: torch.device) -> dict[str, MetricNetwork]:
    """Load metric networks onto the device of every rank; one that is missing on some rank is missing on all. A collective call.

    `makers`: by name, the function that loads a network from a named file, from its library's cache, or by its download. Raises
    FileNotFoundError, ValueError: a named file does not exist or holds something else.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    if not is_main():
        barrier()  # the main rank downloads, the others then find the files
    try:
        loaded = {name: make() for name, make in makers.items()}
    finally:
        if is_main():
            barrier()
        socket.setdefaulttimeout(timeout)
    present = torch.tensor([isinstance(network, nn.Module) for network in loaded.values()], dtype=torch.int64)
    everywhere = (all_reduce_sum_(present) == world_size()).tolist()
    for (name, network), shared in zip(loaded.items(), everywhere, strict=True):
        if isinstance(network, nn.Module):
            absent = NotComputed("the weights are not on every machine of the job", "put them in the same place on each machine")
            loaded[name] = network.to(device) if shared else absent
    return loaded


def load_lpips_network(trunk: str, path: str = "") -> MetricNetwork:
    """Return LPIPS on one trunk, two (B, 3, H, W) in [-1, 1] -> (B,), or why there is none. Errors as `load_networks`."""
    try:
        return load_lpips(trunk, path=path, setting=f"--{trunk}")
    except FileNotFoundError:
        if path:
            raise
        place = trunk_file(trunk)
        reason = f"{place.name} is not in {place.parent} and could not be downloaded"
        return NotComputed(reason, f"put torchvision's {place.name} at {place}, or give its path with --{trunk}")


def describe_missing(networks: Mapping[str, object]) -> str:
    """Return the names of the metrics that cannot be computed, with the remedies; "nothing" where all can."""
    return " | ".join(f"{name} ({one.remedy})" for name, one in networks.items() if isinstance(one, NotComputed)) or "nothing"


def read_share(dataset: ImageDataset, *, batch_size: int, num_workers: int, device: torch.device, title: str) -> Iterator[Batch]:
    """Yield batches of every world_size-th image, starting with this rank's, behind a progress bar.

    `num_workers`: processes that read images; -1: the default of the device. `title`: of the progress bar.
    """
    share = range(rank(), len(dataset), world_size())
    batches = [list(share[start : start + batch_size]) for start in range(0, len(share), batch_size)]
    workers = default_workers(device) if num_workers < 0 else num_workers
    with tqdm(total=len(share), desc=title, unit=" images", disable=not is_main()) as progress:
        for batch in build_loader(dataset, batches, num_workers=workers, device=device):
            progress.update(len(batch.indices) + len(batch.skipped))
            yield batch


def measure_batch(tokenizer: Any, batch: Batch, metrics: ReconstructionMetrics, *, layout: Any, precision: str) -> Tensor:
    """Encode and decode a batch and add it to `metrics`, which are computed in float32 or better.

    `tokenizer`: an ImageTokenizer; decoded a second time from its coarsest level where it has several. `precision`: "float32" or "bf16", of
    the tokenizer. Returns (rows, B, 3, H, W): originals, reconstructions, and those of the coarsest level where there are several.
    """
    with inference_precision(precision, tokenizer.device):
        codes = tokenizer.encode(batch.images)
        full = tokenizer.decode(codes, layout=layout).float()
        coarse = tokenizer.decode(codes, layout=layout, levels=1).float() if tokenizer.num_levels > 1 else None
    with inference_precision("float32", tokenizer.device):
        metrics.update(batch.images, full, layout.split(codes), coarse=coarse)
    return torch.stack([batch.images, full] if coarse is None else [batch.images, full, coarse])


def gather_skipped(skipped: list[Skipped], path: Path) -> int:
    """Collect the skipped images of all ranks, write them to `path` if there are any, and return their number; a collective call."""
    gathered: list[Any] = [skipped] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(gathered, skipped)
    report = SkipReport()
    for part in gathered:
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
