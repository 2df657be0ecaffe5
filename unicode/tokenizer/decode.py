"""Decoding: runs of ids, of a store or an annotation file -> PNG files."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from unicode.common.distributed import all_reduce_sum_, is_main, rank, world_size
from unicode.common.files import atomic_write, lock_folder
from unicode.ids.layout import Layout
from unicode.ids.store import Store, check_key
from unicode.images.decode import to_uint8
from unicode.tokenizer.model import ImageTokenizer, inference_precision

WRITERS = 4  # threads that compress pictures
Runs = Iterable[tuple[str, np.ndarray]]  # (key of a picture, its ids (n,) in id order)


def store_runs(store: Store, tokenizer: ImageTokenizer, *, view: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """One view of the pictures of a store, in its order.

    Raises ValueError: the store is of another tokenizer or order, or has no such view.
    """
    store.check_tokenizer(tokenizer.fingerprint, tokenizer.layout.resized(*store.layout.grids[0]))
    if not 0 <= view < len(store.spec.views):
        raise ValueError(f"there is no view {view} in {store.path}; from 0 on it has: {', '.join(store.spec.views)}")
    return ((key, store.ids(key, view=view)) for key in store)


def decode_runs(
    tokenizer: ImageTokenizer,
    runs: Runs,
    out: str | Path,
    *,
    layout: Layout,
    levels: int | None = None,
    batch_size: int = 16,
    limit: int = 0,
    total: int | None = None,
) -> tuple[int, int]:
    """Write every run that is a whole picture of `layout` to `out`, at the path of its key; all ranks of a job call it and share them.

    Returns how many pictures all ranks wrote, and how many runs are no whole picture. A key that does not end in .png gets that ending
    after its own, so that a.jpg and a.png stay two pictures. `levels`: decode the first so many only; 1 is the coarse picture. `limit`:
    stop after so many pictures; 0: all. `total`: number of runs where it is known, for the progress bar. Raises ValueError: a key outside
    `out`, an id or a number of levels that the tokenizer does not have, or another process decodes to `out`. Raises OSError: the disk is
    full.
    """
    if batch_size < 1 or limit < 0:
        raise ValueError(f"batch size {batch_size} or limit {limit} is too small")
    if levels is not None and not 1 <= levels <= tokenizer.num_levels:
        raise ValueError(f"{levels} levels asked for; the tokenizer has 1 to {tokenizer.num_levels}")
    written = partial = 0

    def whole() -> Iterator[tuple[str, np.ndarray]]:
        nonlocal partial
        for key, ids in runs:
            if len(ids) == layout.num_codes:
                yield key, ids
            else:
                partial += 1

    pictures = islice(whole(), limit or None)
    batches = iter(lambda: list(islice(pictures, batch_size)), [])
    first = next(batches, [])  # ids that cannot be read end here, before there is a folder
    with (
        lock_folder(out, "decoding"),
        ThreadPoolExecutor(WRITERS) as pool,
        inference_precision("float32", tokenizer.device),
        tqdm(total=total and min(total, limit or total), desc="decoding", unit=" images", disable=not is_main()) as progress,
    ):
        pending: Iterator[None] = iter(())
        for number, batch in enumerate(chain([first] if first else [], batches)):
            progress.update(len(batch))
            if number % world_size() != rank():
                continue
            paths, pixels = [picture_path(Path(out), key) for key, _ in batch], _decode(tokenizer, layout, batch, levels)
            list(pending)  # waits for the batch before, and raises its errors
            pending = pool.map(write_picture, paths, pixels)
            written += len(batch)
        list(pending)
    return int(all_reduce_sum_(torch.tensor(written))), partial


def picture_path(folder: Path, key: str) -> Path:
    """Path of a key's picture under `folder`. ValueError for a key that leaves it."""
    check_key(key)
    return folder / (key if key.endswith(".png") else f"{key}.png")


def _decode(tokenizer: ImageTokenizer, layout: Layout, batch: Runs, levels: int | None) -> np.ndarray:
    """Return the pictures (B, H, W, 3) uint8 of some runs."""
    keys, ids = zip(*batch, strict=True)
    try:
        codes = tokenizer.from_ids(torch.from_numpy(np.stack(ids)).to(tokenizer.device), layout=layout)
    except ValueError as error:
        raise ValueError(f"'{keys[0]}' to '{keys[-1]}': {error}") from error
    return to_uint8(tokenizer.decode(codes, levels=levels, layout=layout)).permute(0, 2, 3, 1).cpu().numpy()


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W, 3) uint8 as a PNG, atomically."""
    with atomic_write(path, "wb") as file:
        Image.fromarray(pixels).save(file, "PNG")
