"""Which token may come next: text is free, an image is exactly its ids between two markers. Scores (B, V) in, allowed scores out.

The ids of an image are words too, so only the markers say what an id means. Each row of a batch walks its own path:

    text --image_start--> id 0 -> id 1 -> ... -> id n-1 --image_end--> text

Inside, only ids that stand for a piece of an image on the level of that place may come; outside, any token but the markers that
make no sense there. The state lives on the device as two numbers per row, and a mask is one gather and one addition.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from unicode.ids.layout import Layout
from unicode.llm.markers import Markers

OUTSIDE = -1
_TEXT, _TEXT_OR_IMAGE, _END, _LEVELS = 0, 1, 2, 3  # rows of the table of masks; the levels follow


class ImageConstraint(LogitsProcessor):
    """Keeps every image block whole: `num_ids` ids of the right levels, then the end marker, nothing else.

    For transformers' `generate` (sampling or greedy, not beams, which would reorder the rows behind its back) pass a fresh object
    in `logits_processor`. Our own loop calls `begin`, `mask` and `advance` itself.

    Args:
        markers: ids of the marker tokens.
        layout: grid and order of the ids of one image.
        row_ids: (K,) ids that may stand in an image, or one such tensor for each level of `layout`.
        vocab_size: V, the width of the scores.
        num_ids: ids of one block; 0 means a whole image. `layout.row_length` for answers that are single rows of an image.
        max_blocks: how many image blocks may begin in one answer; 0 where the task allows no image. A block that the prompt has begun
            already counts as one.
        max_length: tokens of prompt and answer together; a block that would not fit does not begin. 0: no limit.

    Raises:
        ValueError: ids outside the vocabulary, a marker among the image ids, a number of levels or ids that the layout does not have.
    """

    def __init__(
        self,
        markers: Markers,
        layout: Layout,
        row_ids: Tensor | Sequence[Tensor],
        *,
        vocab_size: int,
        num_ids: int = 0,
        max_blocks: int = 1,
        max_length: int = 0,
    ) -> None:
        if not 0 <= num_ids <= layout.num_codes:
            raise ValueError(f"a block of {num_ids} ids was asked for; an image of {layout.describe()} has 1 to {layout.num_codes}")
        self.num_ids = num_ids or layout.num_codes
        self.max_blocks, self.max_length = max_blocks, max_length
        self.markers = markers
        self.level_ids = checked_level_ids(row_ids, layout, markers=markers, vocab_size=vocab_size)
        self.levels = layout.levels()[: self.num_ids] if len(self.level_ids) > 1 else torch.zeros(self.num_ids, dtype=torch.int64)
        self._table = _build_table(markers, self.level_ids, vocab_size)
        self._seen = -1
        self.step = torch.empty(0, dtype=torch.int64)  # (B,) number of the id that comes next; num_ids: the end marker; OUTSIDE: text
        self.blocks = torch.empty(0, dtype=torch.int64)  # (B,) blocks begun

    def begin(self, prompt: Tensor) -> None:
        """Set the state after the prompts (B, T): inside a block where the last start marker has no end marker behind it.

        Raises:
            ValueError: an open block has more ids than a block can have.
        """
        self._table, self.levels = self._table.to(prompt.device), self.levels.to(prompt.device)
        places = torch.arange(1, prompt.shape[1] + 1, device=prompt.device)
        start, end = (((prompt == marker) * places).amax(1, keepdim=True) if prompt.shape[1] else prompt.new_zeros(len(prompt), 1)
                      for marker in (self.markers.image_start, self.markers.image_end))  # fmt: skip
        inside = (start > end)[:, 0]
        self.step = torch.where(inside, prompt.shape[1] - start[:, 0], OUTSIDE)
        self.blocks = inside.long()
        self._seen = prompt.shape[1]
        if bool((self.step > self.num_ids).any()):
            raise ValueError(f"a prompt begins an image with {int(self.step.max())} ids; a block here has {self.num_ids}")

    def limit(self, num_tokens: int) -> None:
        """Let no block begin that would not fit into the next `num_tokens` tokens."""
        self.max_length = min(self.max_length or self._seen + num_tokens, self._seen + num_tokens)

    def advance(self, tokens: Tensor) -> None:
        """Take the next token of each row, (B,), into the state."""
        inside = self.step >= 0
        begun = ~inside & (tokens == self.markers.image_start)
        following = torch.where(self.step == self.num_ids, OUTSIDE, self.step + 1)
        self.step = torch.where(inside, following, begun.long() - 1)
        self.blocks = self.blocks + begun
        self._seen += 1

    def mask(self, scores: Tensor) -> Tensor:
        """Scores (B, V) of the next token -> the same with -inf wherever a token may not come."""
        rows = self._text_rows()
        rows = torch.where(self.step >= 0, _LEVELS + self.levels[self.step.clamp(0, self.num_ids - 1)], rows)
        rows = torch.where(self.step == self.num_ids, _END, rows)
        return scores + self._table[rows].to(scores.dtype)

    def survey(self, finished: Tensor) -> tuple[bool, int]:
        """Whether all rows are finished, and for how many steps all others are certain to need ids of an image; waits for the device.

        Args:
            finished: (B,) bool.
        """
        left = torch.where(self.step >= 0, self.num_ids - self.step, 0).masked_fill(finished, self.num_ids)
        done, steps = torch.stack([finished.all().long(), left.min()]).tolist()
        return bool(done), int(steps)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The hook of transformers: `input_ids` (B, T) is all that was said so far, or only the answer where embeddings came in."""
        if self._seen < 0:
            self.begin(input_ids)
        for column in range(self._seen, input_ids.shape[1]):
            self.advance(input_ids[:, column])
        return self.mask(scores)

    def _text_rows(self) -> Tensor:
        """(B,) the row of the table for text: with or without a start marker."""
        if self.max_length and self._seen + self.num_ids + 2 > self.max_length:
            return torch.full_like(self.blocks, _TEXT)
        return torch.where(self.blocks < self.max_blocks, _TEXT_OR_IMAGE, _TEXT)


