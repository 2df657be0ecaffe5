"""Measure drawn images: FID, inception score, CLIP score, the nearest picture of a gallery; objects of the shapes world."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from unicode.annotations.records import RefusedError, read_record
from unicode.common.config import load_config
from unicode.common.distributed import all_reduce_sum_, is_main, open_job, rank, world_size
from unicode.common.files import read_json, read_jsonl, write_json, write_jsonl
from unicode.common.json_lists import read_json_list
from unicode.images.shapes import COLOURS, PLACES, SHAPES, ShapesConfig, Thing, find_scene, parse_scene
from unicode.metrics import NotComputed, format_metrics
from unicode.run.command import command, log, new_parser

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unicode.images.dataset import ImageDataset
    from unicode.metrics.generation import GenerationMetrics


class Drawn:
    """The drawn images of a folder.

    Attributes:
        settings: what they were drawn with.
        num_errors: prompts that could not be drawn.
        side: of the images in pixels.

    Raises FileNotFoundError: there are no results. Raises ValueError: no image, or an image that its line names is missing.
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
            raise ValueError(f"{folder} holds no images, only {self.num_errors} errors; {RESULTS} gives the reasons")
        lost = [record["file"] for record in self.records if not (self.folder / record["file"]).is_file()]
        if lost:
            raise ValueError(f"{folder} lacks {len(lost)} images, the first is {lost[0]}; draw again with the same command")
        self.side = self.image(0).shape[-1]

    def __len__(self) -> int:
        return len(self.records)

    def image(self, index: int) -> Tensor:
        """Image `index`, (3, H, W) uint8."""
        import torch

        from unicode.images.decode import open_image

        with open_image(self.folder / self.records[index]["file"]) as opened:
            return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)

    def batches(self, size: int) -> Iterator[tuple[int, Tensor, list[str] | None]]:
        """This rank's batches: number of the first image, (B, 3, H, W) uint8, prompts where every image has one."""
        import torch

        for start in range(rank() * size, len(self), size * world_size()):
            places = range(start, min(start + size, len(self)))
            prompts = [str(self.records[place].get("prompt", "")) for place in places]
            yield start, torch.stack([self.image(place) for place in places]), prompts if all(prompts) else None


def feed(metrics: GenerationMetrics, drawn: Drawn, reference: ImageDataset | None, args: argparse.Namespace, device: torch.device) -> int:
    """Add this rank's share of the images to the metrics that have their network; return how many references all ranks skipped."""
    import torch

    from unicode.images.decode import to_uint8
    from unicode.run.evaluation import read_share

    if not (isinstance(metrics.inception, NotComputed) and isinstance(metrics.clip, NotComputed)):
        for first, images, prompts in tqdm(drawn.batches(args.batch_size), desc="drawn", unit=" batches", disable=not is_main()):
            metrics.add_drawn(images.to(device), first=first, prompts=prompts)
    skipped = 0
    if reference is not None and not isinstance(metrics.inception, NotComputed):
        for batch in read_share(reference, batch_size=args.batch_size, num_workers=args.workers, device=device, title="reference"):
            skipped += len(batch.skipped)
            if batch.indices:
                metrics.add_real(to_uint8(batch.images))
    return int(all_reduce_sum_(torch.tensor(skipped)))


def measure_scenes(drawn: Drawn) -> dict[str, Any]:
    """Name -> entry of what is recognized in images whose prompts are about scenes of the shapes world; nothing for others.

    A scene is named by its key, or in the default world by its things: "red circle top left; blue square bottom right".
    """
    from unicode.images.decode import to_float
    from unicode.metrics.generation import scene_metrics

    world, task = drawn.settings.get("world"), drawn.settings.get("task")
    names = [str(record["id"] if task == "complete" else record.get("reference", "")) for record in drawn.records]
    in_words = {place: found for place, found in enumerate(map(read_things, names)) if found}
    if task == "decompress" or not (world or in_words):
        return {}
    config = ShapesConfig(**world) if world else ShapesConfig(image_size=drawn.side)
    wanted = in_words or {place: list(find_scene(config, name).things) for place, name in enumerate(names)}
    found = [list(parse_scene(to_float(drawn.image(place)).numpy(), config).things) for place in wanted]
    return scene_metrics(list(wanted.values()), found)


