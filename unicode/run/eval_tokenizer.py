"""Measure a tokenizer on images: PSNR, SSIM, L1, L2, LPIPS, rFID, use of the codebook, coarse-only PSNR."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from unicode.common.config import load_config
from unicode.common.distributed import is_main, open_job, rank, world_size
from unicode.common.files import atomic_write, write_json
from unicode.common.logging import get_logger
from unicode.metrics.entry import format_report
from unicode.run import encode_images
from unicode.run.command import command
from unicode.run.encode_images import default_workers

if TYPE_CHECKING:
    from torch import Tensor

    from unicode.images.dataset import DataConfig, ImageDataset, Skipped
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
    import torch

    from unicode.images.decode import to_uint8
    from unicode.images.loader import build_loader
    from unicode.tokenizer.model import inference_precision

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
            with inference_precision(precision, tokenizer.device):
                codes = tokenizer.encode(batch.images)
                full = tokenizer.decode(codes, layout=layout).float()
                coarse = tokenizer.decode(codes, layout=layout, levels=1).float() if tokenizer.num_levels > 1 else None
            with inference_precision("float32", tokenizer.device):
                metrics.update(batch.images, full, layout.split(codes), coarse=coarse)
            missing = num_examples - sum(part.shape[1] for part in examples)
            if missing > 0:
                rows = [batch.images, full] if coarse is None else [batch.images, full, coarse]
                examples.append(to_uint8(torch.stack(rows)[:, :missing]).cpu())
    return skipped, torch.cat(examples, dim=1)


def gather_skipped(skipped: list[Skipped], path: Path) -> int:
    """Collect the skipped images of all ranks, write them to `path` if there are any, and return their number; a collective call."""
    from torch import distributed

    from unicode.images.loader import SkipReport

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
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    picture = to_pil_image(make_grid(examples.flatten(0, 1), nrow=examples.shape[1], padding=2))
    with atomic_write(path, "wb") as file:
        picture.save(file, format="PNG")


log = get_logger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(prog="python -m unicode.run.eval_tokenizer", description="Measure a tokenizer's reconstructions.")
    parser.add_argument("--ckpt", required=True, help="tokenizer: a run folder, a save_pretrained folder or a published one")
    parser.add_argument("--images", help="folder, .txt list, LLaVA .json, tar shards or shapes:SPLIT; without it the settings say")
    parser.add_argument("--data", help="YAML file of a training run: its data set, and the split that it is validated on")
    parser.add_argument("--out", required=True, help="JSON file of the report; grid.png and skipped.jsonl go beside it")
    parser.add_argument("--root", default="", help="folder that the paths of a list start from (default: the list's own)")
    parser.add_argument("--type", choices=("hqvae", "rqvae"), help="refuse a tokenizer of another type")
    parser.add_argument("--image-size", type=int, default=0, help="side in pixels (default: the tokenizer's)")
    parser.add_argument("--batch-size", type=int, default=32, help="images per forward pass (default: %(default)s)")
    parser.add_argument(
        "--workers", "--num-workers", type=int, default=-1, help="processes per rank that read images (default: up to 8; none on a CPU)"
    )
    parser.add_argument("--limit", type=int, default=0, help="only so many images, evenly spread (default: all)")
    parser.add_argument("--grid", type=int, default=8, help="examples in grid.png, 0 for none (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="of the tokenizer (default: %(default)s)")
    parser.add_argument("--inception", default="", help="file of torch-fidelity's Inception weights, for rFID")
    parser.add_argument("--vgg", default="", help="file of torchvision's VGG16 weights, for LPIPS")
    parser.add_argument("--alex", default="", help="file of torchvision's AlexNet weights, for LPIPS")
    parser.add_argument("--dry-run", action="store_true", help="load everything, say what could not be computed, measure nothing")
    what = "settings of the data set, as name=imagenet root=DIR split=val"
    parser.add_argument("settings", nargs="*", type=encode_images.data_setting, metavar="KEY=VALUE", help=what)
    parser.set_defaults(views="whole")  # what encoding's `find_images` asks for; an evaluation has no training crops
    return parser


def find_images(args: argparse.Namespace, image_size: int) -> tuple[ImageDataset, DataConfig]:
    """Return the data set that the arguments name, and its config."""
    from unicode.images.dataset import build_dataset

    if not args.data:
        return encode_images.find_images(args, image_size)
    from unicode.train.config import TrainTokenizerConfig  # heavy, and only read here

    config = load_config(TrainTokenizerConfig, args.data, [f"data.{setting}" for setting in args.settings])
    chosen = any(setting.startswith("split=") for setting in args.settings)
    data = config.data if chosen else replace(config.data, split=config.train.val_split or config.data.split)
    return build_dataset(data, image_size=image_size, train=False), data


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from unicode.metrics.reconstruction import ReconstructionMetrics
    from unicode.run.metric_networks import load_judges, missing_files
    from unicode.tokenizer.load import load_tokenizer

    args = build_parser().parse_intermixed_args(argv)
    out = Path(args.out)
    if out.is_dir() or min(args.batch_size - 1, args.limit, args.grid) < 0:
        raise ValueError(f"--out ({out}) has to be a file, --batch-size ({args.batch_size}) at least 1, --limit and --grid not negative")
    device = open_job(args.device)
    tokenizer = load_tokenizer(args.ckpt).to(device)
    if args.type not in (None, tokenizer.config.type):
        found = tokenizer.config.type
        raise ValueError(f"{args.ckpt} is of type {found}, not {args.type}; give --type {found} or another checkpoint")
    args.settings += [f"limit={args.limit}"] if args.limit else []
    side = args.image_size or tokenizer.config.image_size
    tokenizer.config.layout(side, side)  # a side that the stride does not divide ends here
    dataset, data = find_images(args, side)
    judges = load_judges(device=device, vgg=args.vgg, alex=args.alex, inception=args.inception)
    metrics = ReconstructionMetrics(
        image_size=dataset.image_size,
        num_rows=tokenizer.num_rows,
        num_levels=tokenizer.num_levels,
        coarse=tokenizer.num_levels > 1,
        lpips=judges.lpips,
        inception=judges.inception,
        device=device,
    )
    if args.dry_run:
        log.info("%d images, %s; not to be computed: %s", len(dataset), dataset.protocol, " | ".join(missing_files(judges)) or "nothing")
        return 0
    out.parent.mkdir(parents=True, exist_ok=True)
    num_workers = default_workers(device) if args.workers < 0 else args.workers
    skipped, examples = feed_metrics(
        tokenizer, dataset, metrics, batch_size=args.batch_size, num_workers=num_workers, precision=args.precision, num_examples=args.grid
    )
    protocol = {
        "image_set": args.images or " ".join(part for part in (data.name, data.root, data.path, data.split) if part),
        "num_skipped": gather_skipped(skipped, out.with_name("skipped.jsonl")),
        "image_size": dataset.image_size,
        "transform": dataset.protocol,
        "tokenizer": {"path": args.ckpt, "type": tokenizer.config.type, "fingerprint": tokenizer.fingerprint},
        "precision": args.precision,
        "device": device.type,
    }
    report = metrics.compute(protocol)
    if is_main():
        write_json(out, report)
        if examples.numel():
            write_grid(examples, out.with_name("grid.png"))
        print(format_report(report))
        log.info("%s: %d images", out, report["protocol"]["num_images"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
