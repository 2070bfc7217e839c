"""gan_fast::batch_norm_act_backward in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast.ops import activation, layout


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
    m, v = mean.to(input.dtype), var.to(input.dtype)
    r = (var + eps).rsqrt().to(input.dtype)
    z = F.batch_norm(input, m, v, weight, bias, False, 0.0, eps)
    g = activation.grad(grad_output, activation.apply(z, act, slope, inplace=True), act, slope)
    running = (None, None) if training else (m, v)
    everything = [True, True, True]
    grad_input, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
        g, input, weight, *running, m, r, training, eps, everything
    )
    return layout.with_format(grad_input, layout.output_format(input)), grad_weight, grad_bias
