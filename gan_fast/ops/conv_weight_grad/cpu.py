"""gan_fast::conv_weight_grad on the compiled kernel ``_C.conv_weight_grad`` (csrc/cpu/conv_weight_grad*)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gan_fast.ops import _kernels, activation, layout
from gan_fast.ops.conv_weight_grad.reference import weight_shape
from gan_fast.ops.convolution import as_geometry, kernel_code
from gan_fast.ops.registry import planned


def _plan(
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
) -> Callable[..., tuple[Tensor, Tensor]]:
    shape = weight_shape(input, grad_output, kernel_size, groups, transposed)
    memory_format = layout.named(channels_last)
    channels = grad_output.shape[1] if want_bias else 0
    dtype, dtype_code, empty = input.dtype, _kernels.DTYPE_CODES[input.dtype], input.shape[0] == 0
    g = as_geometry(stride, pad_begin, dilation, groups, grad_output.shape[2:])
    code = kernel_code(input.shape, grad_output.shape, tuple(kernel_size), g)
    kernel, threads = _kernels.module().conv_weight_grad, torch.get_num_threads()
    prologue = (activation.CODES[prologue_activation], prologue_slope)
    ready = all(layout.is_for_kernel(t) for t in (input, grad_output, prologue_y) if t is not None)

    def run(input: Tensor, grad_output: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        weight_grad = torch.empty(shape, dtype=dtype, device="cpu", memory_format=memory_format)
        bias_grad = input.new_empty(channels)
        if empty:
            return weight_grad.zero_(), bias_grad.zero_()
        x, g, py = input, grad_output, rest[7]
        if not ready:
            x, g = layout.to_kernel(x), layout.to_kernel(g)
            py = None if py is None else layout.to_kernel(py)
        kernel(
            dtype_code, code, transposed, x.data_ptr(), g.data_ptr(), weight_grad.data_ptr(),
            channels_last, bias_grad.data_ptr() if want_bias else 0, _kernels.pointer(py), *prologue, threads,
        )  # fmt: skip
        return weight_grad, bias_grad

    return run


#: Same arguments as the reference; float32, bfloat16 or float64 on the CPU, 1-D and 2-D.
conv_weight_grad = planned(_plan)
