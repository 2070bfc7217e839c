"""gan_fast::bias_act on the compiled kernel ``_C.bias_act`` (csrc/cpu/bias_act*)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gan_fast.ops import _kernels, activation, layout, memory


def bias_act(input: Tensor, bias: Tensor | None, act: str, slope: float) -> Tensor:
    """Same arguments as the reference; float32, bfloat16 or float64 on the CPU."""
    if layout.is_channels_last(input):
        memory_format = torch.channels_last
        outer, channels, inner = input.numel() // input.shape[1], input.shape[1], 1
    else:
        memory_format = torch.contiguous_format
        outer, channels, inner = input.shape[0], input.shape[1], math.prod(input.shape[2:])
    x = input.contiguous(memory_format=memory_format)
    b = None if bias is None else bias.contiguous()
    y = memory.empty_like(x)
    if y.numel():
        _kernels.module().bias_act(
            _kernels.DTYPE_CODES[x.dtype],
            outer,
            channels,
            inner,
            _kernels.pointer(x),
            _kernels.pointer(b),
            _kernels.pointer(y),
            activation.CODES[act],
            slope,
            torch.get_num_threads(),
        )
    if y.stride() == input.stride():
        return y
    pattern = torch.empty_like(input)  # PyTorch's rule for the strides of an elementwise result
    return y if y.stride() == pattern.stride() else pattern.copy_(y)
