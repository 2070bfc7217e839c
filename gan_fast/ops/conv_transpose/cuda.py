"""gan_fast::conv_transpose from 1 to 4 channels on the kernel ``_cuda.conv_transpose`` (csrc/cuda/conv_transpose*).

With :mod:`gan_fast.ops.conv.cuda`'s arguments it is the input gradient of the convolution to few channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gan_fast.ops import _cuda, _kernels, _triton, activation, layout
from gan_fast.ops.convolution import as_geometry, kernel_code


def conv_transpose(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pad_begin: Sequence[int],
    dilation: Sequence[int], groups: int, out_size: Sequence[int], act: str, slope: float,
    prologue_y: Tensor | None, prologue_activation: str, prologue_slope: float,
) -> Tensor:  # fmt: skip
    """Same arguments as the reference; float32, bfloat16 or float16, 1-D and 2-D, without groups."""
    shape = (input.shape[0], weight.shape[1] * groups, *out_size)
    x, w = _triton.dense(input), _triton.dense(weight)
    b = None if bias is None else bias.contiguous()
    y = None if prologue_y is None else _triton.dense(prologue_y)
    out = _triton.empty_dense(shape, input)
    if out.numel():
        form = as_geometry(stride, pad_begin, dilation, groups, out_size)
        _cuda.call(
            "conv_transpose",
            x.device,
            _cuda.product(x.dtype),
            kernel_code(input.shape, torch.Size(shape), weight.shape[2:], form),
            _kernels.pointer(x),
            _kernels.pointer(w),
            _kernels.pointer(b),
            _kernels.pointer(out),
            activation.CODES[act],
            slope,
            _kernels.pointer(y),
            activation.CODES[prologue_activation],
            prologue_slope,
        )
    return layout.from_kernel(out, input.dim() - 2, layout.output_format(input, weight))
