"""Examples -> one batch: padded on either side or packed into one row, with the attention mask it needs."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from unicode.annotations.records import TASKS
from unicode.common.logging import get_logger
from unicode.images.decode import PictureTransform
from unicode.images.listing import UnreadableImageError
from unicode.images.lookup import ImageLookup, square_pixels
from unicode.llm.examples import IGNORED, Example

SIDES = ("right", "left")
GREY_LEVEL = 128
WARNINGS = 5  # unreadable pictures that are named in the log, per process
log = get_logger(__name__)
PADDING = -1  # Value of `example` at padded positions


def collate(examples: Sequence[Example], *, pad_id: int, side: str = "right", pack: bool = False) -> dict[str, torch.Tensor]:
    """Put examples into one batch of B rows and T positions; packed, B is 1 and T the sum of the lengths.

    `side`: where the padding of `pad_id` stands; "left" for generation. `pack`: all examples one after another in one row, where none sees
    another.

    Returns input_ids (B, T), labels (B, T), is_image (B, T) bool; extra_ids (n, m - 1) and extra_at (n,), flat positions b * T + t; example
    (B, T), index in `examples` of each position, PADDING at padded ones; task (len(examples),), indexes in annotations.records.TASKS, -1
    for none. Padded on the right, attention needs nothing else: a causal model never sees the padding behind a position. Padded on the
    left, there are also attention_mask (B, T) of 0 and 1, and position_ids. Packed, there are position_ids (1, T) that restart with each
    example; call the model with use_cache=False. With branches, there are position_ids and branch (B, T), from which `branch_mask` makes
    the mask on the device. Raises ValueError: no examples, or an unknown side.
    """
    if not examples or side not in SIDES:
        raise ValueError(f"{len(examples)} examples, side '{side}'; expected one at least and one of: {', '.join(SIDES)}")
    lengths = [len(example) for example in examples]
    width = sum(lengths) if pack else max(lengths)
    ends = np.cumsum(lengths) if pack else (np.arange(len(examples)) + 1) * width
    starts = ends - lengths if pack or side == "left" else ends - width

    def lay(values: Iterable[torch.Tensor], fill: int) -> torch.Tensor:
        flat = torch.full((1 if pack else len(examples), width), fill, dtype=torch.long)
        for value, start in zip(values, starts, strict=True):
            flat.view(-1)[start : start + len(value)] = value
        return flat

    batch = {
        "input_ids": lay((example.input_ids for example in examples), pad_id),
        "labels": lay((example.labels for example in examples), IGNORED),
        "is_image": lay((example.is_image for example in examples), 0).bool(),
        "extra_ids": torch.cat([example.extra_ids for example in examples]),
        "extra_at": torch.cat([example.extra_at + start for example, start in zip(examples, starts, strict=True)]),
        "example": lay((torch.full((length,), number) for number, length in enumerate(lengths)), PADDING),
        "task": torch.tensor([TASKS.index(example.task) if example.task in TASKS else -1 for example in examples]),
    }
    batch["labels"].view(-1)[starts] = IGNORED  # a first position is predicted from nothing, or in a packed row from another example
    branched = any(bool(example.branch.any()) for example in examples)
    if branched:
        batch["branch"] = lay((example.branch for example in examples), 0)
    elif side == "left" and not pack:
        batch["attention_mask"] = (batch["example"] != PADDING).long()
    if branched or pack or side == "left":
        batch["position_ids"] = lay((example.positions() for example in examples), 0)
    return batch


def sum_inputs(embed: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Return the inputs_embeds (B, T, E) of a batch: rows of `input_ids`, and at `extra_at` those of `extra_ids` added.

    One call of the embedding module whatever the batch holds, so that all ranks run the same modules.
    """
    ids, extra, at = batch["input_ids"], batch["extra_ids"], batch["extra_at"]
    rows = embed(torch.cat((ids.flatten(), extra.flatten())))
    words, added = rows[: ids.numel()], rows[ids.numel() :]
    return words.index_add(0, at.repeat_interleave(extra.shape[1]), added).view(*ids.shape, -1)


def branch_mask(owner: torch.Tensor, branch: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """Return the attention mask (B, 1, T, T): visible are earlier positions of the same example, of no branch or the own branch.

    It is added to the scores: 0 where visible and the lowest number of `dtype` elsewhere. `owner`: (B, T), the example of each position
    (`example` of a batch); padding sees only padding. `branch`: (B, T), see `Example`.
    """
    steps = torch.arange(owner.shape[1], device=owner.device)
    earlier = steps[:, None] >= steps[None, :]
    same = owner[:, :, None] == owner[:, None, :]
    open_to = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    seen = (earlier & same & open_to)[:, None]
    return torch.zeros(seen.shape, dtype=dtype, device=owner.device).masked_fill_(~seen, torch.finfo(dtype).min)


def block_mask(owner: torch.Tensor, branch: torch.Tensor | None) -> BlockMask:
    """Return what `branch_mask` means, of tensors (B, T), as blocks for flex attention: no tensor of T x T is kept. None: no branches."""

    def seen(b: torch.Tensor, _: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        inside = (q >= k) & (owner[b, q] == owner[b, k])
        return inside if branch is None else inside & ((branch[b, k] == 0) | (branch[b, q] == branch[b, k]))

    rows, width = owner.shape
    return create_block_mask(seen, rows, None, width, width, device=owner.device, _compile=owner.is_cuda)


class PixelReader:
    """Adds to a batch the pixels that a `LlavaModel` takes beside ids; worker processes get a pickled copy.

    An image that cannot be read becomes a grey one and is counted; the labels of its conversation are ignored. `transform`: RGB image ->
    (3, S, S) uint8. `side`: S. `positions`: placeholder positions n of an image.
    """

    def __init__(self, pictures: ImageLookup, *, transform: PictureTransform, side: int, positions: int) -> None:
        self.pictures, self.transform, self.side, self.positions = pictures, transform, side, positions
        self._unreadable = torch.zeros(1, dtype=torch.long).share_memory_()  # counted by worker processes too

    @property
    def num_unreadable(self) -> int:
        """Images that could not be read so far, each counted every time."""
        return int(self._unreadable)

    def __call__(self, examples: Sequence[Example], batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return pixels (m, 3, S, S) uint8 and image_at (m n) int64 flat positions; nothing for a batch without images.

        Labels in `batch` of conversations whose image cannot be read become IGNORED.
        """
        owners = [(number, key) for number, example in enumerate(examples) for key in example.images]
        if not owners:
            return {}
        places = batch["is_image"].flatten().nonzero().flatten()
        assert len(places) == len(owners) * self.positions, f"{len(places)} placeholders for {len(owners)} pictures of {self.positions}"
        pixels = torch.full((len(owners), 3, self.side, self.side), GREY_LEVEL, dtype=torch.uint8)
        for row, (number, key) in enumerate(owners):
            try:
                pixels[row] = square_pixels(self.pictures.read(key), transform=self.transform, side=self.side)
            except UnreadableImageError as error:
                self._unreadable += 1
                if self.num_unreadable <= WARNINGS:
                    log.warning("image '%s' cannot be read (%s); its conversation is left out", key, error)
                batch["labels"][batch["example"] == number] = IGNORED
        return {"pixels": pixels, "image_at": places}
