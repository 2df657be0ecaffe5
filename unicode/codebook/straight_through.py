"""The straight-through estimator and the commitment loss: how gradients pass a step that has none."""

from typing import Any

import torch
import torch.nn.functional as F


class _StraightThrough(torch.autograd.Function):
    """Forward: the quantized value, bit for bit. Backward: the gradient goes to the latent unchanged."""

    @staticmethod
    def forward(context: Any, latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        return quantized.detach().to(latents.dtype).view_as(latents)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient, None


def straight_through(latents: torch.Tensor, quantized: torch.Tensor, *, strength: torch.Tensor | None = None) -> torch.Tensor:
    """Return `quantized` with the gradient of `latents` (van den Oord et al. 2017, section 3.2).

    Unlike `z + (q - z).detach()` the value is `quantized` exactly, so that decoding codes equals the forward pass bit for bit.

    Args:
        latents: (..., E) what the encoder said.
        quantized: (..., E) the rows chosen for it.
        strength: scalar in [0, 1]; the value moves from `latents` (0) to `quantized` (1), for fading quantization in.
    """
    if strength is not None:
        quantized = torch.lerp(latents.detach().float(), quantized.detach().float(), strength)
    return _StraightThrough.apply(latents, quantized)  # type: ignore[no-any-return]


def commitment_loss(latents: torch.Tensor, quantized: torch.Tensor, *, beta: float) -> torch.Tensor:
    """Return `beta * |sg[q] - z|^2 + |q - sg[z]|^2`, means over all elements, float32, scalar.

    The second term moves the rows and is there only where rows take gradients (mode `projected`); the other modes
    move theirs by averages.
    """
    latents, quantized = latents.float(), quantized.float()
    loss = beta * F.mse_loss(latents, quantized.detach())
    if quantized.requires_grad:
        loss = loss + F.mse_loss(quantized, latents.detach())
    return loss
