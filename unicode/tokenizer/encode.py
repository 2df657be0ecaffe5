"""Encoding: a data set of images -> a store of ids. Encoder and search only, nothing is decoded."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from unicode.common.distributed import barrier, is_main, on_main, rank, world_size
from unicode.common.logging import get_logger
from unicode.ids.layout import Layout
from unicode.ids.store import PRECISIONS, StoreSpec, check_keys, hash_keys
from unicode.ids.store_writer import StoreWriter
from unicode.images.dataset import AugmentedIndex, ImageDataset, ShapesImages, Skipped
from unicode.images.loader import build_loader
from unicode.tokenizer.model import ImageTokenizer, inference_precision

log = get_logger(__name__)

VIEWS = ("whole", "flip", "crop")
LARGEST_SHARD, SMALLEST_SHARD = 2048, 64


@dataclass(frozen=True)
class EncodeConfig:
    """How images are encoded. Raises ValueError: an unknown precision or view, or a number below its least."""

    batch_size: int = 32
    """Images per forward pass. Another size may change the last bit of a latent; of 120,000 codes measured none was so close to the
    border of two rows that it changed."""
    num_workers: int = 2  # Processes of each rank that read images; 0: the rank itself
    precision: str = "float32"  # Arithmetic of the encoder, "float32" or "bf16"; the manifest records it
    views: tuple[str, ...] = ("whole",)
    """What is encoded of each image: "whole" = the evaluation square, "flip" = its mirror image, "crop" = a training crop, with another
    seed each time it is named. More than one make the views axis of the store."""
    crop: str = "random"
    """Kind of the data set's training crop (`DataConfig.crop`), for the manifest of a store with "crop" among its views."""
    shard_size: int = 0  # Images per shard; 0: 64 shards, each of 64 to 2048 images
    layout: Layout | None = None  # Layout of images of another size than the tokenizer's own

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is '{self.precision}'; known: {', '.join(PRECISIONS)}")
        unknown = [view for view in self.views if view not in VIEWS]
        if unknown or not self.views:
            raise ValueError(f"views are {','.join(self.views) or 'empty'}; known: {', '.join(VIEWS)}")
        if self.batch_size < 1 or self.num_workers < 0 or self.shard_size < 0:
            raise ValueError(f"batch size {self.batch_size}, workers {self.num_workers} or shard size {self.shard_size} is too small")


@dataclass(frozen=True)
class EncodeReport:
    """What one run of `encode_images` did, summed over the ranks."""

    images: int  # Images of the shards that this run filled, the unreadable ones included
    already: int  # Images of the shards that were there before
    skipped: int  # Images of the whole store that could not be read
    seconds: float


def describe_store(tokenizer: ImageTokenizer, dataset: ImageDataset, config: EncodeConfig) -> StoreSpec:
    """What a store of these images will be made from. Raises ValueError: no images, or keys that are no relative, unique paths."""
    keys = dataset.keys
    check_keys(keys)
    transform: dict[str, Any] = {"image_size": dataset.image_size, "protocol": dataset.protocol}
    if isinstance(dataset, ShapesImages):  # the keys of two worlds are the same, the pictures are not
        transform["world"] = asdict(dataset.config)
    if "crop" in config.views:
        transform["crop"] = config.crop
    return StoreSpec(
        tokenizer=tokenizer.fingerprint,
        layout=config.layout or tokenizer.layout,
        transform=transform,
        precision=config.precision,
        views=config.views,
        vocab_size=int(tokenizer.row_ids.max()) + 1,
        num_images=len(keys),
        image_list=hash_keys(keys),
        shard_size=config.shard_size or choose_shard_size(len(keys)),
    )


def encode_images(
    tokenizer: ImageTokenizer, dataset: ImageDataset, out: str | Path, *, config: EncodeConfig, device: torch.device | str = "cpu"
) -> EncodeReport:
    """Fill the store `out` with the ids of all images; called by every rank of a job.

    What an earlier run finished is kept. Images that cannot be read are recorded in the store with the reason. Raises ValueError: `out`
    holds ids of another tokenizer, transform or list of images, or no image can be read. Raises OSError: the disk is full; what is written
    stays, and the same command resumes.
    """
    spec = describe_store(tokenizer, dataset, config)
    start = time.perf_counter()
    with StoreWriter(out, spec) as writer:
        on_main(lambda: writer.prepare(dataset.keys))
        missing = writer.missing()
        barrier()  # all ranks list the missing shards before one writes, so all deal the same shards
        images = sum(len(spec.shard_rows(shard)) for shard in missing)
        if images < spec.num_images:
            log.info("%s: %d of %d images exist already", out, spec.num_images - images, spec.num_images)
        _encode_shards(tokenizer, dataset, writer, missing[rank() :: world_size()], config=config, device=torch.device(device))
        writer.close()
        barrier()
        skipped = on_main(lambda: writer.finish(dataset.keys).skipped)
    if skipped == spec.num_images:
        raise ValueError(f"none of the {skipped} images could be read; {Path(out) / 'skipped.jsonl'} has the reasons")
    return EncodeReport(images, spec.num_images - images, skipped, time.perf_counter() - start)


