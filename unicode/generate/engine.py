"""Cached decoding: key-value cache, allowed ids, token-by-token steps and image blocks for a batch of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, LogitsProcessor, StaticCache
from transformers.cache_utils import DynamicLayer

from unicode.generate.sampling import Sampling, choose, guide
from unicode.ids.layout import Layout
from unicode.llm.vocabulary import Markers


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


@dataclass(frozen=True)
class BlockRows:
    """The part of the output head that matters inside a block.

    Attributes:
        head: rows of all ids that may stand on any level.
        levels: (n,) level of each place of a block.
        masks: (L, K) 0 or -inf, which of the rows each level may take; None where all levels take all.
    """

    head: HeadRows
    levels: Tensor
    masks: Tensor | None

    def allowed(self, scores: Tensor, places: Tensor) -> Tensor:
        """Scores (B, K) at the places (B,) of a block -> the same with -inf for ids of other levels."""
        return scores if self.masks is None else scores + self.masks[self.levels[places.clamp_max(len(self.levels) - 1)]]


def block_rows(decoder: CachedDecoder, level_ids: Sequence[Tensor], levels: Tensor) -> BlockRows:
    """Cut the rows out of the head of `decoder`: `level_ids` as `unicode.generate.engine.checked_level_ids` gives them, levels (n,)."""
    together = torch.cat(list(level_ids)).unique()
    masks = None
    if len(level_ids) > 1:
        masks = torch.stack([torch.where(torch.isin(together, ids), 0.0, -torch.inf) for ids in level_ids]).to(decoder.device)
    return BlockRows(decoder.rows(together), levels.to(decoder.device), masks)


@torch.no_grad()
def draw_block(
    decoder: CachedDecoder,
    features: Tensor,
    rows: BlockRows,
    *,
    places: Tensor,
    count: int,
    sampling: Sampling,
    seeds: Tensor,
    step: int,
) -> tuple[Tensor, Tensor]:
    """Draw the next ids of blocks that every row is inside of.

    Args:
        decoder: with the prompts in its cache; twice as many rows as are drawn where `sampling` is guided, those without prompt below.
        features: (R, D) of the last token.
        places: (B,) number of the next id within its block.
        count: how many ids to draw for each row.
        seeds: (B,) int64.
        step: number of the first of these ids for the noise.

    Returns:
        (B, count) int64 ids, and the features (R, D) of the last id but one: the last is not in the cache yet.
    """
    drawn: list[Tensor] = []
    for number in range(count):
        if number:
            features = decoder.step(drawn[-1].repeat(2) if sampling.guided else drawn[-1])
        scores = rows.head.scores(features)
        if sampling.guided:
            scores = guide(scores, sampling.guidance)
        scores = rows.allowed(scores, places + number)
        drawn.append(choose(scores, rows.head.ids, sampling, seeds=seeds, step=step + number))
    return torch.stack(drawn, dim=1), features
