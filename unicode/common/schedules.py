"""Schedules: pure functions of the step for learning rate, language ratio and quantization strength."""

import math


def learning_rate(step: int, *, peak: float, minimum: float, warmup_steps: int, steps: int) -> float:
    """Return the learning rate of a step from 0 to steps - 1: linear warm-up to `peak`, then half a cosine to `minimum` at the last step.

    The first of the `warmup_steps` has peak / warmup_steps, never 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps))
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * progress))


def language_ratio(step: int, *, steps: int, tail: float) -> float:
    """Return r of mode `language`: 0 at the start, linear to 1, and 1 for the last share `tail` of the steps.

    Counted in optimizer steps, so neither the number of nodes nor accumulation changes it (UniCode, ECCV 2024).
    """
    return min(1.0, step / max(1.0, (steps - 1) * (1 - tail)))


def quantization_strength(step: int, *, steps: int, fade_in: float) -> float:
    """Return how far values are quantized: 0 at the start, linear to 1 over the first share `fade_in` of the steps."""
    rise = steps * fade_in
    return 1.0 if rise < 1 else min(1.0, step / rise)
