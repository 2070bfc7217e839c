"""gan_fast::batch_norm_act_backward on the compiled kernel (csrc/cpu/batch_norm_act_backward*)."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_fast.ops import _kernels, activation, normalization


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
    """Same arguments as the reference; float32, bfloat16 or float64 on the CPU."""
    channels = input.shape[1]
    parameters = normalization.parameter_dtype(input, weight, bias)
    g, x = normalization.to_rows(grad_output), normalization.to_rows(input)
    w, b = (None if t is None else t.contiguous() for t in (weight, bias))
    m, v = mean.contiguous(), var.contiguous()
    grad_input = normalization.empty_rows(input)
    grad_weight, grad_bias = (input.new_empty(channels, dtype=parameters) for _ in range(2))
    _kernels.module().batch_norm_act_backward(
        _kernels.DTYPE_CODES[input.dtype],
        _kernels.DTYPE_CODES[parameters],
        input.numel() // channels,
        channels,
        _kernels.pointer(g),
        _kernels.pointer(x),
        _kernels.pointer(w),
        _kernels.pointer(b),
        _kernels.pointer(m),
        _kernels.pointer(v),
        training,
        eps,
        activation.CODES[act],
        slope,
        _kernels.pointer(grad_input),
        _kernels.pointer(grad_weight),
        _kernels.pointer(grad_bias),
        torch.get_num_threads(),
    )
    return normalization.from_rows(grad_input, input), grad_weight, grad_bias
