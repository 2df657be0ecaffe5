"""A language model that is asked step by step: a left-padded batch of prompts, then one token per row and step, with a key-value cache.

The steps give what stands before the output head, so that inside an image only the rows of the head that can come next are multiplied:
8 thousand of 32 thousand for a usual codebook, and no scores of words that a mask would take away again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import StaticCache

from unicode.generate.cache import reserved_cache

CACHES = ("dynamic", "static")
_PADDED_TO = 64  # lengths of static caches are multiples of it, so that batches of nearly one length share one
_IDENTITY_ROWS = 512
_CHANGED_SCORES = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # what configs call a change of the scores behind the head


@dataclass(frozen=True)
class HeadRows:
    """The rows of an output head that belong to some ids: `scores` of them alone.

    Attributes:
        ids: (K,) int64 vocabulary ids.
        weight: (K, D), None where the model's whole scores are needed (it scales or caps them).
        bias: (K,) or None.
    """

    ids: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def scores(self, features: Tensor) -> Tensor:
        """Features (R, D) of `CachedDecoder` -> (R, K) float32."""
        if self.weight is None:
            return features.index_select(-1, self.ids).float()
        return F.linear(features, self.weight, self.bias).float()


class CachedDecoder:
    """A causal language model of transformers, bare or wrapped by peft, and the cache of one batch.

    Args:
        lm: the model, in evaluation mode.
        cache: "dynamic" (attention sees what is filled) or "static" (attention always goes over the whole room; what compiling needs).
        compiled: compile the step; needs the static cache. The first batch of each size then takes long.

    Raises:
        ValueError: an unknown cache, compiling without the static one, or a static one for a model with a sliding window.
    """

    def __init__(self, lm: Any, *, cache: str = "dynamic", compiled: bool = False) -> None:
        if cache not in CACHES:
            raise ValueError(f"cache '{cache}' is unknown; choose one of {', '.join(CACHES)}")
        if compiled and cache != "static":
            raise ValueError("compiling needs the static cache; give cache=static (--cache static) with it")
        self.causal: Any = lm.get_base_model() if hasattr(lm, "peft_config") else lm
        self.config = self.causal.config
        self.head: Any = self.causal.get_output_embeddings()
        self.embedding: nn.Module = self.causal.get_input_embeddings()
        self.device = next(self.embedding.parameters()).device
        self._body: Any = self.causal.get_decoder()
        self._plain_head = self._head_is_all()
        self._static: dict[tuple[int, int], StaticCache] | None = {} if cache == "static" else None
        self._run = torch.compile(self._step, mode="reduce-overhead", dynamic=False) if compiled else self._step
        windows = "sliding_attention" if getattr(self.config, "sliding_window", None) else "full_attention"
        kinds = set(getattr(self.config, "layer_types", None) or [windows])
        if cache == "static" and kinds != {"full_attention"}:
            found = ", ".join(sorted(kinds))
            raise ValueError(f"the static cache needs attention to all of the past; this model has {found}; take dynamic")
        self._own_mask = self.config._attn_implementation in ("eager", "sdpa") and kinds == {"full_attention"}
        self._cache: Any = None
        self._visible = self._additive = torch.empty(0)
        self._positions = torch.empty(0, dtype=torch.int64)
        self._filled = 0

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return int(self.config.vocab_size)

    @torch.no_grad()
    def start(self, attention_mask: Tensor, *, input_ids: Tensor | None = None, embeddings: Tensor | None = None, max_new: int) -> Tensor:
        """Read a batch of prompts.

        Args:
            attention_mask: (R, T), 0 for padding, which stands on the left.
            input_ids: (R, T) int64, or
            embeddings: (R, T, D).
            max_new: how many steps will follow at most.

        Returns:
            (R, D) features after each prompt.
        """
        rows, length = attention_mask.shape
        capacity = length + max_new
        self._cache = self._new_cache(rows, capacity)
        if self._static is not None:
            capacity = self._cache.layers[0].max_cache_len
        self._visible = F.pad(attention_mask.long(), (0, capacity - length), value=1)
        self._additive = self._mask_of(attention_mask, capacity)
        positions = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        features = self._forward(input_ids, embeddings, attention_mask, positions)
        self._positions, self._filled = positions[:, -1:] + 1, length
        return features

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Take one more token per row, (R,) int64 -> (R, D) features after it."""
        if self._own_mask:
            self._additive[..., self._filled] = 0  # the token sees itself
            seen = self._additive.shape[-1] if self._static is not None else self._filled + 1
            mask: Tensor | None = self._additive[..., :seen]
        else:
            mask = self._visible[:, : self._filled + 1]
        features = self._run(tokens[:, None], mask, self._positions)
        self._positions = self._positions + 1
        self._filled += 1
        return features

    def scores(self, features: Tensor) -> Tensor:
        """Features (R, D) -> (R, V) float32 scores of every token."""
        return (self.head(features) if self._plain_head else features).float()

    @torch.no_grad()
    def rows(self, ids: Tensor) -> HeadRows:
        """The rows of the head for some ids (K,)."""
        ids = ids.to(self.device)
        if not self._plain_head:
            return HeadRows(ids, None, None)
        if type(self.head) is nn.Linear:
            return HeadRows(ids, self.head.weight[ids], None if self.head.bias is None else self.head.bias[ids])
        width = int(self.config.hidden_size)  # a head that an adapter or a quantizer has wrapped: ask it for its matrix, column by column
        dtype = self.causal.dtype
        bias = self.head(torch.zeros(1, width, device=self.device, dtype=dtype))[:, ids]
        identity = torch.eye(width, device=self.device, dtype=dtype).split(_IDENTITY_ROWS)
        weight = torch.cat([self.head(part)[:, ids] - bias for part in identity]).T.contiguous()
        return HeadRows(ids, weight, bias[0] if bool(bias.any()) else None)

    def _step(self, tokens: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        return self._forward(tokens, None, mask, positions)

    def _forward(self, input_ids: Tensor | None, embeddings: Tensor | None, mask: Tensor | None, positions: Tensor) -> Tensor:
        given = {"input_ids": input_ids} if embeddings is None else {"inputs_embeds": embeddings}
        given |= {"attention_mask": mask, "position_ids": positions, "past_key_values": self._cache, "use_cache": True}
        if self._plain_head:
            return self._body(**given).last_hidden_state[:, -1]
        return self.causal(**given, logits_to_keep=1).logits[:, -1]

    def _new_cache(self, rows: int, capacity: int) -> Any:
        if self._static is None:
            return reserved_cache(self.config, capacity)
        shape = (rows, -(-capacity // _PADDED_TO) * _PADDED_TO)
        if shape not in self._static:
            self._static.clear()  # one at a time: a cache is as large as a batch
            self._static[shape] = StaticCache(config=self.config, max_cache_len=shape[1])
        self._static[shape].reset()
        return self._static[shape]

    def _mask_of(self, attention_mask: Tensor, capacity: int) -> Tensor:
        """(R, 1, 1, capacity) what a token adds to its attention scores: the least number for padding and for places not yet filled."""
        least = torch.finfo(self.causal.dtype).min
        hidden = F.pad(attention_mask == 0, (0, capacity - attention_mask.shape[1]), value=True)
        return torch.zeros_like(hidden, dtype=self.causal.dtype).masked_fill_(hidden, least)[:, None, None]

    @torch.no_grad()
    def _head_is_all(self) -> bool:
        """Whether the model's scores are its head on its last hidden state, not scaled or capped afterwards."""
        if self.head is None or any(getattr(self.config, name, None) not in (None, 1.0) for name in _CHANGED_SCORES):
            return False
        tokens = torch.linspace(0, self.vocab_size - 1, 8, device=self.device).long()[None]  # ask it, for what its config does not say
        whole = self.causal(input_ids=tokens, use_cache=False).logits
        return bool(torch.allclose(whole, self.head(self._body(input_ids=tokens, use_cache=False).last_hidden_state), rtol=1e-3, atol=1e-3))
