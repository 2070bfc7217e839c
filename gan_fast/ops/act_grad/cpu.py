"""gan_fast::act_grad on the compiled kernel ``_C.act_grad`` (csrc/cpu/bias_act*)."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_fast.ops import _kernels, activation, memory


def act_grad(grad_output: Tensor, y: Tensor, act: str, slope: float) -> Tensor:
    """Same arguments as the reference; float32, bfloat16 or float64 on the CPU."""
    out = memory.empty_like(y)  # dense, in y's order of axes if y is dense itself
    g = _like(grad_output, out)
    dense_y = _like(y, out)
    if out.numel():
        _kernels.module().act_grad(
            _kernels.DTYPE_CODES[y.dtype],
            out.numel(),
            _kernels.pointer(g),
            _kernels.pointer(dense_y),
            _kernels.pointer(out),
            activation.CODES[act],
            slope,
            torch.get_num_threads(),
        )
    return out


def _like(x: Tensor, pattern: Tensor) -> Tensor:
    """x with the strides of ``pattern``, so that equal positions in memory are equal elements."""
    return x if x.stride() == pattern.stride() else memory.empty_like(pattern).copy_(x)
