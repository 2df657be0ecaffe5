"""Exact nearest-row search: vectors and a table in, indices of the closest rows out."""

from collections.abc import Sequence

import torch

# Vectors x rows scored at once: 16 MiB on a CPU (stays near the caches), 512 MiB on a GPU (keeps every multiprocessor busy).
CPU_TILE = (2048, 2048)
GPU_TILE = (4096, 32768)


@torch.no_grad()
def nearest_rows(vectors: torch.Tensor, rows: torch.Tensor, *, half_squares: torch.Tensor | None = None) -> torch.Tensor:
    """Return, for each vector, the index of the row with the smallest Euclidean distance.

    argmin_j |z - e_j|^2 = argmax_j (z . e_j - |e_j|^2 / 2): the squared length of z is the same for every row, so one fused
    matrix product and a maximum give the exact answer, tile by tile, without a tensor of N x K distances. The search runs
    in float32 whatever autocast says: in bfloat16 up to one code in six comes out different.

    Args:
        vectors: (N, E), any floating type.
        rows: (K, E), any floating type.
        half_squares: (K,) |e_j|^2 / 2 in float32, when the caller has it already.

    Returns:
        (N,) int64 in [0, K); the lowest index where several rows are equally close.
    """
    assert vectors.ndim == 2 and rows.ndim == 2 and vectors.shape[1] == rows.shape[1], (vectors.shape, rows.shape)
    with torch.autocast(vectors.device.type, enabled=False):
        vectors, rows = vectors.float(), rows.float()
        offsets = -(half_row_squares(rows) if half_squares is None else half_squares)
        num_vectors, num_rows = CPU_TILE if vectors.device.type == "cpu" else GPU_TILE
        # One buffer for all tiles: freed and asked for anew, tiles of this size leave holes in the heap as large as all of them.
        scores = vectors.new_empty(min(num_vectors, len(vectors)) * min(num_rows, len(rows)))
        parts = [_nearest(part, rows.split(num_rows), offsets.split(num_rows), scores) for part in vectors.split(num_vectors)]
    return torch.cat(parts)


def _nearest(vectors: torch.Tensor, tiles: Sequence[torch.Tensor], offsets: Sequence[torch.Tensor], scores: torch.Tensor) -> torch.Tensor:
    """Return the best row (n,) of each vector (n, E) over all tiles of the table; `scores` is room for n times a tile's rows."""
    best = torch.full((len(vectors),), -torch.inf, device=vectors.device)
    codes, first = torch.zeros_like(best, dtype=torch.long), 0
    for tile, offset in zip(tiles, offsets, strict=True):
        room = scores[: len(vectors) * len(tile)].view(len(vectors), len(tile))
        score, place = torch.addmm(offset, vectors, tile.t(), out=room).max(dim=1)
        better = score > best  # equally good ones keep the lower index
        best, codes = torch.where(better, score, best), torch.where(better, place + first, codes)
        first += len(tile)
    return codes


def half_row_squares(rows: torch.Tensor) -> torch.Tensor:
    """Return (K,) half the squared length of each row of (K, E), in float32."""
    return rows.float().square().sum(dim=1).mul_(0.5)
