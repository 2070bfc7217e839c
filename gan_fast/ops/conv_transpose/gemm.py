"""gan_fast::conv_transpose as its input times the weights, folded: see :mod:`gan_fast.ops.columns`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gan_fast.ops import columns, layout, memory
from gan_fast.ops.convolution import as_geometry


def conv_transpose(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pad_begin: Sequence[int],
    dilation: Sequence[int], groups: int, out_size: Sequence[int], act: str, slope: float,
    prologue_y: Tensor | None, prologue_activation: str, prologue_slope: float,
) -> Tensor:  # fmt: skip
    """Same arguments as the reference; float32 or float64 on the CPU, 1-D and 2-D."""
    g = as_geometry(stride, pad_begin, dilation, groups, out_size)
    kernel, channels = weight.shape[2:], weight.shape[1] * groups
    shape = (input.shape[0], channels, *out_size)
    x = columns.with_prologue(input, prologue_y, prologue_activation, prologue_slope)
    inner = columns.taps_inner(layout.is_channels_last(weight), groups)
    matrix = columns.weight_matrix(weight, inner)
    bias = None if bias is None else bias.contiguous()
    memory_format = layout.output_format(input, weight)
    last = memory_format == torch.channels_last
    stride_of = memory.channels_last_stride if last else memory.contiguous_stride
    out = memory.empty(shape, stride_of(shape), input.dtype)
    width = channels * math.prod(kernel)
    positions = math.prod(input.shape[2:])
    for part in columns.parts(x.shape[0], positions * width * x.element_size()):
        piece = columns.rows(x[part])
        made = memory.empty((piece.shape[0], width), (width, 1), x.dtype)
        columns.product(piece, matrix, groups, made)
        columns.fold(made, out[part], (part.stop - part.start, *x.shape[1:]), kernel, g, inner, bias, act, slope)
    return out
