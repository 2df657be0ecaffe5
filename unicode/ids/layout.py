"""Layout: the order of the ids of an image; no other module decides it.

Two orders exist. The *canonical* one is how a tokenizer counts its codes: hierarchical levels one after the other, coarse to
fine, each in raster order; residual codes cell by cell in raster order, depth fastest. The *id order* is how the LLM reads and
writes them, in files and in text: every coarse cell is followed by the finer codes that belong to it, so that the first n rows
of cells are one unbroken run. `arrange` goes from canonical to id order, `restore` back; both are one gather.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch  # takes seconds to import, and only functions that are given tensors need it

Codes = TypeVar("Codes", np.ndarray, "torch.Tensor")
ORDERS = {"hierarchical": ("nested", "rows"), "residual": ("depth",)}  # the first one is the default of its kind

_DESCRIBED = re.compile(r"(?P<kind>\w+) (?P<grids>\d+x\d+(?: \+ \d+x\d+)*)(?: x (?P<depth>\d+))? in order '(?P<order>\w+)'")


@dataclass(frozen=True)
class Layout:
    """Grid and order of the codes of one image; hashable, immutable, the same in configs, files and generation.

    Raises ValueError: an unknown kind or order, or grids that do not stack.
    """

    kind: str  # "hierarchical" (grids that grow from level to level) or "residual" (`depth` codes in each cell of one grid)
    grids: tuple[tuple[int, int], ...]
    """(height, width) of each level in cells, coarse to fine; each level divides the next. One grid for "residual"."""
    depth: int = 1  # Codes per cell of a residual layout; 1 for a hierarchical one
    order: str = ""
    """Order of ids; empty means the default of the kind. "nested": each coarse code, then the k x k finer codes under it in
    raster order, each followed in turn by its own. "rows": as UniCode-ECCV24, code k of a level, then the finer codes
    f k ... f k + f - 1 of the next level's raster (f = finer codes per code). "depth": cell by cell, depth fastest."""

    def __post_init__(self) -> None:
        if self.kind not in ORDERS:
            raise ValueError(f"layout.kind is '{self.kind}'; known: {', '.join(ORDERS)}")
        object.__setattr__(self, "grids", _checked_grids(self.grids))
        object.__setattr__(self, "order", self.order or ORDERS[self.kind][0])
        if self.order not in ORDERS[self.kind]:
            raise ValueError(f"layout.order is '{self.order}'; a {self.kind} layout has: {', '.join(ORDERS[self.kind])}")
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 1:
            raise ValueError(f"layout.depth is {self.depth!r}; it must be a whole number from 1 up")
        if self.kind == "residual" and len(self.grids) != 1:
            raise ValueError(f"layout.grids has {len(self.grids)} levels; a residual layout has one grid and counts its levels in depth")
        if self.kind == "residual":
            return
        if self.depth != 1:
            raise ValueError(f"layout.depth is {self.depth}; a hierarchical layout counts its levels in grids and has depth 1")
        if len(self.grids) < 2:
            raise ValueError("layout.grids has one level; a hierarchical layout has two or more (one level: kind 'residual', depth 1)")
        for coarse, fine in zip(self.grids, self.grids[1:], strict=False):
            if fine[0] % coarse[0] or fine[1] % coarse[1] or fine == coarse:
                raise ValueError(f"layout.grids: {fine} is not a multiple of the coarser {coarse}; usual is twice as many cells a side")

    @property
    def num_codes(self) -> int:
        """Ids of one whole image: 320 for 8x8 + 16x16, 256 for 8x8 with depth 4."""
        return sum(self.level_sizes)

    @property
    def num_levels(self) -> int:
        """Levels of a hierarchical layout, depth of a residual one."""
        return len(self.level_sizes)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of each level: (64, 256) for 8x8 + 16x16, (64, 64, 64, 64) for 8x8 with depth 4."""
        sizes = tuple(height * width for height, width in self.grids)
        return sizes * self.depth if self.kind == "residual" else sizes

    @property
    def coarse_rows(self) -> int:
        """Rows of coarse cells, the steps in which a picture grows from top to bottom."""
        return self.grids[0][0]

    @property
    def cell_length(self) -> int:
        """Ids of one coarse cell: its code and all finer ones; 5 for 8x8 + 16x16. Cell c is ids[c * cell_length :][:cell_length]."""
        return self.num_codes // (self.grids[0][0] * self.grids[0][1])

    @property
    def row_length(self) -> int:
        """Ids of one row of coarse cells: 40 for 8x8 + 16x16."""
        return self.cell_length * self.grids[0][1]

    def arrange(self, codes: Codes) -> Codes:
        """Canonical order (..., N) -> id order (..., N); numpy array or tensor of any type. ValueError for another N."""
        return _gather(codes, self, inverse=False)

    def restore(self, ordered: Codes) -> Codes:
        """Id order (..., N) -> canonical order (..., N), the exact inverse of `arrange`."""
        return _gather(ordered, self, inverse=True)

    def levels(self) -> "torch.Tensor":
        """LongTensor (N,): the level, 0 = coarsest, of each position in id order."""
        import torch

        return self.arrange(self.join([torch.full((size,), level) for level, size in enumerate(self.level_sizes)]))

    def split(self, codes: Codes) -> list[Codes]:
        """Canonical order (..., N) -> one (..., cells) in raster order for each level. ValueError for another N."""
        _check_length(codes, self)
        if self.kind == "residual":
            return [codes[..., level :: self.depth] for level in range(self.depth)]
        ends = np.cumsum(self.level_sizes).tolist()
        return [codes[..., end - size : end] for size, end in zip(self.level_sizes, ends, strict=True)]

    def join(self, levels: Sequence[Codes]) -> Codes:
        """One (..., cells) for each level -> canonical order (..., N), the inverse of `split`. ValueError for other sizes."""
        sizes = tuple(level.shape[-1] for level in levels)
        if sizes != self.level_sizes:
            raise ValueError(f"levels of {sizes} codes do not fit {self.describe()}, whose levels have {self.level_sizes}")
        if isinstance(levels[0], np.ndarray):
            if self.kind == "hierarchical":
                return np.concatenate(levels, -1)
            return np.stack(levels, -1).reshape(*levels[0].shape[:-1], self.num_codes)
        import torch

        return torch.cat(list(levels), -1) if self.kind == "hierarchical" else torch.stack(list(levels), -1).flatten(-2)

    def prefix(self, rows: int) -> int:
        """Number of ids in the first `rows` rows of coarse cells. ValueError outside 0..coarse_rows."""
        if not 0 <= rows <= self.coarse_rows:
            raise ValueError(f"{rows} rows of coarse cells asked for; {self.describe()} has 0 to {self.coarse_rows}")
        return rows * self.row_length

    def rows_of(self, num_ids: int) -> int:
        """Number of coarse rows that a run of `num_ids` ids fills, the inverse of `prefix`. ValueError for a broken row."""
        rows, rest = divmod(num_ids, self.row_length)
        if rest or not 0 <= rows <= self.coarse_rows:
            allowed = f"0 to {self.coarse_rows} rows of {self.row_length} ids"
            raise ValueError(f"a run of {num_ids} ids is not whole rows of {self.describe()}: {allowed}")
        return rows

    def row_slice(self, row: int) -> slice:
        """Where row `row` (from 0) of coarse cells stands in id order; after n whole rows, row n is the next one."""
        return slice(self.prefix(row), self.prefix(row + 1))

    def resized(self, height: int, width: int) -> "Layout":
        """The same layout for an image of height x width coarse cells.

        The first n rows of an image are an image of their own: `layout.resized(n, w).restore(ids[:layout.prefix(n)])`.
        """
        base_height, base_width = self.grids[0]
        return replace(self, grids=tuple((h // base_height * height, w // base_width * width) for h, w in self.grids))

    def describe(self) -> str:
        """One phrase for messages, as "hierarchical 8x8 + 16x16 in order 'nested'"."""
        grids = " + ".join(f"{height}x{width}" for height, width in self.grids)
        return f"{self.kind} {grids}{f' x {self.depth}' if self.kind == 'residual' else ''} in order '{self.order}'"

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Inverse of `describe`. ValueError for any other phrase."""
        found = _DESCRIBED.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} describes no layout; expected a phrase as \"hierarchical 8x8 + 16x16 in order 'nested'\"")
        grids = [[int(side) for side in grid.split("x")] for grid in found["grids"].split(" + ")]
        return cls(found["kind"], tuple((height, width) for height, width in grids), int(found["depth"] or 1), found["order"])

    def check_same(self, other: "Layout") -> None:
        """ValueError that names both when `other` has another grid or order: ids of the two must not be mixed."""
        if self != other:
            both = f"{self.describe()} and {other.describe()}"
            raise ValueError(f"ids of two layouts do not mix: {both}; encode the images again with one tokenizer")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and YAML; `from_dict` inverts it."""
        return {"kind": self.kind, "grids": [list(grid) for grid in self.grids], "depth": self.depth, "order": self.order}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Layout":
        """Inverse of `to_dict`. ValueError for missing or unknown keys: an order that is not written down is not guessed."""
        expected = {"kind", "grids", "depth", "order"}
        if not isinstance(values, dict) or set(values) != expected:
            found = sorted(values) if isinstance(values, dict) else values
            raise ValueError(f"a layout has the keys {sorted(expected)}; found {found}")
        return cls(**values)


def _checked_grids(grids: Any) -> tuple[tuple[int, int], ...]:
    """Lists from JSON become tuples. ValueError for anything but pairs of positive whole numbers."""
    try:
        pairs = tuple((height, width) for height, width in grids)
    except (TypeError, ValueError) as error:
        raise ValueError(f"layout.grids is {grids!r}; it must be pairs (height, width), coarse to fine") from error
    if not pairs or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for pair in pairs for side in pair):
        raise ValueError(f"layout.grids is {grids!r}; it must be pairs of positive whole numbers, coarse to fine")
    return pairs


def _check_length(codes: "np.ndarray | torch.Tensor", layout: Layout) -> None:
    if codes.ndim == 0 or codes.shape[-1] != layout.num_codes:
        raise ValueError(f"codes of shape {tuple(codes.shape)}: the last axis must have {layout.num_codes} codes for {layout.describe()}")


def _gather(codes: Codes, layout: Layout, *, inverse: bool) -> Codes:
    """Reorder the last axis by the permutation of `layout`."""
    _check_length(codes, layout)
    if isinstance(codes, np.ndarray):
        return np.take(codes, _permutation(layout, inverse), axis=-1)
    return codes.index_select(-1, _permutation_tensor(layout, inverse, codes.device))


@lru_cache(maxsize=64)
def _permutation_tensor(layout: Layout, inverse: bool, device: "torch.device") -> "torch.Tensor":
    import torch

    with torch.inference_mode(False):  # the tensor is cached: one made inside inference mode could not serve training later
        return torch.from_numpy(_permutation(layout, inverse).copy()).to(device)


@lru_cache(maxsize=64)
def _permutation(layout: Layout, inverse: bool) -> np.ndarray:
    """int64 (N,): canonical position of each place in id order, or with `inverse` the place of each canonical position.

    Built from the finest level up: `blocks` (h, w, m) or (cells, m) holds, for each cell of a level, the canonical positions of
    the cell and of everything under it in id order.
    """
    if layout.kind == "residual":
        return np.arange(layout.num_codes)  # depth is fastest in both orders
    starts = np.concatenate(([0], np.cumsum(layout.level_sizes)))
    blocks = np.empty((*layout.grids[-1], 0), dtype=np.int64)
    for level in range(len(layout.grids) - 1, -1, -1):
        height, width = layout.grids[level]
        own = np.arange(starts[level], starts[level + 1]).reshape(height, width, 1)
        if layout.order == "nested":  # (H, W, m) of the finer level -> those under each code of this one
            fine_height, fine_width, length = blocks.shape
            blocks = blocks.reshape(height, fine_height // height, width, fine_width // width, length).swapaxes(1, 2)
        blocks = np.concatenate((own, blocks.reshape(height, width, blocks.size // (height * width))), axis=-1)
    order = blocks.reshape(-1)
    result = np.argsort(order) if inverse else order
    result.setflags(write=False)  # shared by every caller
    return result
