"""How well an LLM could learn to write a tokenizer's ids: training ids and held-out ids -> bits per held-out image.

A small LLaMA is trained from scratch on the ids alone, always the same size, schedule and seed, and then asked for the
probability of held-out images. Fewer bits = the same visual thing gets the same ids. A codebook can be used evenly (high
perplexity) and still be hard to predict, so this number stands beside the usage. It falls, too, where the codes carry less of the
picture, so it also stands beside the PSNR. Compare only numbers of the same images and the same settings.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unicode.common.schedules import learning_rate

WIDTH, LAYERS, HEADS = 128, 2, 4
LEARNING_RATE = 1e-3
EVALUATIONS = 10


@dataclass(frozen=True)
class Predictability:
    """Result of `predict_ids`."""

    bits_per_image: float  # mean over held-out images of the sum of -log2 p(id | ids before); lowest of the evaluations
    bits_per_id: float  # the same divided by the ids per image
    final_bits_per_image: float  # at the last step; clearly above the lowest: the model overfits the training ids
    vocabulary: int  # distinct ids in both sets; log2 of it is what a uniform guess costs per id
    num_train: int
    num_heldout: int
    steps: int


def predict_ids(
    train_ids: Tensor,
    heldout_ids: Tensor,
    *,
    steps: int = 400,
    batch_size: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Predictability:
    """Train the small language model and return the bits it needs per held-out image.

    The ids are renumbered to those that occur; a start token comes first, so the first id costs bits too. The held-out images
    are evaluated ten times during training and the lowest value counts, so that overfitting of the small model does not.
    The same seed, threads and device give the same number; the global random state is not changed. 4000 images of 20 ids take
    about half a minute on one core.

    Args:
        train_ids: (N, T) int64, ids in the order an LLM would write them.
        heldout_ids: (M, T) int64, of images that are not among the training images.

    Raises:
        ValueError: the shapes do not fit together, or one of the sets is empty.
    """
    if train_ids.ndim != 2 or heldout_ids.ndim != 2 or train_ids.shape[1] != heldout_ids.shape[1]:
        raise ValueError(f"expected ids (N, T) and (M, T), got {tuple(train_ids.shape)} and {tuple(heldout_ids.shape)}")
    if min(train_ids.numel(), heldout_ids.numel()) == 0 or steps < 1:
        raise ValueError(f"nothing to learn from: {len(train_ids)} training images, {len(heldout_ids)} held out, {steps} steps")
    num_ids = train_ids.shape[1]
    distinct, compact = torch.unique(torch.cat([train_ids, heldout_ids]), return_inverse=True)
    train, heldout = compact.to(device).split([len(train_ids), len(heldout_ids)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build_model(len(distinct), num_ids).to(device)
        bits = _train(model, train, heldout, steps=steps, batch_size=batch_size)
    return Predictability(
        bits_per_image=min(bits),
        bits_per_id=min(bits) / num_ids,
        final_bits_per_image=bits[-1],
        vocabulary=len(distinct),
        num_train=len(train_ids),
        num_heldout=len(heldout_ids),
        steps=steps,
    )


def _build_model(vocabulary: int, num_ids: int) -> Any:
    """The LLaMA of every measurement; the token `vocabulary` is the start. Eager attention is the fastest at this size on a CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM  # takes seconds to import

    config = LlamaConfig(
        vocab_size=vocabulary + 1,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=num_ids + 1,
        bos_token_id=vocabulary,
        eos_token_id=None,
        use_cache=False,
    )
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


def _train(model: Any, train: Tensor, heldout: Tensor, *, steps: int, batch_size: int) -> list[float]:
    """Train in random batches, AdamW with warm-up and cosine; return the held-out bits per image of every evaluation."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    rate = partial(learning_rate, peak=1.0, minimum=0.05, warmup_steps=max(1, steps // 20), steps=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    every = max(1, steps // EVALUATIONS)
    bits = []
    for step in range(1, steps + 1):
        batch = train[torch.randint(len(train), (batch_size,)).to(train.device)]
        optimizer.zero_grad(set_to_none=True)
        _nats(model, batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % every == 0 or step == steps:
            bits.append(_heldout_bits(model, heldout, batch_size=4 * batch_size))
    return bits


def _nats(model: Any, ids: Tensor) -> Tensor:
    """-ln p of each id given the ones before it and the start token: (B, T) -> (B, T)."""
    start = torch.full_like(ids[:, :1], model.config.bos_token_id)
    logits = model(input_ids=torch.cat([start, ids[:, :-1]], dim=1)).logits.float()
    return torch.nn.functional.cross_entropy(logits[..., :-1].transpose(1, 2), ids, reduction="none")


@torch.no_grad()
def _heldout_bits(model: Any, heldout: Tensor, *, batch_size: int) -> float:
    """Mean over images of the bits of all their ids."""
    model.eval()
    total = sum(float(_nats(model, batch).double().sum()) for batch in heldout.split(batch_size))
    model.train()
    return total / len(heldout) / math.log(2)
