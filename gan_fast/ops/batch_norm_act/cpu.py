"""gan_fast::batch_norm_act on the compiled kernel ``_C.batch_norm_act`` (csrc/cpu/batch_norm_act*)."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_fast.ops import _kernels, activation, normalization


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
    """Same arguments as the reference; float32, bfloat16 or float64 on the CPU."""
    channels = input.shape[1]
    parameters = normalization.parameter_dtype(input, weight, bias)
    x = normalization.to_rows(input)
    w, b = (None if t is None else t.contiguous() for t in (weight, bias))
    training = mean is None or var is None
    if mean is None or var is None:
        statistics = (torch.empty(channels, dtype=torch.float64), torch.empty(channels, dtype=torch.float64))
    else:
        statistics = (mean.to(torch.float64, copy=True).contiguous(), var.to(torch.float64, copy=True).contiguous())
    y = normalization.empty_rows(input)
    _kernels.module().batch_norm_act(
        _kernels.DTYPE_CODES[input.dtype],
        _kernels.DTYPE_CODES[parameters],
        input.numel() // channels,
        channels,
        _kernels.pointer(x),
        _kernels.pointer(w),
        _kernels.pointer(b),
        training,
        _kernels.pointer(statistics[0]),
        _kernels.pointer(statistics[1]),
        eps,
        activation.CODES[act],
        slope,
        _kernels.pointer(y),
        torch.get_num_threads(),
    )
    return normalization.from_rows(y, input), *statistics
