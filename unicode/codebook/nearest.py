"""Exact nearest-row search: vectors and a table in, indices of the closest rows out."""

import torch

# Scores held at once: 16 MiB on a CPU (stays near the caches), 512 MiB on a GPU (keeps every multiprocessor busy).
CPU_SCORES = 2**22
GPU_SCORES = 2**27


@torch.no_grad()
def nearest_rows(vectors: torch.Tensor, rows: torch.Tensor, *, half_squares: torch.Tensor | None = None) -> torch.Tensor:
    """Return, for each vector, the index of the row with the smallest Euclidean distance.

    argmin_j |z - e_j|^2 = argmax_j (z . e_j - |e_j|^2 / 2): the squared length of z is the same for every row, so one fused
    matrix product and an argmax give the exact answer, chunk by chunk, without a tensor of N x K distances. The search runs
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
        chunk = max(1, (CPU_SCORES if vectors.device.type == "cpu" else GPU_SCORES) // len(rows))
        parts = [torch.addmm(offsets, part, rows.t()).argmax(dim=1) for part in vectors.split(chunk)]
    return torch.cat(parts) if parts else vectors.new_empty(0, dtype=torch.long)


def half_row_squares(rows: torch.Tensor) -> torch.Tensor:
    """Return (K,) half the squared length of each row of (K, E), in float32."""
    return rows.float().square().sum(dim=1).mul_(0.5)
