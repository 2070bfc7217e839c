"""gan_fast::conv_weight_grad as one side's pixels times the other's columns: see :mod:`gan_fast.ops.columns`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from gan_fast.ops import columns, layout, memory
from gan_fast.ops.conv_weight_grad.reference import weight_shape
from gan_fast.ops.convolution import as_geometry


def conv_weight_grad(
    input: Tensor, grad_output: Tensor, kernel_size: Sequence[int], stride: Sequence[int], pad_begin: Sequence[int],
    dilation: Sequence[int], groups: int, transposed: bool, want_bias: bool, prologue_y: Tensor | None,
    prologue_activation: str, prologue_slope: float, channels_last: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Same arguments as the reference; float32 or float64 on the CPU, 1-D and 2-D."""
    g = as_geometry(stride, pad_begin, dilation, groups, grad_output.shape[2:])
    shape = weight_shape(input, grad_output, kernel_size, groups, transposed)
    memory_format = layout.named(channels_last)
    grad = columns.with_prologue(grad_output, prologue_y, prologue_activation, prologue_slope)
    bias_grad = grad.sum([0, *range(2, grad.dim())]) if want_bias else grad.new_empty(0)
    image, dense = (grad, input) if transposed else (input, grad)
    inner = columns.taps_inner(channels_last, groups)
    width = math.prod(shape[1:])
    made = memory.empty((shape[0], width), (width, 1), input.dtype)
    if input.shape[0] == 0:
        made.zero_()
    row = image.shape[1] * math.prod(kernel_size) * image.element_size()
    for part in columns.parts(image.shape[0], math.prod(dense.shape[2:]) * row):
        pixels = columns.rows(dense[part])
        unfolded = columns.unfold(
            image[part], (part.stop - part.start, *dense.shape[1:]), kernel_size, g, transposed, inner
        )
        columns.product_over_rows(pixels, unfolded, groups, made, add=part.start > 0)
    return layout.with_format(columns.weight_of(made, shape, inner), memory_format), bias_grad
