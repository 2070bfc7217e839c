"""gan_fast::conv_weight_grad on the compiled kernel ``_C.conv_weight_grad`` (csrc/cpu/conv_weight_grad*)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gan_fast.ops import _kernels, activation, layout
from gan_fast.ops.conv_weight_grad.reference import weight_shape
from gan_fast.ops.convolution import as_geometry, kernel_code


def conv_weight_grad(
    input: Tensor,
    grad_output: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    pad_begin: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool,
    want_bias: bool,
    prologue_y: Tensor | None,
    prologue_activation: str,
    prologue_slope: float,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """Same arguments as the reference; float32, bfloat16 or float64 on the CPU, 1-D and 2-D."""
    shape = weight_shape(input, grad_output, kernel_size, groups, transposed)
    memory_format = layout.named(channels_last)
    weight_grad = torch.empty(shape, dtype=input.dtype, device="cpu", memory_format=memory_format)
    bias_grad = input.new_empty(grad_output.shape[1] if want_bias else 0)
    if input.shape[0] == 0:
        return weight_grad.zero_(), bias_grad.zero_()
    out_size = grad_output.shape[2:]
    x, g = layout.to_kernel(input), layout.to_kernel(grad_output)
    py = None if prologue_y is None else layout.to_kernel(prologue_y)
    _kernels.module().conv_weight_grad(
        _kernels.DTYPE_CODES[input.dtype],
        kernel_code(
            input.shape,
            grad_output.shape,
            tuple(kernel_size),
            as_geometry(stride, pad_begin, dilation, groups, out_size),
        ),
        transposed,
        _kernels.pointer(x),
        _kernels.pointer(g),
        _kernels.pointer(weight_grad),
        channels_last,
        _kernels.pointer(bias_grad) if want_bias else 0,
        _kernels.pointer(py),
        activation.CODES[prologue_activation],
        prologue_slope,
        torch.get_num_threads(),
    )
    return weight_grad, bias_grad
