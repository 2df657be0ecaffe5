"""Encode images into a store of ids. The same command resumes a stopped one.

python -m unicode.run.encode_images --ckpt outputs/hqvae --images photos/ --out outputs/hqvae/ids/photos
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from unicode.common.config import load_config
from unicode.common.distributed import open_job, world_size
from unicode.ids.store import PRECISIONS
from unicode.run.command import command, log, new_parser

if TYPE_CHECKING:
    import torch

    from unicode.images.dataset import DataConfig, ImageDataset


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that encoding and evaluation share: the tokenizer, and how images are found and sized."""
    parser.add_argument("--ckpt", required=True, help="tokenizer: a run folder, a save_pretrained folder or a published one")
    parser.add_argument("--root", default="", help="folder that the paths of a list start from (default: the list's own)")
    parser.add_argument("--image-size", type=int, default=0, help="side in pixels (default: the tokenizer's)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    what = "settings of the data set, as limit=100 or name=imagenet root=DIR split=val; docs/configs/tokenizer.md, data, lists them"
    parser.add_argument("settings", nargs="*", type=lambda text: text.removeprefix("data."), metavar="KEY=VALUE", help=what)


def find_images(args: argparse.Namespace, image_size: int) -> tuple[ImageDataset, DataConfig]:
    """Return the data set that the arguments name, and its config."""
    from unicode.images.dataset import DataConfig, build_dataset, open_images

    data = load_config(DataConfig, None, [*args.settings, *([f"root={args.root}"] if args.root and not args.images else [])])
    train = "crop" in args.views.split(",")
    if args.images:
        return open_images(args.images, image_size=image_size, root=args.root or data.root, config=data, train=train), data
    if not args.settings:
        raise ValueError("no images named; give --images DIR_OR_LIST, or the settings of a data set, as name=coco root=DIR split=val")
    return build_dataset(data, image_size=image_size, train=train), data


def default_workers(device: torch.device) -> int:
    """Processes that read images: for a GPU this rank's share of the processors, 8 at most; none on a CPU, which the encoder keeps busy."""
    share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    return max(1, min(8, share)) if device.type == "cuda" else 0


def default_batch_size(device: torch.device, side: int) -> int:
    """Images per forward pass: a CPU is fastest while the feature maps stay in its cache, one image of 256 px or 64 of 32 px."""
    return 32 if device.type == "cuda" else max(1, min(64, 256 * 256 // side**2))


@command
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("encode_images", __doc__, dry_run="load the tokenizer, find the images, write nothing")
    add_image_options(parser)
    parser.add_argument("--images", help="folder, .txt, .json, .tar, .parquet, torchvision:SET:SPLIT@ROOT, shapes:SPLIT; or use settings")
    parser.add_argument("--out", required=True, help="folder of the store")
    parser.add_argument("--batch-size", type=int, default=0, help="images per forward pass (default: 32; on a CPU 256 x 256 pixels)")
    parser.add_argument("--workers", type=int, default=-1, help="processes per rank that read images (default: up to 8; none on a CPU)")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="arithmetic of the encoder (default: %(default)s)")
    parser.add_argument("--views", default="whole", help="what to encode of each image: whole, flip, crop; as whole,flip,crop,crop")
    parser.add_argument("--shard-size", type=int, default=0, help="images per shard (default: by the number of images)")
    args = parser.parse_intermixed_args(argv)
    from unicode.tokenizer.encode import EncodeConfig, describe_store, encode_images
    from unicode.tokenizer.load import load_tokenizer

    device = open_job(args.device)
    tokenizer = load_tokenizer(args.ckpt).to(device)
    side = args.image_size or tokenizer.config.image_size
    layout = tokenizer.config.layout(side, side)
    dataset, data = find_images(args, side)
    config = EncodeConfig(
        batch_size=args.batch_size or default_batch_size(device, side),
        num_workers=default_workers(device) if args.workers < 0 else args.workers,
        precision=args.precision,
        views=tuple(view for view in args.views.split(",") if view),
        crop=f"{data.training_crop}, mirrored at random" if data.flip else data.training_crop,
        shard_size=args.shard_size,
        layout=layout,
    )
    if args.dry_run:
        spec = describe_store(tokenizer, dataset, config)
        log.info("%d images in %d shards, %s, %s", spec.num_images, spec.num_shards, spec.dtype.name, layout.describe())
        return 0
    log.info("%s: %d images on %s", args.out, len(dataset), device)
    if device.type == "cuda" and args.precision == "float32":
        log.info("float32 gives the same ids for any batch size; --precision bf16 is several times faster and changes some ids")
    report = encode_images(tokenizer, dataset, args.out, config=config, device=device)
    rate = f", {report.images / report.seconds:.1f} images/s" if report.images else ""
    skipped = f", {report.skipped} of the store could not be read (skipped.jsonl has the reasons)" if report.skipped else ""
    already = f" ({report.already} were there)" if report.already else ""
    log.info("%s: %d images encoded%s%s%s", args.out, report.images, already, rate, skipped)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
