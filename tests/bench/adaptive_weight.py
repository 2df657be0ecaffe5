"""Images per CPU second of the full GAN step with one backward pass through the images, beside the usual way; same input, by turns.

    OMP_NUM_THREADS=1 python tests/bench/adaptive_weight.py [--steps 10] [--batch 8] [--image-size 64]

The usual way (VQGAN) takes the gradients of both losses at the last layer by `autograd.grad` and then runs backward through their sum:
LPIPS and the discriminator are passed twice. The sizes and the step are those of train_step.py. Seconds are CPU seconds of this process.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from train_step import WARM_UP, Measured, build_trainer, parse_args

from unicode.tokenizer.discriminator import generator_loss
from unicode.tokenizer.losses import Objective
from unicode.tokenizer.model import Reconstruction


def usual_way(
    objective: Objective,
    reconstruction: Reconstruction,
    images: Tensor,
    *,
    discriminator: Any,
    adversarial_weight: float,
    last_layer: torch.nn.Conv2d,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss itself, and its parts, as `Objective.forward` does."""
    config, made = objective.config, reconstruction.images.float()
    assert objective.perceptual is not None
    parts = {"l1": F.l1_loss(made, images), "l2": F.mse_loss(made, images), "lpips": objective.perceptual(made, images).mean()}
    total = config.l1 * parts["l1"] + config.l2 * parts["l2"] + config.perceptual.weight * parts["lpips"]
    parts["adversarial"] = generator_loss(discriminator(made).float())
    norms = [torch.autograd.grad(part, last_layer.weight, retain_graph=True)[0].norm() for part in (total, parts["adversarial"])]
    options = config.discriminator
    parts["adaptive_weight"] = (norms[0] / (norms[1] + 1e-4)).clamp(options.adaptive_minimum, options.adaptive_maximum).detach()
    total = total + adversarial_weight * parts["adaptive_weight"] * parts["adversarial"]
    parts |= {f"commitment_{level}": commitment for level, commitment in enumerate(reconstruction.commitment)}
    parts["loss"] = total + config.commitment * reconstruction.commitment.mean()
    return parts["loss"], {name: part.detach() for name, part in parts.items()}


def main() -> int:
    """Measure by turns, print both and the median of the ratios."""
    args = parse_args()
    torch.manual_seed(0)
    ways = {}
    for name in ("usual", "ours"):
        with tempfile.TemporaryDirectory() as folder:
            trainer = build_trainer(args, Path(folder))
        if name == "usual":
            trainer.objective.forward = MethodType(usual_way, trainer.objective)  # type: ignore[method-assign]
        torch.manual_seed(1)
        ways[name] = Measured(trainer, args.batch)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(WARM_UP + args.steps):
        for name, measured in ways.items():
            before = time.process_time()
            measured.step()
            if number >= WARM_UP:
                seconds[name].append(time.process_time() - before)
    for name, values in seconds.items():
        print(f"{name:<6} {args.batch / statistics.median(values):8.2f} images per CPU second, median of {args.steps}")
    ratios = [usual / ours for usual, ours in zip(seconds["usual"], seconds["ours"], strict=True)]
    print(f"ours is {statistics.median(ratios):.2f} times as fast, single pairs {min(ratios):.2f} to {max(ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
