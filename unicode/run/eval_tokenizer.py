"""Measure a tokenizer on images: PSNR, SSIM, L1, L2, LPIPS, rFID, use of the codebook, coarse-only PSNR, and what its codes mean."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unicode.common.config import load_config
from unicode.common.distributed import is_main, open_job
from unicode.common.files import write_json
from unicode.run import encode_images
from unicode.run.command import command, log, new_parser

if TYPE_CHECKING:
    from unicode.images.dataset import DataConfig, ImageDataset, Skipped


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("eval_tokenizer", __doc__, dry_run="load everything, list what cannot be computed, measure nothing")
    encode_images.add_image_options(parser)
    parser.add_argument("--images", help="what --images of encode_images takes; or use --data or the settings")
    parser.add_argument("--data", help="YAML file of a training run: its data set, and the split that it is validated on")
    parser.add_argument("--out", required=True, help="JSON file of the report; grid.png and skipped.jsonl go beside it")
    parser.add_argument("--type", choices=("hqvae", "rqvae"), help="refuse a tokenizer of another type")
    parser.add_argument("--batch-size", type=int, default=32, help="images per forward pass (default: %(default)s)")
    workers = "processes per rank that read images (default: up to 8; none on a CPU)"
    parser.add_argument("--workers", "--num-workers", type=int, default=-1, help=workers)
    parser.add_argument("--limit", type=int, default=0, help="only so many images, evenly spread (default: all)")
    parser.add_argument("--grid", type=int, default=8, help="examples in grid.png, 0 for none (default: %(default)s)")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32", help="of the tokenizer (default: %(default)s)")
    parser.add_argument("--inception", default="", help="file of torch-fidelity's Inception weights, for rFID")
    parser.add_argument("--vgg", default="", help="file of torchvision's VGG16 weights, for LPIPS")
    parser.add_argument("--alex", default="", help="file of torchvision's AlexNet weights, for LPIPS")
    parser.add_argument("--probe", action="store_true", help="also probe what codes mean: labels, and with --base captions and words")
    parser.add_argument("--base", default="", metavar="DIR", help="with --probe: the language model of the tokenizer's table")
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
    args = build_parser().parse_intermixed_args(argv)
    import torch
    from torchvision.utils import make_grid

    from unicode.images.decode import to_uint8
    from unicode.metrics.frechet import load_inception
    from unicode.metrics.reconstruction import ReconstructionMetrics, format_report
    from unicode.run import evaluation
    from unicode.tokenizer.decode import write_picture
    from unicode.tokenizer.load import load_tokenizer

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
    layout = tokenizer.config.layout(side, side)  # raises ValueError for a side that the stride does not divide
    dataset, data = find_images(args, side)
    lpips: dict[str, Any] = evaluation.load_networks(
        {trunk: partial(evaluation.load_lpips_network, trunk, getattr(args, trunk)) for trunk in ("vgg", "alex")}, device=device
    )
    inception = evaluation.load_networks({"rFID": partial(load_inception, args.inception)}, device=device)["rFID"]
    metrics = ReconstructionMetrics(
        image_size=side,
        num_rows=tokenizer.num_rows,
        num_levels=tokenizer.num_levels,
        coarse=tokenizer.num_levels > 1,
        lpips=lpips,
        inception=inception,
        device=device,
    )
    probe = evaluation.Probe(tokenizer, dataset, data, base=args.base) if args.probe else None
    if args.dry_run:
        missing = evaluation.describe_missing({f"LPIPS {trunk}": network for trunk, network in lpips.items()} | {"rFID": inception})
        log.info("%d images, %s; not to be computed: %s", len(dataset), dataset.protocol, missing)
        return 0
    skipped: list[Skipped] = []
    examples = torch.empty(3 if tokenizer.num_levels > 1 else 2, 0, 3, side, side, dtype=torch.uint8)
    for batch in evaluation.read_share(dataset, batch_size=args.batch_size, num_workers=args.workers, device=device, title="evaluating"):
        skipped += batch.skipped
        if batch.indices:
            rows, codes = evaluation.measure_batch(tokenizer, batch, metrics, layout=layout, precision=args.precision)
            if probe is not None:
                probe.add(batch, codes)
            examples = torch.cat((examples, to_uint8(rows[:, : args.grid - examples.shape[1]]).cpu()), dim=1)
    out.parent.mkdir(parents=True, exist_ok=True)
    protocol = {
        "image_set": args.images or " ".join(part for part in (data.name, data.root, data.path, data.split) if part),
        "num_skipped": evaluation.gather_skipped(skipped, out.with_name("skipped.jsonl")),
        "image_size": side,
        "transform": dataset.protocol,
        "tokenizer": {"path": args.ckpt, "type": tokenizer.config.type, "fingerprint": tokenizer.fingerprint},
        "precision": args.precision,
        "device": device.type,
    }
    report = metrics.compute(protocol)
    if probe is not None:
        meaning, report["words"] = probe.report(args.grid)
        report["metrics"] |= meaning
    if is_main():
        write_json(out, report)
        if examples.numel():
            grid = make_grid(examples.flatten(0, 1), nrow=examples.shape[1], padding=2)  # an example per column
            write_picture(out.with_name("grid.png"), grid.permute(1, 2, 0).numpy())
        print(format_report(report))
        log.info("%s: %d images", out, report["protocol"]["num_images"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
