"""gan_fast::batch_norm_act_backward in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast.ops import activation, layout, normalization


def batch_norm_act_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_input, grad_weight, grad_bias)."""
    parameters = normalization.parameter_dtype(input, weight, bias)
    weight, bias = normalization.widened(weight), normalization.widened(bias)
    wide = torch.float32 if input.dtype == torch.bfloat16 else input.dtype  # PyTorch's statistics of a bfloat16 image
    m, v, r = mean.to(wide), var.to(wide), (var + eps).rsqrt().to(wide)
    z = F.batch_norm(input, m, v, weight, bias, False, 0.0, eps)
    g = activation.grad(grad_output, activation.apply(z, act, slope, inplace=True), act, slope)
    running = (None, None) if training else (m, v)
    everything = [True, True, True]
    grad_input, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
        g, input, weight, *running, m, r, training, eps, everything
    )
    grad_input = layout.with_format(grad_input, layout.output_format(input))
    return grad_input, grad_weight.to(parameters), grad_bias.to(parameters)