def read_things(text: str) -> list[Thing]:
    """Read "red circle top left; blue square bottom right"; nothing where a part is no thing in a place."""
    colours, shapes, places = ("|".join(names) for names in (COLOURS, SHAPES, PLACES[2]))
    found = [re.fullmatch(rf"({colours}) ({shapes}) ({places})", part.strip()) for part in text.split(";")]
    return [Thing(one[1], one[2], "large", one[3]) for one in found if one] if all(found) else []


@dataclass(frozen=True)
class Gallery:
    """Pictures with their properties, among which the nearest to a drawn image is looked for."""

    keys: list[str]
    pictures: Tensor  # (N, 3, H, W) uint8
    attributes: list[dict[str, str]]

    def rows(self, drawn: Drawn) -> dict[int, int]:
        """Place of a drawn image -> row of the picture that its prompt describes: by key, else by the name of the file.

        Raises ValueError: no prompt describes a picture of the gallery.
        """
        by_key = {key: row for row, key in enumerate(self.keys)}
        by_stem = {Path(key).stem: row for row, key in reversed(list(enumerate(self.keys)))} | by_key
        named = [str(record.get("reference") or record.get("id", "")) for record in drawn.records]
        found = {place: by_stem.get(name, by_stem.get(f"{name}.png")) for place, name in enumerate(named)}
        known = {place: row for place, row in found.items() if row is not None}
        if not known:
            example = f"'{named[0]}', the gallery has '{self.keys[0]}'"
            raise ValueError(f"no prompt describes a picture of the gallery: the first is about {example}")
        return known


def read_gallery(path: str, *, side: int) -> Gallery:
    """Read a LLaVA .json of captioned pictures, its paths below its folder or `images` beside it, or a folder of pictures.

    Properties are the "attributes" of a record and its caption where several pictures have the same; of a folder those of the tree.
    `side`: of the squares in pixels. Raises FileNotFoundError, ValueError: as `open_images`; a picture cannot be read.
    """
    import torch

    from unicode.images.dataset import Skipped, open_images

    root, attributes = "", {}
    if Path(path).suffix == ".json" and Path(path).is_file():
        for number, record in enumerate(read_json_list(path)):
            try:
                conversation = read_record(record, form="llava")
                known = {str(name): str(value) for name, value in record.get("attributes", {}).items()}
                attributes[conversation.keys[0]] = known | {"caption": conversation.turns[1]}
            except (RefusedError, IndexError, AttributeError) as error:
                raise ValueError(f"{path}, record {number}: {error}; expected a conversation about one picture") from error
        first = next(iter(attributes), "")
        root = next((str(folder) for folder in (Path(path).parent, Path(path).parent / "images") if (folder / first).is_file()), "")
    dataset = open_images(path, image_size=side, root=root)
    pictures = []
    for index in range(len(dataset)):
        pixels = dataset.pixels(index)
        if isinstance(pixels, Skipped):
            raise ValueError(f"the picture {pixels.key} of the gallery cannot be read: {pixels.reason}")
        pictures.append(pixels)
    keys = dataset.keys
    found = [attributes.get(key) or {"folder": str(Path(key).parent)} for key in keys]
    if len({one.get("caption") for one in found}) == len(found):
        found = [{name: value for name, value in one.items() if name != "caption"} for one in found]
    return Gallery(keys, torch.stack(pictures), found)


