"""A key-value cache that grows without being copied: room for the whole answer is made at once, each step writes its own place.

transformers' growing cache puts a new key behind all old ones by copying them, at every step and layer; for a picture of 320 ids and a
doubled batch that costs more than the attention itself.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class ReservedLayer(DynamicLayer):
    """One layer's keys and values, views of what is filled of a block of `capacity` positions."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.filled = capacity, 0
        self._blocks: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add (R, H, n, d) keys and values; returns all there are so far."""
        if self._blocks is None:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._blocks = (self._reserve(key_states), self._reserve(value_states))
        filled, end = self.filled, self.filled + key_states.shape[-2]
        assert end <= self.capacity, (end, self.capacity)
        for block, states in zip(self._blocks, (key_states, value_states), strict=True):
            block[:, :, filled:end] = states
        keys, values = (block[:, :, :end] for block in self._blocks)
        self.keys, self.values, self.filled = keys, values, end  # views: what transformers asks a layer about them is right
        return keys, values

    def _reserve(self, states: Tensor) -> Tensor:
        rows, heads, _, width = states.shape
        return torch.empty(rows, heads, self.capacity, width, dtype=states.dtype, device=states.device)


def reserved_cache(config: Any, capacity: int) -> DynamicCache:
    """A cache for a model of this config and sequences of up to `capacity` tokens; layers with a sliding window stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [ReservedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
