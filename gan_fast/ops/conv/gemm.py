"""gan_fast::conv as the columns of its input times the weights: see :mod:`gan_fast.ops.columns`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gan_fast.ops import _kernels, activation, columns, layout
from gan_fast.ops.convolution import as_geometry


def conv(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pad_begin: Sequence[int],
    dilation: Sequence[int], groups: int, out_size: Sequence[int], act: str, slope: float,
    prologue_y: Tensor | None, prologue_activation: str, prologue_slope: float,
) -> Tensor:  # fmt: skip
    """Same arguments as the reference; float32 or float64 on the CPU, 1-D and 2-D."""
    g = as_geometry(stride, pad_begin, dilation, groups, out_size)
    kernel, channels = weight.shape[2:], weight.shape[0]
    shape = (input.shape[0], channels, *out_size)
    memory_format = layout.output_format(input, weight)
    x = columns.with_prologue(input, prologue_y, prologue_activation, prologue_slope)
    inner = columns.taps_inner(layout.is_channels_last(weight), groups)
    matrix = columns.weight_matrix(weight, inner)
    out = layout.empty_for_kernel(shape, input.dtype)
    out_rows = columns.rows(out)
    positions = math.prod(out_size)
    row = x.shape[1] * math.prod(kernel) * x.element_size()
    for part in columns.parts(x.shape[0], positions * row):
        piece = x[part]
        unfolded = columns.unfold(piece, (piece.shape[0], *shape[1:]), kernel, g, False, inner)
        to = out_rows[part.start * positions : part.stop * positions]
        columns.product_with_weights(unfolded, matrix, groups, to)
    if out.numel() and (bias is not None or act != "none"):
        b = None if bias is None else bias.contiguous()
        _kernels.module().bias_act(
            _kernels.DTYPE_CODES[out.dtype], out_rows.shape[0], channels, 1, _kernels.pointer(out), _kernels.pointer(b),
            _kernels.pointer(out), activation.CODES[act], slope, torch.get_num_threads(),
        )  # fmt: skip
    return layout.from_kernel(out, input.dim() - 2, memory_format)