def measure_nearest(drawn: Drawn, gallery: Gallery, *, features: str = "", device: Any = "cpu") -> tuple[dict[str, Any], list[Any]]:
    """Return name -> entry of retrieval by pixels, and by the features of a vision model; and lines of what is nearest to each image."""
    import torch

    from unicode.metrics.retrieval import VisionFeatures, featurize, nearest, pixel_features, retrieval_metrics

    rows = gallery.rows(drawn)
    images = torch.stack([drawn.image(place) for place in rows])
    _, same = gallery.pictures.flatten(1).unique(dim=0, return_inverse=True)  # equal pictures are one: either is the right one
    wanted = list(rows.values())
    report: dict[str, Any] = {}
    told = [(drawn.records[place], gallery.keys[row]) for place, row in rows.items()]
    lines = [{"id": record.get("id"), "prompt": record.get("prompt"), "right": key} for record, key in told]
    computers: dict[str, Any] = {"pixels": pixel_features}
    if features:
        model = VisionFeatures(features, device=device)
        computers[model.name] = model
    for name, compute in computers.items():
        found = nearest(featurize(compute, images), featurize(compute, gallery.pictures)).tolist()
        found = [right if same[row] == same[right] else row for row, right in zip(found, wanted, strict=True)]
        how = f"nearest by {name} of {len(gallery.keys)} pictures to each of {len(rows)} images of {drawn.side} px"
        report |= retrieval_metrics(found, wanted, gallery.attributes, name=name, how=how)
        for line, row in zip(lines, found, strict=True):
            line[f"nearest_{name}"] = gallery.keys[row]
    return report, lines


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("eval_generation", __doc__, dry_run="find everything, list what cannot be computed, measure nothing")
    parser.add_argument("--pictures", required=True, help="folder that generate_images filled")
    parser.add_argument("--out", default="", help="JSON file of the report (default: metrics.json in the folder of the images)")
    parser.add_argument("--images", default="", help="images to compare with (FID): folder, list, LLaVA .json, tar shards, shapes:SPLIT")
    parser.add_argument("--config", default=None, help="YAML of a protocol; its data are the images to compare with")
    parser.add_argument("--inception", default="", help="file of torch-fidelity's Inception weights, for FID and inception score")
    parser.add_argument("--clip", default="", help="folder of a CLIP model of transformers, for the CLIP score")
    gallery = "LLaVA .json of captioned pictures (with attributes), or a folder: is the right picture the nearest to what was drawn?"
    parser.add_argument("--gallery", default="", help=gallery)
    parser.add_argument("--features", default="", help="folder of a vision model, as CLIP or DINO, that --gallery compares by too")
    parser.add_argument("--batch-size", type=int, default=32, help="images at a time (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=-1, help="processes per rank that read images (default: up to 8; none on a CPU)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N (default: %(default)s)")
    settings = "values that replace those of --config, as splits=1 or data.limit=5000; docs/configs/generation.md lists them"
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help=settings)
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_intermixed_args(argv)
    from unicode.generate.images import GenerationConfig
    from unicode.images.dataset import build_dataset, open_images
    from unicode.metrics.frechet import load_inception
    from unicode.metrics.generation import GenerationMetrics, load_clip
    from unicode.run.evaluation import describe_missing, load_networks

    if args.batch_size < 1:
        raise ValueError(f"--batch-size is {args.batch_size}; it must be at least 1")
    config = load_config(GenerationConfig, args.config, args.settings)
    device = open_job(args.device)
    drawn = Drawn(args.pictures)
    reference = None
    if args.images:
        reference = open_images(args.images, image_size=drawn.side, config=config.data)
    elif args.config is not None:
        reference = build_dataset(config.data, image_size=drawn.side, train=False)
    gallery = read_gallery(args.gallery, side=drawn.side) if args.gallery and is_main() else None
    if args.features and not args.gallery:
        raise ValueError("--features compares drawn images with those of --gallery; name both")
    inception = load_networks({"inception": partial(load_inception, args.inception)}, device=device)["inception"]
    clip = load_clip(args.clip, device=device)
    if args.dry_run:
        missing = describe_missing({"FID and inception score": inception, "CLIP score": clip})
        log.info("%d images, %d to compare with; not to be computed: %s", len(drawn), len(reference or ()), missing)
        return 0
    metrics = GenerationMetrics(inception=inception, clip=clip, splits=config.splits, device=device)
    skipped = feed(metrics, drawn, reference, args, device)
    name = "" if reference is None else (args.images or config.data.name)
    scenes = {} if args.gallery else measure_scenes(drawn)  # prompts about scenes are none of a gallery's
    report: dict[str, Any] = {"metrics": scenes | metrics.compute(reference=name)}
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
        out = Path(args.out or Path(args.pictures) / "metrics.json")
        if gallery is not None:
            nearest, lines = measure_nearest(drawn, gallery, features=args.features, device=device)
            write_jsonl(out.with_name("nearest.jsonl"), lines)
            report["metrics"] = nearest | report["metrics"]
        write_json(out, report)
        print(format_metrics(report["metrics"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
