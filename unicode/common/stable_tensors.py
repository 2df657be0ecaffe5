"""safetensors content whose bytes depend on nothing but the tensors and the metadata."""

import json

import torch
from safetensors.torch import save


def stable_bytes(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file with its header in sorted order; the library writes the metadata in a different order each time."""
    content = save(tensors, metadata)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    ordered = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert len(ordered) <= length, (len(ordered), length)
    return b"".join((content[:8], ordered.ljust(length), memoryview(content)[8 + length :]))
