"""What `generate_images` was asked to draw: arguments and config -> a task, and a description that tells its pictures from others."""

import argparse
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from unicode.generate.config import GenerationConfig
from unicode.generate.drawing_tasks import DrawingTask, ImageTask, PromptTask
from unicode.generate.prompts import read_prompts
from unicode.generate.sampling import Sampling
from unicode.images.datasets import FileImages, ImageDataset, open_images
from unicode.images.listing import EXTENSIONS, Listing
from unicode.images.scene import ShapesConfig
from unicode.images.sources import Files
from unicode.llm.language_model import LanguageModel
from unicode.metrics.reconstruction import psnr


def world_of(config: GenerationConfig, side: int) -> ShapesConfig:
    """The shapes world of a config, its pictures of `side` pixels."""
    return replace(config.data.shapes, image_size=side)


def build_task(model: LanguageModel, args: argparse.Namespace, config: GenerationConfig) -> DrawingTask:
    """What to draw.

    Raises:
        FileNotFoundError: no such prompts or pictures.
        ValueError: prompts of no known format, rows that a picture does not have.
    """
    side = model.images.config.image_size
    if not (args.complete or args.decompress):
        prompts = read_prompts(config.prompts, world=world_of(config, side), limit=config.limit)
        return PromptTask(prompts, seed=config.seed, template=config.template)
    assert model.layout is not None
    dataset = find_pictures(args.complete or args.decompress, config, side)
    rows = (model.layout.coarse_rows // 2 if args.keep < 0 else args.keep) if args.complete else None
    return ImageTask(model, dataset, rows=rows, caption=args.caption, seed=config.seed, compare=psnr, template=config.template)


def find_pictures(source: str, config: GenerationConfig, side: int) -> ImageDataset:
    """The pictures that an option names: one image file, or what `--images` of other commands takes.

    Raises:
        FileNotFoundError, ValueError: as `open_images`.
    """
    data = replace(config.data, limit=config.limit or config.data.limit)
    path = Path(source)
    if path.is_file() and path.suffix.lower() in EXTENSIONS:
        return FileImages(Files(Listing(path.parent, [path.name])), data, image_size=side, train=False)
    return open_images(source, image_size=side, root=data.root, config=data)


def describe(
    model: LanguageModel, args: argparse.Namespace, config: GenerationConfig, *, sampling: Sampling, ids: list[str]
) -> dict[str, Any]:
    """What the pictures depend on, as plain values; what only changes the speed is left out."""
    source = args.complete or args.decompress or config.prompts
    task = "complete" if args.complete else "decompress" if args.decompress else "prompts"
    described: dict[str, Any] = {
        "task": task,
        "source": source,
        "num_items": len(ids),
        "items": hashlib.sha256("\0".join(ids).encode("utf-8", "surrogateescape")).hexdigest()[:16],
        "model": {"name": Path(args.model).resolve().name, "fingerprint": model.fingerprint, "image_tokenizer": model.images.fingerprint},
        "dtype": str(model.lm.dtype).removeprefix("torch."),
        "sampling": asdict(sampling),
        "seed": config.seed,
        "samples": config.samples,
    }
    if task == "prompts" and Path(source).is_file():
        described["prompts_sha256"] = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16]
    if task != "decompress":
        described["template"] = config.template
    if task == "complete":
        described |= {"keep": args.keep, "caption": args.caption}
    if source.partition(":")[0] == "shapes":
        described["world"] = asdict(world_of(config, model.images.config.image_size))
    return json.loads(json.dumps(described))  # type: ignore[no-any-return]
