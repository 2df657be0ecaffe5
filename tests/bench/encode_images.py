"""Images/s of encoding JPEGs into a store beside the bare `tokenizer.encode` on the same batches already in memory.

    python tests/bench/encode_images.py [--images 24] [--size 256] [--channels 32] [--batch-size N] [--workers N]
    python tests/bench/encode_images.py --device cuda --channels 128 --rows 32000 --images 4096 --batch-size 64 [--precision bf16]

An untrained HQ-VAE; noise pictures as JPEG files in a temporary folder; the two are measured by turns, the median of
`--repeats` counts. What a process pays once, as the server that reading processes come from, is paid and printed before: a run over a
data set takes hours. Each run still starts its own reading processes. Exit code 1 when the command reaches less than 85 % of the bare rate.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unicode.codebook.codebook import CodebookConfig
from unicode.images.dataset import DataConfig, ImageDataset, open_images
from unicode.images.loader import build_loader
from unicode.run.encode_images import default_batch_size, default_workers
from unicode.tokenizer.autoencoder import AutoencoderConfig
from unicode.tokenizer.config import TokenizerConfig
from unicode.tokenizer.encode import EncodeConfig, encode_images
from unicode.tokenizer.model import ImageTokenizer, inference_precision

WANTED = 0.85


def main() -> int:
    """Measure both, print a line each and the ratio."""
    args = parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    config = TokenizerConfig(
        image_size=args.size,
        autoencoder=AutoencoderConfig(channels=args.channels),
        codebook=CodebookConfig(mode="free", num_rows=args.rows),
    )
    tokenizer = ImageTokenizer(config).eval().to(device)
    encode = EncodeConfig(
        batch_size=args.batch_size or default_batch_size(device, args.size),
        num_workers=default_workers(device) if args.workers < 0 else args.workers,
        precision=args.precision,
    )
    print(f"{torch.get_num_threads()} threads, {device}, {args.precision}, batch {encode.batch_size}, {encode.num_workers} workers")
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder, "photos"), args.images, args.size)
        dataset = open_images(Path(folder, "photos"), image_size=args.size)
        batches = [list(range(args.images))[start : start + encode.batch_size] for start in range(0, args.images, encode.batch_size)]
        memory = [batch.images for batch in build_loader(dataset, batches, num_workers=0, device=device)]
        bare_encode(tokenizer, memory[:1], args.precision)
        first = open_images(Path(folder, "photos"), image_size=args.size, config=DataConfig(limit=encode.batch_size))
        once = encode_images(tokenizer, first, Path(folder, "first"), config=encode, device=device).seconds
        print(f"start and first batch         {once:8.2f} s, not counted below")
        rounds = [measure(tokenizer, dataset, memory, Path(folder, f"store{number}"), encode) for number in range(args.repeats)]
    bare, whole, cpu_bare, cpu_whole = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"tokenizer.encode in memory    {args.images / bare:8.2f} images/s  {cpu_bare / args.images:.4f} CPU seconds per image")
    print(f"encode_images                 {args.images / whole:8.2f} images/s  {cpu_whole / args.images:.4f} CPU seconds per image")
    share = statistics.median(once[0] / once[1] for once in rounds)
    by_cpu = cpu_bare / cpu_whole if encode.num_workers == 0 else 0.0
    print(f"share of the bare rate        {share:8.1%}{f', by CPU seconds {by_cpu:.1%} (steadier on a busy machine)' if by_cpu else ''}")
    return 0 if max(share, by_cpu) >= WANTED else 1


def measure(
    tokenizer: ImageTokenizer, dataset: ImageDataset, memory: list[torch.Tensor], out: Path, encode: EncodeConfig
) -> tuple[float, float, float, float]:
    """Seconds and CPU seconds of this process: the mean of a bare pass before and after, and the command's work in between."""
    wall, cpu = [], []
    for step in range(3):
        wall.append(-time.perf_counter())
        cpu.append(-time.process_time())
        if step == 1:
            encode_images(tokenizer, dataset, out, config=encode, device=tokenizer.device)
        else:
            bare_encode(tokenizer, memory, encode.precision)
        wall[-1] += time.perf_counter()
        cpu[-1] += time.process_time()
    return (wall[0] + wall[2]) / 2, wall[1], (cpu[0] + cpu[2]) / 2, cpu[1]


def parse_args() -> argparse.Namespace:
    """Return the arguments of the benchmark."""
    parser = argparse.ArgumentParser()
    sizes = {"images": 24, "size": 256, "channels": 32, "rows": 4096, "batch-size": 0, "workers": -1, "repeats": 3}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    return parser.parse_args()


def write_photos(folder: Path, number: int, size: int) -> None:
    """Write JPEG files of coarse noise: pictures larger than `size` on one side, with detail for the decoder."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(number):
        small = random.integers(0, 256, (size // 4, size // 3, 3), dtype=np.uint8)
        Image.fromarray(small).resize((size * 4 // 3, size), Image.Resampling.BICUBIC).save(folder / f"{index:05d}.jpg", quality=90)


def bare_encode(tokenizer: ImageTokenizer, batches: list[torch.Tensor], precision: str) -> None:
    """Encode all batches and wait for the last."""
    with inference_precision(precision, tokenizer.device):
        for images in batches:
            codes = tokenizer.encode(images)
        codes.sum().item()


if __name__ == "__main__":
    sys.exit(main())
