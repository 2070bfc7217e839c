"""gan_fast::act_grad on the compiled kernel ``_C.act_grad`` (csrc/cpu/bias_act*)."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_fast.ops import _kernels, activation, layout, memory


def act_grad(grad_output: Tensor, y: Tensor, act: str, slope: float) -> Tensor:
    """Same arguments as the reference; float32, bfloat16 or float64 on the CPU."""
    out = memory.empty_like(y)  # dense, in y's order of axes if y is dense itself
    g = layout.like(grad_output, out)
    dense_y = layout.like(y, out)
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
