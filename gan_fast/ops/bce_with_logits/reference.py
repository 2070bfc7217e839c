"""gan_fast::bce_with_logits in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def bce_with_logits(
    input: Tensor,
    target: Tensor | None,
    target_value: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """(loss, d loss / d input); target None stands for the constant target_value everywhere."""
    t = torch.full_like(input, target_value) if target is None else target
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        input, t, weight, reduction=reduction, pos_weight=pos_weight
    )
    grad = (1 - t) - log_weight(t, pos_weight) * torch.sigmoid(-input)
    if weight is not None:
        grad = grad * weight
    if reduction == "mean":
        grad = grad / input.numel()
    return loss, torch.empty_like(input).copy_(grad)


def log_weight(target: Tensor | float, pos_weight: Tensor | None) -> Tensor | float:
    """1 + (pos_weight - 1) * target, the factor of softplus(-x)."""
    return 1.0 if pos_weight is None else 1 + (pos_weight - 1) * target
