"""Examples -> one batch: padded on either side or packed into one row, with as much of a mask as it takes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from unicode.annotations.records import TASKS
from unicode.common.logging import get_logger
from unicode.images.decode import PictureTransform, UnreadableImageError
from unicode.images.lookup import ImageLookup, square_pixels
from unicode.llm.examples import IGNORED, Example

SIDES = ("right", "left")
GREY_LEVEL = 128
WARNINGS = 5  # unreadable pictures that are named in the log, per process
log = get_logger(__name__)
PADDING = -1
"""What `example` holds at padded positions."""


def collate(
    examples: Sequence[Example], *, pad_id: int, side: str = "right", pack: bool = False, mask_dtype: torch.dtype | None = torch.float32
) -> dict[str, torch.Tensor]:
    """Put examples into one batch of B rows and T positions; packed, B is 1 and T the sum of the lengths.

    Args:
        examples: at least one.
        pad_id: id at padded positions.
        side: where the padding stands; "left" for generation.
        pack: all examples one after another in one row, none sees another.
        mask_dtype: of a 4D mask: a float type makes one that is added to the scores (right for every attention of transformers), None
            a mask of bool (for sdpa alone). A model in bfloat16 wants torch.bfloat16.

    Returns:
        input_ids (B, T), labels (B, T), is_image (B, T) bool; extra_ids (n, m - 1) and extra_at (n,), flat positions b * T + t;
        example (B, T), the place in `examples` that a position belongs to, PADDING where to none; task (len(examples),), places in
        annotations.conversation.TASKS, -1 for none; text_targets and image_targets (len(examples),), learned positions of each kind.
        attention_mask and position_ids as it takes:
          rows of plain examples         attention_mask (B, T) of 0 and 1; position_ids too where the padding is on the left
          packed plain examples          position_ids (1, T) that start again with each; no mask: call the model with use_cache=False
          examples with branches         attention_mask (B, 1, T, T) and position_ids, padded or packed

    Raises:
        ValueError: no examples, or an unknown side.
    """
    if not examples or side not in SIDES:
        raise ValueError(f"{len(examples)} examples, side '{side}'; expected one at least and one of: {', '.join(SIDES)}")
    rows = [list(range(len(examples)))] if pack else [[number] for number in range(len(examples))]
    lengths = [sum(len(examples[number]) for number in row) for row in rows]
    width = max(lengths)
    starts: list[int] = [0] * len(examples)
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        place = index * width + (width - length if side == "left" else 0)
        for number in row:
            starts[number] = place
            place += len(examples[number])

    def lay(name: str, fill: int) -> torch.Tensor:
        flat = torch.full((len(rows) * width,), fill, dtype=torch.long)
        for example, start in zip(examples, starts, strict=True):
            flat[start : start + len(example)] = getattr(example, name)
        return flat.view(len(rows), width)

    batch = {"input_ids": lay("input_ids", pad_id), "labels": lay("labels", IGNORED), "is_image": lay("is_image", 0).bool()}
    batch["labels"].flatten()[starts] = IGNORED  # what stands first is predicted from nothing, or in a packed row from a stranger
    batch["extra_ids"] = torch.cat([example.extra_ids for example in examples])
    batch["extra_at"] = torch.cat([example.extra_at + start for example, start in zip(examples, starts, strict=True)])
    batch |= _attention(examples, starts, lay("branch", 0), pack=pack, left=side == "left", mask_dtype=mask_dtype)
    batch["task"] = torch.tensor([TASKS.index(example.task) if example.task in TASKS else -1 for example in examples])
    batch["text_targets"] = torch.tensor([example.num_text_targets for example in examples])
    batch["image_targets"] = torch.tensor([example.num_image_targets for example in examples])
    return batch


def sum_inputs(embed: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """Return the inputs_embeds (B, T, E) of a batch: rows of `input_ids`, and at `extra_at` those of `extra_ids` added.

    One call of the embedding module whatever the batch holds, so that all ranks run the same modules.
    """
    ids, extra, at = batch["input_ids"], batch["extra_ids"], batch["extra_at"]
    rows = embed(torch.cat((ids.flatten(), extra.flatten())))
    words, added = rows[: ids.numel()], rows[ids.numel() :]
    return words.index_add(0, at.repeat_interleave(extra.shape[1]), added).view(*ids.shape, -1)


def _attention(
    examples: Sequence[Example], starts: list[int], branch: torch.Tensor, *, pack: bool, left: bool, mask_dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """`example`, and attention_mask and position_ids as the batch needs them."""
    owner, positions = torch.full(branch.shape, PADDING), torch.zeros_like(branch)
    for number, (example, start) in enumerate(zip(examples, starts, strict=True)):
        owner.view(-1)[start : start + len(example)] = number
        positions.view(-1)[start : start + len(example)] = example.positions()
    parts = {"example": owner}
    if branch.any():
        parts["attention_mask"] = branch_mask(owner, branch, dtype=mask_dtype)
    elif not pack:
        parts["attention_mask"] = (owner != PADDING).long()
    if pack or left or branch.any():
        parts["position_ids"] = positions
    return parts


def branch_mask(owner: torch.Tensor, branch: torch.Tensor, *, dtype: torch.dtype | None) -> torch.Tensor:
    """Return who sees whom, (B, 1, T, T): earlier positions of the same example, in the common beginning or the own branch.

    Args:
        owner: (B, T), which example a position belongs to; padding sees only padding.
        branch: (B, T).
        dtype: a float type gives 0 where seen and the type's lowest number elsewhere, None gives True and False.
    """
    steps = torch.arange(owner.shape[1], device=owner.device)
    earlier = steps[:, None] >= steps[None, :]
    same = owner[:, :, None] == owner[:, None, :]
    open_to = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    seen = (earlier & same & open_to)[:, None]
    if dtype is None:
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=owner.device).masked_fill_(~seen, torch.finfo(dtype).min)


class PixelReader:
    """Adds to a batch the pixels that a `LlavaModel` takes beside ids. Worker processes get it pickled.

    A picture that cannot be read becomes a grey one and is counted; the labels of its conversation are ignored.

    Args:
        pictures: where they come from.
        transform: RGB picture -> (3, S, S) uint8.
        side: S.
        positions: placeholder positions n of a picture.
    """

    def __init__(self, pictures: ImageLookup, *, transform: PictureTransform, side: int, positions: int) -> None:
        self.pictures, self.transform, self.side, self.positions = pictures, transform, side, positions
        self._unreadable = torch.zeros(1, dtype=torch.long).share_memory_()  # counted by worker processes too

    @property
    def num_unreadable(self) -> int:
        """Pictures that could not be read so far; one that is met again counts again."""
        return int(self._unreadable)

    def __call__(self, examples: Sequence[Example], batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return pixels (m, 3, S, S) uint8 and image_at (m n) int64 flat positions; nothing for a batch without pictures.

        Labels of conversations whose picture cannot be read are taken out of `batch`.
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
                self._count(key, error)
                batch["labels"][batch["example"] == number] = IGNORED
        return {"pixels": pixels, "image_at": places}

    def _count(self, key: str, error: UnreadableImageError) -> None:
        self._unreadable += 1
        if self.num_unreadable <= WARNINGS:
            log.warning("picture '%s' cannot be read (%s); its conversation is left out", key, error)
