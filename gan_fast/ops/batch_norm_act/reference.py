"""gan_fast::batch_norm_act in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast.ops import activation, layout, normalization


def batch_norm_act(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(act(z), mean, var); mean and var None stand for those of input."""
    weight, bias, mean, var = (normalization.widened(t) for t in (weight, bias, mean, var))
    if mean is None or var is None:
        # PyTorch keeps the statistics of a bfloat16 image in float32.
        mean, var = (normalization.widened(input.new_zeros(input.shape[1])) for _ in range(2))
        count = input.numel() // input.shape[1]
        # With momentum 1 the running statistics become those of the batch; PyTorch divides this variance by count - 1.
        z = F.batch_norm(input, mean, var, weight, bias, True, 1.0, eps)
        var = var.double() * ((count - 1) / count)
    else:
        z = F.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)
    y = layout.with_format(activation.apply(z, act, slope, inplace=True), layout.output_format(input))
    return y, mean.to(torch.float64, copy=True), var.to(torch.float64, copy=True)
