"""Prompts that begin alike are read once: questions about one image share its ids, most of their tokens, through the cache.

    [padding  beginning, read once and copied to its rows | padding  rest of the row]  answer ...

Padding may stand in the middle: it is masked, and positions count what is not.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unicode.llm.language_model import LanguageModel, Prompt


def beginning(prompt: Prompt) -> tuple[int, bytes]:
    """Return the length of what a prompt may share with others, up to the end of its last image, and a digest of it; 0 without images."""
    example = prompt.example
    places = example.is_image.nonzero()
    length = min(int(places[-1]) + 2, len(example) - 1) if len(places) else 0
    digest = blake2b(example.input_ids[:length].numpy().tobytes(), digest_size=16)
    digest.update(example.extra_ids.numpy().tobytes())
    if prompt.pixels is not None:
        digest.update(prompt.pixels.numpy().tobytes())
    return length, digest.digest() if length else b""


def sort_prompts(prompts: dict[int, Prompt], beginnings: dict[int, tuple[int, bytes]]) -> list[int]:
    """Places of the prompts in the order of their batches: those that begin alike stand together, long ones come first.

    What does not fit into memory then shows at once, the time left is not underrated, and rows of a batch are of like length.
    """
    longest: dict[bytes, int] = {}
    for place, prompt in prompts.items():
        name = beginnings[place][1]
        longest[name] = max(longest.get(name, 0), len(prompt))

    def rank(place: int) -> tuple[int, int, bytes, int]:
        length, name = beginnings[place]
        group = longest[name] if name else len(prompts[place])
        return -group, -length, name, -len(prompts[place])

    return sorted(prompts, key=rank)


@torch.no_grad()
def read_shared(model: LanguageModel, prompts: Sequence[Prompt], beginnings: Sequence[tuple[int, bytes]]) -> dict[str, Any]:
    """A batch of prompts as `generate` takes it, what several begin with read already.

    Args:
        beginnings: `beginning` of each.

    Returns:
        As `LanguageModel.inputs` where no two prompts begin alike; else input_ids and attention_mask (B, T) and past_key_values of
        the first positions.
    """
    rows: dict[bytes, int] = {}
    for number, (_, name) in enumerate(beginnings):
        if name:
            rows.setdefault(name, number)
    if len(rows) == sum(bool(name) for _, name in beginnings):
        return model.inputs(prompts)
    first = model.inputs([_cut(prompts[number], 0, beginnings[number][0]) for number in rows.values()])
    rest = model.inputs([_cut(prompt, length, len(prompt)) for prompt, (length, _) in zip(prompts, beginnings, strict=True)])
    mask = first["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    cache = model.causal(**first, position_ids=positions, use_cache=True, logits_to_keep=1).past_key_values
    order = {name: place for place, name in enumerate(rows)}
    chosen = torch.tensor([order.get(name, 0) for _, name in beginnings], device=mask.device)
    cache.batch_select_indices(chosen)
    seen = mask[chosen] * torch.tensor([[bool(name)] for _, name in beginnings], device=mask.device)
    # the ids of positions that are in the cache are not read again, only counted
    ids: Tensor = F.pad(rest["input_ids"], (mask.shape[1], 0), value=model.pad_id)
    return {"input_ids": ids, "attention_mask": torch.cat((seen, rest["attention_mask"]), 1), "past_key_values": cache}


def _cut(prompt: Prompt, start: int, end: int) -> Prompt:
    """Positions `start` to `end` of a prompt; its images stand before the cut."""
    example, images = prompt.example, start == 0
    parts = {name: getattr(example, name)[start:end] for name in ("input_ids", "labels", "is_image", "branch")}
    extra = slice(None) if images else slice(0, 0)
    cut = type(example)(**parts, extra_ids=example.extra_ids[extra], extra_at=example.extra_at[extra], task=example.task)
    return Prompt(cut, prompt.pixels if images else None)
