"""gan_fast::conv_weight_grad to or from 1 to 4 channels on ``_cuda.conv_weight_grad`` (csrc/cuda/conv_weight_grad*)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import _cuda, _kernels, _triton, activation, layout
from gan_fast.ops.conv_weight_grad.reference import weight_shape
from gan_fast.ops.convolution import as_geometry, kernel_code


def conv_weight_grad(
    input: Tensor, grad_output: Tensor, kernel_size: Sequence[int], stride: Sequence[int], pad_begin: Sequence[int],
    dilation: Sequence[int], groups: int, transposed: bool, want_bias: bool,
    prologue_y: Tensor | None, prologue_activation: str, prologue_slope: float, channels_last: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Same arguments as the reference; float32, bfloat16 or float16, 1-D and 2-D, without groups.

    The few channels are grad_output's, or the input's of a transposed convolution. Prologue and bias gradient are
    PyTorch's operations: of few channels they are small.
    """
    g = grad_output
    if prologue_y is not None:
        g = activation.grad(g, prologue_y, prologue_activation, prologue_slope)
    bias_grad = g.sum([0, *range(2, g.dim())]) if want_bias else g.new_empty(0)
    shape = weight_shape(input, grad_output, kernel_size, groups, transposed)
    few, many = (input, g) if transposed else (g, input)
    memory_format = layout.named(channels_last)
    if input.shape[0] == 0:
        return layout.with_format(input.new_zeros(shape), memory_format), bias_grad
    form = as_geometry(stride, pad_begin, dilation, groups, many.shape[2:])
    code = kernel_code(few.shape, many.shape, torch.Size(kernel_size), form)
    product = _cuda.product(input.dtype)
    narrow, wide = _triton.dense(few), _triton.dense(many)
    grad = _triton.empty_dense(tuple(shape), input)
    partial = torch.empty(_scratch(product, code), dtype=torch.float32, device=input.device)
    _cuda.call(
        "conv_weight_grad",
        input.device,
        product,
        code,
        _kernels.pointer(narrow),
        _kernels.pointer(wide),
        _kernels.pointer(partial),
        _kernels.pointer(grad),
    )
    return layout.with_format(grad.squeeze(2) if input.dim() == 3 else grad, memory_format), bias_grad


def _scratch(product: int, code: tuple[int, ...]) -> int:
    """Elements that the kernel's first launch leaves for its second; RuntimeError for what it cannot do."""
    module = backends.cuda_extension()
    if module is None:
        raise RuntimeError(f"the CUDA kernels are not available: {backends.cuda_extension_error()}")
    try:
        return module.conv_weight_grad_scratch(product, code)
    except ValueError as error:
        raise RuntimeError(f"backend 'cuda' cannot run this conv_weight_grad: {error}") from error
