"""Draw images with a language model: from prompts, from the first rows of others, or decompressed."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unicode.common.distributed import is_main, world_size
from unicode.common.files import lock_folder
from unicode.images.listing import EXTENSIONS, Files
from unicode.run.command import add_model_options, command, log, new_parser, open_named_engine

if TYPE_CHECKING:
    from unicode.generate.drawing_tasks import ImageTask, PromptTask
    from unicode.generate.images import GenerationConfig
    from unicode.generate.sampling import Sampling
    from unicode.images.dataset import ImageDataset
    from unicode.llm.load import LanguageModel

SHOWN_ERRORS = 5


def build_task(model: LanguageModel, args: argparse.Namespace, config: GenerationConfig) -> PromptTask | ImageTask:
    """What to draw. FileNotFoundError, ValueError: the prompts or pictures are missing or of no known format, or lack rows."""
    from unicode.generate.drawing_tasks import ImageTask, PromptTask, read_prompts

    side = model.images.config.image_size
    if not (args.complete or args.decompress):
        prompts = read_prompts(config.prompts, world=replace(config.data.shapes, image_size=side), limit=config.limit)
        return PromptTask(prompts, seed=config.seed, template=config.template)
    assert model.layout is not None
    dataset = find_pictures(args.complete or args.decompress, config, side)
    rows = (model.layout.coarse_rows // 2 if args.keep < 0 else args.keep) if args.complete else None
    return ImageTask(model, dataset, rows=rows, caption=args.caption, seed=config.seed, template=config.template)


def find_pictures(source: str, config: GenerationConfig, side: int) -> ImageDataset:
    """The pictures that an option names: one image file, or what `--images` of other commands takes. Errors: as `open_images`."""
    from unicode.images.dataset import FileImages, open_images

    data = replace(config.data, limit=config.limit or config.data.limit)
    path = Path(source)
    if path.is_file() and path.suffix.lower() in EXTENSIONS:
        return FileImages(Files(path.parent, [path.name]), data, image_size=side, train=False)
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
        "sampling": sampling.values(),
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
        described["world"] = asdict(replace(config.data.shapes, image_size=model.images.config.image_size))
    return described


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("generate_images", __doc__, dry_run="open everything, draw nothing")
    add, what = parser.add_argument, parser.add_mutually_exclusive_group()
    add_model_options(parser, "run folder of train_llm or folder of merge_lora", engine=True)
    what.add_argument("--prompts", default="", help=".txt (one a line), .jsonl, LLaVA .json, shapes:val or unconditional:NUMBER")
    images = "an image, a folder, a list, a LLaVA .json or shapes:val"
    what.add_argument("--complete", default="", metavar="IMAGES", help=f"pictures whose first rows are kept: {images}")
    what.add_argument("--decompress", default="", metavar="IMAGES", help=f"pictures given compressed, to be written out: {images}")
    what.add_argument("--reference", default="", metavar="FILE", help="LLaVA .json of conversations to hold, with pictures in the answers")
    add("--out", required=True, help="folder of the pictures, results.jsonl, contact_sheet.png and wall.png; of a page for --reference")
    add("--config", default=None, help="YAML of prompts, sampling and protocol, as configs/generation/imagenet.yaml")
    add("--keep", type=int, default=-1, help="rows of coarse cells that --complete keeps (default: half of them)")
    add("--caption", default="", help="words about the pictures of --complete (default: none; the shapes world's own)")
    add("--images", action="append", default=[], metavar="PLACE", help="place of the images of --reference; may be repeated")
    add("--max-new-tokens", type=int, default=512, help="longest answer of --reference (default: %(default)s)")
    add("--max-pictures", type=int, default=4, help="pictures in an answer of --reference (default: %(default)s)")
    settings = "values that replace those of --config, as guidance=2 or limit=100; docs/configs/generation.md lists them"
    add("settings", nargs="*", metavar="KEY=VALUE", help=settings)
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    from unicode.common.config import load_config
    from unicode.generate.images import GenerationConfig

    config = load_config(GenerationConfig, args.config, [*args.settings, *([f"prompts={args.prompts}"] if args.prompts else [])])
    if not (config.prompts or args.complete or args.decompress or args.reference):
        raise ValueError("nothing to draw; give --prompts FILE, --complete IMAGES, --decompress IMAGES or --reference FILE")
    model, engine = open_named_engine(args)
    if args.reference and engine is not None:
        raise ValueError("--reference holds conversations with our own engine; leave out --engine")
    if args.reference:
        return hold_conversations(model, args, config)
    from unicode.generate.drawing_tasks import Sampler, run_task
    from unicode.generate.engine import CachedDecoder
    from unicode.generate.images import CAPTION_TEMPLATE, ImageSampler, check_can_draw
    from unicode.generate.jobs import RESULTS, ResultFile, output_slots
    from unicode.metrics.reconstruction import psnr
    from unicode.serve.engines import EngineSampler

    check_can_draw(model)
    config = replace(config, template=config.template or model.card.request or CAPTION_TEMPLATE)
    sampling = config.sampling({"temperature": 0.0} if args.decompress else model.card.sampling, guided=engine is None)
    task = build_task(model, args, config)
    slots = output_slots(task.ids, samples=config.samples)
    made_by = describe(model, args, config, sampling=sampling, ids=task.ids)
    if engine is not None:
        sampler: Sampler = EngineSampler(engine, sampling)
        made_by |= {"dtype": " ".join(engine.kinds)}
    else:
        num_batches = len(slots) // config.batch_size // world_size()
        decoder = CachedDecoder(model.causal, cache=config.cache, compiled=config.compiled, num_batches=num_batches)
        sampler = ImageSampler(model, sampling=sampling, decoder=decoder)
    if args.dry_run:
        first = task.jobs(slots[:1])[0]
        log.info("%d pictures; the first is asked for with: %s", len(slots), first.request.question if first.request else first.error)
        return 0
    file = ResultFile(Path(args.out) / RESULTS, [slot.key for slot in slots], made_by=made_by, drawings=True)
    records = run_task(sampler, task, file, slots, batch_size=config.batch_size * (engine.width if engine else 1), compare=psnr)
    return report(records, Path(args.out), pairs=bool(args.complete or args.decompress)) if is_main() else 0


def hold_conversations(model: LanguageModel, args: argparse.Namespace, config: GenerationConfig) -> int:
    """Hold the conversations of `args.reference` and write them to `args.out`; returns the exit code, 2 where none came to its end."""
    from unicode.generate.interleaved import ChatSampler, read_conversations, sample_dialogues, write_pages
    from unicode.generate.questions import open_lookup

    source = Path(args.reference)
    asked = read_conversations(source, limit=config.limit)
    own = config.sampling(model.card.sampling, guided=False)
    sampler = ChatSampler(model, pictures=own, num_tokens=args.max_new_tokens, max_pictures=args.max_pictures)
    if args.dry_run:
        log.info("%d conversations, %d of them cannot be held", len(asked), sum(bool(one.error) for one in asked))
        return 0
    if not is_main():
        return 0  # a few conversations for a reader are not worth dealing out
    pictures = open_lookup(args.images, model)
    with lock_folder(args.out, "drawing"):
        dialogues = sample_dialogues(sampler, asked, pictures=pictures, seed=config.seed, batch_size=config.batch_size)
        write_pages(model, Path(args.out), dialogues, title=f"{Path(args.model).name}: {source.name}")
    errors = [one.error for one in dialogues if one.error]
    for error in errors[:SHOWN_ERRORS]:
        log.warning("%s", error)
    log.info("%s: %d conversations, %d of them not to the end", args.out, len(dialogues), len(errors))
    return 2 if len(errors) == len(dialogues) else 0


def report(records: list[dict[str, Any]], out: Path, *, pairs: bool) -> int:
    """Write the contact sheet, and the wall with captions, and log what was drawn and what was not; the exit code is 2 where nothing was.

    `pairs`: whether each picture has an original, its "reference", to stand beside it.
    """
    from unicode.generate.jobs import write_contact_sheet, write_wall

    drawn = [record for record in records if "file" in record]
    errors = [record["error"] for record in records if "error" in record]
    files = [out / name for record in drawn for name in ([record["reference"]] if pairs else []) + [record["file"]]]
    if files:
        write_contact_sheet(files, out / "contact_sheet.png", group=2 if pairs else 1)
    if files and not pairs:
        write_wall(files, [record.get("prompt", "") for record in drawn], out / "wall.png")
    for error in errors[:SHOWN_ERRORS]:
        log.warning("not drawn: %s", error)
    if len(errors) > SHOWN_ERRORS:
        log.warning("... and %d more; their lines in %s say why", len(errors) - SHOWN_ERRORS, out / "results.jsonl")
    means = {name: [record[name] for record in drawn if name in record] for name in ("seconds", "exact", "psnr")}
    shown = ", ".join(f"{name} {sum(values) / len(values):.4g}" for name, values in means.items() if values)
    log.info("%s: %d pictures, %d errors; means: %s", out, len(drawn), len(errors), shown or "none")
    return 0 if drawn else 2


if __name__ == "__main__":
    raise SystemExit(main())
