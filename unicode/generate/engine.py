"""The generation engine: prompts in a key-value cache -> sampled tokens, as words, as images, or as words with images between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from unicode.common.logging import get_logger
from unicode.generate.sampling import GREEDY, Sampling, choose, guide
from unicode.ids.layout import Layout
from unicode.llm.cell_head import CellHead, CellTables
from unicode.llm.vocabulary import Markers

CACHES = ("auto", "dynamic", "static")
_WORTH_COMPILING = 8  # batches, over which compiling, about a minute, pays
log = get_logger(__name__)
_GROWTH = 256  # positions that a dynamic cache reserves at a time
_PADDED_TO = 64  # lengths of static caches are multiples of it, so that batches of nearly one length share one
_IDENTITY_ROWS = 512
NONE = -1  # in place of a further id at a position that has one token
_CHANGED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # config keys of models that change logits after the head


class ReservedLayer(DynamicLayer):
    """One layer's keys and values: views of blocks that grow by `_GROWTH` positions, up to `capacity`."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.filled = capacity, 0
        self._blocks: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add (R, H, n, d) keys and values; returns all there are so far."""
        filled, end = self.filled, self.filled + key_states.shape[-2]
        assert end <= self.capacity, (end, self.capacity)
        if not self._blocks or end > self._blocks[0].shape[-2]:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            room = min(self.capacity, end + _GROWTH)
            before = self._blocks
            self._blocks = [states.new_empty(*states.shape[:2], room, states.shape[3]) for states in (key_states, value_states)]
            for block, old in zip(self._blocks, before, strict=False):
                block[:, :, :filled] = old[:, :, :filled]
        for block, states in zip(self._blocks, (key_states, value_states), strict=True):
            block[:, :, filled:end] = states
        self.keys, self.values = (block[:, :, :end] for block in self._blocks)  # views: what transformers asks of a layer is right
        self.filled = end
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Take other rows, (R',) int64; a row may be taken several times."""
        self._blocks = [block[indices] for block in self._blocks]
        self.keys, self.values = (block[:, :, : self.filled] for block in self._blocks)


