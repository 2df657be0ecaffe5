"""A data set and lists of indices -> batches on a device, made by worker processes, and a report of skipped pictures."""

import hashlib
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unicode.common.files import write_jsonl
from unicode.images.dataset import AugmentedIndex, ImageDataset, Skipped
from unicode.images.decode import to_float

MAX_TRIES = 20  # pictures in a row that cannot be read before training stops
Request = Sequence[int] | Sequence[AugmentedIndex]


@dataclass
class Batch:
    """Pictures of one list of requests, in its order."""

    images: Tensor  # (B, 3, H, W) float32 in [-1, 1], from a worker uint8; B may be 0 in evaluation, where nothing could be read
    keys: list[str]
    indices: list[int]
    skipped: list[Skipped]  # unreadable pictures: left out in evaluation, replaced in training
    error: str = ""  # why there is no batch: an exception would arrive from a worker as its whole traceback

    def pin_memory(self) -> "Batch":
        """Move the images to page-locked memory; the DataLoader calls this in a thread of its own."""
        return replace(self, images=self.images.pin_memory())


def build_loader(
    dataset: ImageDataset, batches: Iterable[Request], *, num_workers: int, device: str | torch.device = "cpu"
) -> Iterator[Batch]:
    """Yield a batch for each list of `batches`, in order; each depends on its list alone, not on the number of workers.

    `batches`: lists of int (evaluation: what cannot be read is left out) or of AugmentedIndex (training: it is replaced by another picture
    that this index alone determines). `num_workers`: processes that read and decode; 0: this one does. Raises ValueError: in training
    MAX_TRIES pictures in a row cannot be read.
    """
    device = torch.device(device)
    context = None
    if num_workers:  # workers start from a clean server process, as forking one with threads or a GPU may hang; it imports torch once
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["unicode.images.loader"])
    loader = DataLoader(
        _Fetcher(dataset),
        sampler=cast(Iterable[int], batches),  # each "index" is a whole list
        batch_size=None,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        multiprocessing_context=context,
        generator=torch.Generator(),  # starting a pass draws a number: not from the generator that a resumed run must find unchanged
    )
    for batch in loader:
        if batch.error:
            raise ValueError(batch.error)
        yield replace(batch, images=to_float(batch.images.to(device, non_blocking=True)))


class _Fetcher(Dataset[Batch]):
    """A data set whose items are whole batches: a worker fetches and stacks, and only one tensor crosses to the main process."""

    def __init__(self, dataset: ImageDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, items: Request) -> Batch:
        pixels: list[Tensor] = []
        indices: list[int] = []
        skipped: list[Skipped] = []
        for item in items:
            for tries in range(1, MAX_TRIES + 1):
                fetched = self._dataset.pixels(item)
                if isinstance(fetched, Tensor):
                    pixels.append(fetched)
                    indices.append(item.index if isinstance(item, AugmentedIndex) else item)
                    break
                skipped.append(fetched)
                if not isinstance(item, AugmentedIndex):
                    break
                digest = hashlib.blake2b(f"{item.index}/{item.seed}/{tries}".encode(), digest_size=8).digest()
                item = AugmentedIndex(int.from_bytes(digest, "little") % len(self._dataset), item.seed)
            else:
                what = f"the last: {skipped[-1].key} ({skipped[-1].reason})"
                error = f"{MAX_TRIES} images in a row could not be read, {what}; look at the data under data.root"
                return Batch(torch.empty(0), [], [], skipped, error)
        size = self._dataset.image_size
        images = torch.stack(pixels) if pixels else torch.empty(0, 3, size, size, dtype=torch.uint8)
        return Batch(images, [self._dataset.key(index) for index in indices], indices, skipped)


class SkipReport:
    """Collects the pictures that could not be used."""

    def __init__(self) -> None:
        self._skipped: dict[str, Skipped] = {}  # by key: a picture that is met again counts once

    def add(self, skipped: Iterable[Skipped]) -> None:
        for entry in skipped:
            self._skipped.setdefault(entry.key, entry)

    def __len__(self) -> int:
        return len(self._skipped)

    def counts(self) -> dict[str, int]:
        """Return how many pictures were skipped for each kind of reason, the most frequent first."""
        return dict(Counter(entry.reason.split(":")[0] for entry in self._skipped.values()).most_common())

    def summary(self) -> str:
        """Return one line: how many, why, and the first of them."""
        if not self._skipped:
            return "no image skipped"
        first = next(iter(self._skipped.values()))
        reasons = ", ".join(f"{number} {kind}" for kind, number in self.counts().items())
        return f"{len(self)} image{'s' if len(self) > 1 else ''} skipped ({reasons}); the first: {first.key} ({first.reason})"

    def write(self, path: str | Path) -> None:
        """Write one JSON object per skipped picture, in the order of the data set, atomically."""
        write_jsonl(path, (asdict(entry) for entry in sorted(self._skipped.values(), key=lambda entry: entry.index)))
