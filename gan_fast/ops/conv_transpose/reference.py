"""gan_fast::conv_transpose in plain PyTorch: any device, dtype and 1 to 3 spatial axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast.ops import activation, layout, rows
from gan_fast.ops.padding import crop_widths, output_padding, pad_or_crop


def conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    pad_begin: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out_size: Sequence[int],
    act: str = "none",
    slope: float = 0.01,
    prologue_y: Tensor | None = None,
    prologue_activation: str = "none",
    prologue_slope: float = 0.01,
) -> Tensor:
    """PyTorch's transposed convolution, cut or filled with zeros to out_size, then bias and activation."""
    x = input if prologue_y is None else activation.grad(input, prologue_y, prologue_activation, prologue_slope)
    padding, extra = output_padding(x.shape[2:], weight.shape[2:], stride, pad_begin, dilation, out_size)
    parameters = list(stride), padding, list(dilation), True
    if rows.is_product(x.shape, out_size, weight.shape[2:], stride, pad_begin, groups):
        out = rows.image(F.linear(rows.matrix(x), weight.flatten(1).t(), bias))
    elif extra is not None:
        out = torch.ops.aten.convolution(x, weight, bias, *parameters, extra, groups)
    else:
        none = [0] * len(stride)
        full = torch.ops.aten.convolution(x, weight, None, *parameters, none, groups)
        out = pad_or_crop(full, crop_widths(full.shape[2:], pad_begin, out_size))
        if bias is not None:  # after the padding: positions that no input reaches get the bias too
            out = out + bias.view(-1, *[1] * len(stride))
    return layout.with_format(activation.apply(out, act, slope), layout.output_format(input, weight))