def reserved_cache(config: Any, capacity: int) -> DynamicCache:
    """Return a cache for sequences of up to `capacity` tokens; layers with a sliding window stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [ReservedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@dataclass(frozen=True)
class HeadRows:
    """The rows of an output head that belong to some ids."""

    ids: Tensor  # (K,) int64 vocabulary ids
    weight: Tensor | None  # (K, D); None where the model's logits are needed because it scales or caps them
    bias: Tensor | None  # (K,)

    def logits(self, features: Tensor) -> Tensor:
        """Features (R, D) of `CachedDecoder` -> (R, K) float32."""
        if self.weight is None:
            return features.index_select(-1, self.ids).float()
        return F.linear(features, self.weight, self.bias).float()


class CachedDecoder:
    """A causal language model of transformers, bare or wrapped by peft, and the cache of one batch.

    `lm`: the model, in evaluation mode. `cache`: "dynamic" (attention sees what is filled), "static" (attention covers the whole room; what
    compiling needs), or "auto": static and compiled on a GPU if there is enough to do and the model allows it, else dynamic. `compiled`:
    compile the step; needs the static cache; the first batch then takes long. `num_batches`: how many batches will follow, for "auto".

    `can_select` is whether `select` may be used: not with a static cache, nor with a sliding window, which padding between positions
    would fill. Raises ValueError: an unknown cache, compiling without the static one, or a static one for a model with a sliding window.
    """

    def __init__(self, lm: Any, *, cache: str = "dynamic", compiled: bool = False, num_batches: int = 1) -> None:
        if cache not in CACHES:
            raise ValueError(f"cache '{cache}' is unknown; choose one of {', '.join(CACHES)}")
        if compiled and cache == "dynamic":
            raise ValueError("compiling needs the static cache; give cache=static with it")
        self.causal: Any = lm.get_base_model() if hasattr(lm, "peft_config") else lm
        self.config = self.causal.config
        self.head: Any = self.causal.get_output_embeddings()
        self.embedding: nn.Module = self.causal.get_input_embeddings()
        self.device = next(self.embedding.parameters()).device
        self._body: Any = self.causal.get_decoder()
        self.vocab_size = int(self.config.vocab_size)  # rows of the embedding table
        self._plain_head, self.keeps_states = self._head_is_all(), False
        windows = "sliding_attention" if getattr(self.config, "sliding_window", None) else "full_attention"
        kinds = set(getattr(self.config, "layer_types", None) or [windows])
        sees_all = kinds == {"full_attention"}
        self._own_mask = self.config._attn_implementation in ("eager", "sdpa") and sees_all
        if cache == "auto":
            worthwhile = self.device.type == "cuda" and self._own_mask and num_batches >= _WORTH_COMPILING
            cache, compiled = "static" if worthwhile or compiled else "dynamic", worthwhile or compiled
        if cache == "static" and not sees_all:
            raise ValueError(f"the static cache needs attention to the whole past; this model has {', '.join(sorted(kinds))}; take dynamic")
        self._static, self.can_select = cache == "static", sees_all and cache == "dynamic"
        self._compiled = torch.compile(self._forward, mode="reduce-overhead", dynamic=False) if compiled else None
        self._cache: Any = None
        self._shape = (0, 0)  # rows and positions of a static cache
        self._batch = 0
        self._visible = self._additive = self._positions = torch.empty(0)
        self._filled = 0

    @torch.no_grad()
    def start(
        self, attention_mask: Tensor, *, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, max_new: int
    ) -> Tensor:
        """Read a batch of prompts, `input_ids` (R, T) int64 or `inputs_embeds` (R, T, D); returns (R, D) features after each prompt.

        `attention_mask`: (R, T), 0 for padding, which stands on the left. `max_new`: how many positions follow at most.
        """
        self._batch, length = attention_mask.shape
        rows, capacity = self._new_cache(self._batch, length + max_new)
        self._visible = attention_mask.new_zeros(rows, capacity, dtype=torch.int64)
        self._additive = self._visible.new_full((rows, 1, 1, capacity), torch.finfo(self.causal.dtype).min, dtype=self.causal.dtype)
        self._filled = 0
        return self.extend(attention_mask, input_ids=input_ids, inputs_embeds=inputs_embeds)

    @torch.no_grad()
    def extend(self, attention_mask: Tensor, *, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        """Read more of the prompts; arguments and result as of `start`."""
        end, missing = self._filled + attention_mask.shape[1], len(self._visible) - len(attention_mask)
        if missing:  # a static cache has more rows than the batch
            attention_mask = F.pad(attention_mask, (0, 0, 0, missing), value=1)
            input_ids = None if input_ids is None else F.pad(input_ids, (0, 0, 0, missing))
            inputs_embeds = None if inputs_embeds is None else F.pad(inputs_embeds, (0, 0, 0, 0, 0, missing))
        self._visible[:, self._filled : end] = attention_mask
        self._additive.masked_fill_(self._visible[:, None, None] > 0, 0)
        seen = self._visible[:, :end]
        positions = (seen.cumsum(-1) - 1).clamp_min(0)
        features = self._forward(input_ids, inputs_embeds, seen, positions[:, self._filled :])
        self._positions, self._filled = positions[:, -1:] + 1, end
        return features[: self._batch]

    def select(self, rows: Tensor, keep: Tensor) -> None:
        """Copy rows of the cache, (R',) int64, into a batch of R' rows; what a row has read is hidden where `keep` (R',) is False."""
        assert not self._static, "the rows of a static cache stay where they are"
        self._batch, self._positions = len(rows), self._positions[rows]
        self._cache.batch_select_indices(rows)
        self._visible = self._visible[rows] * keep[:, None]
        self._additive = self._additive[rows].masked_fill_(~keep[:, None, None, None], torch.finfo(self.causal.dtype).min)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Take one more position per row -> (R, D) features after it.

        `tokens`: (R,) int64, or (R, m) for the ids of a cell, whose rows are added up; NONE stands behind a row's only token.
        """
        if self._own_mask:
            self._additive[..., self._filled] = 0  # the token sees itself
            seen = self._additive.shape[-1] if self._static else self._filled + 1
            mask = self._additive[..., :seen]
        else:
            self._visible[:, self._filled] = 1
            mask = self._visible[:, : self._filled + 1]
        ids = F.pad(tokens.view(len(tokens), -1), (0, 0, 0, len(self._visible) - len(tokens)))
        if ids.shape[1] == 1:
            features = self._run_step(ids, None, mask, self._positions)
        else:
            rows = self.embedding(ids.clamp_min(0)).masked_fill((ids == NONE)[..., None], 0)
            features = self._run_step(None, rows.sum(1, keepdim=True), mask, self._positions)
        self._positions = self._positions + 1
        self._filled += 1
        return features[: self._batch]

    def logits(self, features: Tensor) -> Tensor:
        """Features (R, D) -> (R, V) float32 logits of every token."""
        return (self.head(features) if self._plain_head else features[:, : self.vocab_size]).float()

    def states(self, features: Tensor) -> Tensor:
        """Features -> (R, D) the language model's state, which its output head and a cell head take."""
        return features if self._plain_head else features[:, self.vocab_size :]

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

    def _run_step(self, *given: Tensor | None) -> Tensor:
        if self._compiled is not None:
            try:
                return self._compiled(*given)
            except torch._dynamo.exc.TorchDynamoException as error:  # no compiler on this machine, or a model that cannot be compiled
                log.warning("the decoding step cannot be compiled and runs as it is, more slowly (%s)", str(error).split("\n", 1)[0][:200])
                self._compiled = None
        return self._forward(*given)

    def _forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        given = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        given |= {"attention_mask": mask, "position_ids": positions, "past_key_values": self._cache, "use_cache": True}
        if self._plain_head:
            return self._body(**given).last_hidden_state[:, -1]
        found = self.causal(**given, logits_to_keep=1, output_hidden_states=self.keeps_states)
        return torch.cat((found.logits[:, -1], found.hidden_states[-1][:, -1]), -1) if self.keeps_states else found.logits[:, -1]

    def _new_cache(self, rows: int, capacity: int) -> tuple[int, int]:
        """Make an empty cache, or empty the static one that is there if it is large enough; return its rows and positions."""
        if not self._static:
            self._cache = reserved_cache(self.config, capacity)
            return rows, capacity
        # What is compiled belongs to one cache, so it is kept for smaller batches and shorter prompts, unless half of it would be idle.
        before, room = self._shape
        if not before // 2 < rows <= before:
            before, room = rows, 0
        if capacity > room or before != self._shape[0]:
            self._shape = before, -(-capacity // _PADDED_TO) * _PADDED_TO
            self._cache = StaticCache(config=self.config, max_cache_len=self._shape[1])
        self._cache.reset()
        return self._shape

    @torch.no_grad()
    def _head_is_all(self) -> bool:
        if self.head is None or any(getattr(self.config, name, None) not in (None, 1.0) for name in _CHANGED_LOGITS):
            return False
        tokens = torch.linspace(0, self.vocab_size - 1, 8, device=self.device).long()[None]  # ask it, for what its config does not say
        logits = self.causal(input_ids=tokens, use_cache=False).logits
        found = self.head(self._body(input_ids=tokens, use_cache=False).last_hidden_state)
        return bool(torch.allclose(logits, found, rtol=1e-3, atol=1e-3))


class ImageHead:
    """The ids that may stand in an image: their rows of the output head and which of them each position may take.

    `row_ids`: (K,) ids that may stand in an image, or one such tensor for each level of `layout`, which is grid and order of the ids of one
    image. `markers`: ids of the marker tokens. `cells`: what writes the ids of a cell at one position; None: every id takes a position.

    `position_ids` ids are written at each of the `num_positions` positions of an image. Raises ValueError: ids outside the vocabulary, a
    marker among the image ids, a number of sets that is not the number of levels, or a cell head of other ids or another layout.
    """

    def __init__(
        self, decoder: CachedDecoder, row_ids: Tensor | Sequence[Tensor], layout: Layout, *, markers: Markers, cells: CellHead | None = None
    ) -> None:
        given, top = [row_ids] if isinstance(row_ids, Tensor) else list(row_ids), decoder.vocab_size - 1
        if len(given) not in (1, layout.num_levels):
            raise ValueError(f"{len(given)} sets of image ids were given; {layout.describe()} has {layout.num_levels} levels")
        for ids in given:
            if not len(ids) or int(ids.min()) < 0 or int(ids.max()) > top:
                found = f"{int(ids.min())} to {int(ids.max())}" if len(ids) else "none"
                raise ValueError(f"image ids range from {found}; the language model has ids 0 to {top}; is it another model?")
            if clash := set(markers.ids()) & set(ids.tolist()):
                reason = f"id {min(clash)} is a marker and an image id"
                raise ValueError(f"{reason}; export the codebook table again, which leaves special tokens out")
        self.num_ids, self.markers, self.cells = layout.num_codes, markers, cells
        self.position_ids = 1 if cells is None else cells.cell_length
        self.num_positions = self.num_ids // self.position_ids
        self.ids = torch.cat(given).unique().to(decoder.device)
        self._decoder = decoder
        if cells is not None:
            own, known = cells.layout.describe(), len(cells.row_ids)
            if cells.layout != layout:
                raise ValueError(f"the cell head writes images of {own}, the image tokenizer {layout.describe()}; take its own")
            if not torch.equal(cells.row_ids, self.ids):
                raise ValueError(f"the cell head knows other image ids ({known}) than the image tokenizer ({len(self.ids)}); take its own")
            decoder.keeps_states = True
        levels = layout.levels() if len(given) > 1 else torch.zeros(self.num_ids, dtype=torch.int64)
        self.levels = levels.to(decoder.device)  # (n,) which set each position of an image takes
        allowed = torch.stack([torch.isin(self.ids.cpu(), ids.cpu()) for ids in given])
        self.masks = torch.where(allowed, 0.0, -torch.inf).to(decoder.device)  # (L, K)

    @cached_property
    def _rows(self) -> HeadRows | CellTables:
        """What makes logits, at the first image: of answers most have none."""
        return self._decoder.rows(self.ids) if self.cells is None else self.cells.tables(self._decoder.embedding(self.ids))

    def mask(self, logits: Tensor, places: Tensor) -> Tensor:
        """Logits (B, K) at ids number `places` (B,) of an image -> the same with -inf for ids of other levels."""
        return logits if len(self.masks) == 1 else logits + self.masks[self.levels[places.clamp_max(self.num_ids - 1)]]

    def write(self, features: Tensor, *, places: Tensor, sampling: Sampling, seeds: Tensor, step: int) -> Tensor:
        """Sample the ids of one position: (B, position_ids) int64.

        `features`: (R, D) of `CachedDecoder`, before cells its states; R is 2 B where `sampling` is guided. `places`: (B,) number of the
        position within its image. `step`: number of the first id for the noise.
        """

        def pick(outputs: Tensor, number: int) -> Tensor:
            if sampling.guided and self.cells is not None:  # logits are linear in outputs, so half the products do
                outputs = guide(outputs.float(), sampling.guidance).to(outputs.dtype)
            logits = self._rows.logits(outputs)
            if sampling.guided and self.cells is None:
                logits = guide(logits, sampling.guidance)
            logits = self.mask(logits, places * self.position_ids + number)
            return choose(logits, self.ids, sampling, seeds=seeds, step=step + number)

        if isinstance(self._rows, HeadRows):
            return pick(features, 0)[:, None]
        assert self.cells is not None
        return self.cells.sample(features, self._rows, choose=pick)


@torch.no_grad()
def sample_image_tokens(
    decoder: CachedDecoder, features: Tensor, head: ImageHead, *, places: Tensor, count: int, sampling: Sampling, seeds: Tensor, step: int,
    tell: Callable[[int], object] | None = None,
) -> Tensor:  # fmt: skip
    """Sample the next ids of images that every row is inside of: (B, count * head.position_ids) int64; the last position is not in the
    cache yet.

    `decoder`: with the prompts in its cache; twice as many rows where `sampling` is guided, the unconditional ones below. `features`:
    (R, D) of the last token. `places`: (B,) number of the next position within its image. `count`: how many positions to write for each
    row. `seeds`: (B,) int64. `step`: number of the first of these positions for the noise; of an id it is that of its position times
    `head.position_ids`, and on. `tell`: called with the number of positions so far, after each.
    """
    sampled: list[Tensor] = []
    for number in range(count):
        if number:
            features = decoder.step(sampled[-1].repeat(2, 1) if sampling.guided else sampled[-1])
        given = features if head.cells is None else decoder.states(features)
        noise = (step + number) * head.position_ids
        sampled.append(head.write(given, places=places + number, sampling=sampling, seeds=seeds, step=noise))
        if tell is not None:
            tell(number + 1)
    return torch.cat(sampled, dim=1)


TEXT = -1


class ImageConstraint:
    """Lets an answer hold images only as complete blocks: start marker, all ids of an image on their levels, end marker.

    All `rows` (B) begin in text; logits have width `vocab_size` (V). An image begins only if it fits into `num_tokens`, the positions of
    the longest answer, of all rows or (B,) of each, and at most `max_images` begin in one answer; None: any number. `step` (B,) is the
    number of the image position that comes next; the number of positions of an image: the end marker; TEXT: text.
    """

    def __init__(self, head: ImageHead, *, vocab_size: int, rows: int, num_tokens: int | Tensor, max_images: int | None = 1) -> None:
        device = head.levels.device
        self.head, self.markers, self._room = head, head.markers, torch.as_tensor(num_tokens, device=device)
        most = torch.iinfo(torch.int64).max if max_images is None else max_images
        self._images_left = torch.full((rows,), most, device=device)
        self.step = torch.full((rows,), TEXT, device=device)
        self._table = torch.full((3 + len(head.masks), vocab_size), -torch.inf, device=device)
        self._table[:2] = 0
        self._table[:2, list(self.markers.ids())] = -torch.inf
        self._table[1, self.markers.image_start] = 0  # rows: text, text or a start marker, the end marker, the levels
        self._table[2, self.markers.image_end] = 0
        self._table[3:, head.ids] = head.masks

    def advance(self, tokens: Tensor) -> None:
        """Take the next token of each row, (B,), into the state."""
        begun = (self.step < 0) & (tokens == self.markers.image_start)
        following = torch.where(self.step == self.head.num_positions, TEXT, self.step + 1)
        self.step = torch.where(self.step >= 0, following, begun.long() - 1)
        self._images_left = self._images_left - begun.long()
        self._room = self._room - 1

    def mask(self, logits: Tensor) -> Tensor:
        """Logits (B, V) of the next token -> the same with -inf wherever a token may not come."""
        fits = self._room >= self.head.num_positions + 2
        levels = self.head.levels[(self.step * self.head.position_ids).clamp(0, self.head.num_ids - 1)] + 3
        inside = torch.where(self.step == self.head.num_positions, 2, levels)
        text = ((self._images_left > 0) & fits).long()
        return logits + self._table[torch.where(self.step >= 0, inside, text)].to(logits.dtype)

    @property
    def in_cells(self) -> Tensor:
        """(B,) bool, which rows write a cell next."""
        return (self.step >= 0) & (self.step < self.head.num_positions) & (self.head.cells is not None)

    def certain(self, finished: Tensor) -> Tensor:
        """() how many positions all rows that are not finished, (B,) bool, are certain to need image ids for."""
        return torch.where(self.step >= 0, self.head.num_positions - self.step, 0).masked_fill(finished, self.head.num_positions).min()


@dataclass(frozen=True)
class Decoded:
    """Answers of a batch."""

    ids: list[list[int]]  # Of each row the tokens without the end token; an image has all its ids, whatever positions they took
    ended: list[bool]  # Of each row whether an end token ended it
    lengths: list[int]  # Of each row the positions that it took, the end token included


@torch.no_grad()
def decode_answers(
    decoder: CachedDecoder,
    features: Tensor,
    *,
    limits: Sequence[int],
    end_ids: Sequence[int],
    seeds: Sequence[int],
    words: Sampling = GREEDY,
    images: Sampling = GREEDY,
    head: ImageHead | None = None,
    max_images: int | None = None,
    has_stopped: Callable[[Tensor], Tensor] | None = None,
) -> Decoded:
    """Write the answers to the prompts that `decoder` has read.

    Args:
        features: (B, D), what `decoder.start` gave.
        limits: longest answer of each row in positions: words, markers, and image ids or cells.
        end_ids: tokens that end an answer.
        seeds: one for each row.
        words: how tokens outside of images are sampled.
        images: how ids inside are sampled; unguided, because each image would need a second prompt.
        head: of images, of which each answer may hold `max_images` (None: any number) as `ImageConstraint` lets it; None: any token may
            come, all sampled as words, and no cells.
        has_stopped: tokens so far (B, n), of a cell its first id -> (B,) bool, which rows end without an end token, unless inside an image.

    Raises ValueError: guidance or candidates were asked for.
    """
    if words.guided or images.guided or images.candidates > 1:
        asked = f"guidance {images.guidance}, candidates {images.candidates}"
        raise ValueError(f"{asked}: both are for a picture drawn by itself, not in an answer; set them to 1")
    everything = torch.arange(decoder.vocab_size, device=features.device)
    longest, ends, row_seeds = (torch.tensor(list(values), device=features.device) for values in (limits, end_ids, seeds))
    constraint = None
    if head is not None:
        constraint = ImageConstraint(head, vocab_size=decoder.vocab_size, rows=len(limits), num_tokens=longest, max_images=max_images)
    lengths = torch.zeros_like(longest)
    finished = ended = torch.zeros_like(longest, dtype=torch.bool)
    width = 1 if constraint is None else constraint.head.position_ids
    positions: list[Tensor] = []  # (B, width) each
    certain = inside = 0
    while True:
        step = len(positions)
        if constraint is not None and certain:
            places, count = constraint.step.clamp_min(0), min(certain, max(limits) - step)
            sampled = sample_image_tokens(
                decoder, features, constraint.head, places=places, count=count, sampling=images, seeds=row_seeds, step=step
            ).view(-1, count, width)
        else:
            noise, logits = step * width, decoder.logits(features)
            sampled = _sample_token(logits, everything, constraint, words, images, seeds=row_seeds, step=noise)[:, None, None]
            sampled = F.pad(sampled, (0, width - 1), value=NONE)
            if constraint is not None and inside:
                states = decoder.states(features)
                cells = constraint.head.write(states, places=constraint.step, sampling=images, seeds=row_seeds, step=noise)
                sampled = torch.where(constraint.in_cells[:, None, None], cells[:, None], sampled)
        for ids in sampled.unbind(1):
            positions.append(torch.where(finished[:, None], ends[0], ids))
            token = positions[-1][:, 0]
            lengths = lengths + ~finished
            at_end = torch.isin(token, ends)
            stopped = torch.zeros_like(finished) if has_stopped is None else has_stopped(torch.stack(positions, 1)[..., 0])
            if constraint is not None:
                constraint.advance(token)
                at_end, stopped = at_end & (constraint.step < 0), stopped & (constraint.step < 0)
            ended = ended | (at_end & ~finished)
            finished = finished | at_end | stopped | (lengths >= longest)
        ahead = [finished.all().long(), *((constraint.certain(finished), constraint.in_cells.any().long()) if constraint else ())]
        done, certain, inside = (*torch.stack(ahead).tolist(), 0, 0)[:3]  # the one wait for the device
        if done:
            rows = zip(torch.stack(positions, 1).tolist(), lengths.tolist(), ended.tolist(), strict=True)
            written = [[one for cell in row[: length - end] for one in cell if one != NONE] for row, length, end in rows]
            return Decoded(written, ended.tolist(), lengths.tolist())
        features = decoder.step(positions[-1])


def _sample_token(
    logits: Tensor, ids: Tensor, constraint: ImageConstraint | None, words: Sampling, images: Sampling, *, seeds: Tensor, step: int
) -> Tensor:
    """(B, V) logits -> (B,) tokens, sampled as words or as image ids, whichever each row is at."""
    if constraint is None:
        return choose(logits, ids, words, seeds=seeds, step=step)
    logits = constraint.mask(logits)
    word = choose(logits, ids, words, seeds=seeds, step=step)
    if words == images or constraint.head.cells is not None:
        return word
    return torch.where(constraint.step >= 0, choose(logits, ids, images, seeds=seeds, step=step), word)