def choose_shard_size(num_images: int) -> int:
    """Images per shard: 64 shards, in steps of 64 images, so that ranks have shares and a stopped run loses little."""
    steps = -(-num_images // (64 * SMALLEST_SHARD))
    return min(LARGEST_SHARD, max(1, steps) * SMALLEST_SHARD)


def _encode_shards(
    tokenizer: ImageTokenizer, dataset: ImageDataset, writer: StoreWriter, shards: list[int], *, config: EncodeConfig, device: torch.device
) -> None:
    """Encode the shards of this rank and hand them to the writer. On a GPU only the writer's thread waits for the device."""
    spec = writer.spec
    pictures = _ViewedImages(dataset, spec.views)
    sources, size, num_views = sorted(set(pictures.sources)), config.batch_size, len(spec.views)
    chunks = {shard: [rows[at : at + size] for rows in [spec.shard_rows(shard)] for at in range(0, len(rows), size)] for shard in shards}
    plan = [
        range(rows.start * num_views + source, rows.stop * num_views + source, num_views)
        for shard in shards
        for rows in chunks[shard]
        for source in sources
    ]
    batches = build_loader(pictures, plan, num_workers=config.num_workers, device=device)  # starts nothing before the first batch
    total = sum(len(spec.shard_rows(shard)) for shard in shards)
    name = f"rank 0 of {world_size()}" if world_size() > 1 else "encoding"
    bar = tqdm(total=total, desc=name, unit=" images", disable=not is_main() or not total)
    with inference_precision(config.precision, device), bar as progress:
        for shard in shards:
            first = spec.shard_rows(shard).start
            ids = torch.zeros(spec.shard_shape(shard), dtype=torch.int32, device=device)
            skipped: dict[int, tuple[int, str, str]] = {}
            for rows in chunks[shard]:
                for source in sources:
                    batch = next(batches)
                    skipped.update((skip.index, (skip.index, skip.key, skip.reason)) for skip in batch.skipped)
                    places = [index // num_views - first for index in batch.indices]
                    columns = {column: spec.views[column] for column, other in enumerate(pictures.sources) if other == source}
                    if places:
                        _fill_(ids, tokenizer, batch.images, places, columns=columns, layout=spec.layout)
                progress.update(len(rows))
            writer.put(shard, ids, [skipped[row] for row in sorted(skipped)])


def _fill_(
    ids: torch.Tensor, tokenizer: ImageTokenizer, images: torch.Tensor, rows: list[int], *, columns: dict[int, str], layout: Layout
) -> None:
    """Write the ids of `images` (B, 3, H, W) into `ids` (shard, views, N) at `rows`, mirrored for the columns called "flip"."""
    whole = rows[-1] - rows[0] + 1 == len(rows)  # a slice needs no copy of indices to the device
    place: slice | torch.Tensor = slice(rows[0], rows[-1] + 1) if whole else torch.tensor(rows, device=ids.device)
    for column, view in columns.items():
        found = tokenizer.to_ids(tokenizer.encode(images.flip(-1) if view == "flip" else images), layout=layout)
        ids[place, column] = found.to(torch.int32)


class _ViewedImages(ImageDataset):
    """Item `row * views + source` is the picture of a row that the view `source` encodes. "whole" and "flip" share one, each "crop" has
    its own. An unreadable picture is left out; the loader would replace that of an `AugmentedIndex` by another one."""

    def __init__(self, dataset: ImageDataset, views: tuple[str, ...]) -> None:
        super().__init__([], image_size=dataset.image_size, protocol=dataset.protocol)
        self._dataset = dataset
        self._views = views
        shared = next((column for column, view in enumerate(views) if view != "crop"), 0)
        self.sources = [column if view == "crop" else shared for column, view in enumerate(views)]

    def __len__(self) -> int:
        return len(self._dataset) * len(self._views)

    def key(self, index: int) -> str:
        return self._dataset.key(index // len(self._views))

    def pixels(self, item: int | AugmentedIndex) -> torch.Tensor | Skipped:  # `Skipped.index` is the row
        assert isinstance(item, int), item
        row, source = divmod(item, len(self._views))
        # the number of the item is the seed: torch keeps 32 bits of it, so views must differ in the low ones
        return self._dataset.pixels(AugmentedIndex(row, item & 0xFFFFFFFF) if self._views[source] == "crop" else row)