def checked_level_ids(row_ids: Tensor | Sequence[Tensor], layout: Layout, *, markers: Markers, vocab_size: int) -> list[Tensor]:
    """The ids that may stand on each level as a list of one tensor (the same on all levels) or one per level, sorted.

    Raises:
        ValueError: as `ImageConstraint`.
    """
    given = [row_ids] if isinstance(row_ids, Tensor) else list(row_ids)
    if len(given) not in (1, layout.num_levels):
        raise ValueError(f"{len(given)} sets of image ids were given; {layout.describe()} has {layout.num_levels} levels")
    for ids in given:
        if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
            found = f"{int(ids.min())} to {int(ids.max())}" if len(ids) else "none"
            raise ValueError(f"image ids range from {found}; the language model has ids 0 to {vocab_size - 1}; is it another model?")
        clash = [marker for marker in markers.ids() if bool((ids == marker).any())]
        if clash:
            raise ValueError(f"id {clash[0]} is a marker and an image id; export the codebook table again, which leaves special tokens out")
    return [ids.cpu().sort().values for ids in given]


def _build_table(markers: Markers, level_ids: list[Tensor], vocab_size: int) -> Tensor:
    """(3 + L, V) float32: 0 where a token may come, -inf where not."""
    table = torch.full((_LEVELS + len(level_ids), vocab_size), -torch.inf)
    table[_TEXT] = 0
    table[_TEXT, list(markers.ids())] = -torch.inf
    table[_TEXT_OR_IMAGE] = table[_TEXT]
    table[_TEXT_OR_IMAGE, markers.image_start] = 0
    table[_END, markers.image_end] = 0
    for level, ids in enumerate(level_ids):
        table[_LEVELS + level, ids] = 0
    return table
