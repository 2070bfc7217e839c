"""gan_fast::conv in plain PyTorch: any device, dtype and 1 to 3 spatial axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast.ops import activation, layout, rows
from gan_fast.ops.padding import pad_input


def conv(
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
    """Pad or crop so that exactly out_size outputs remain, then PyTorch's convolution (its matrix product where it
    is one), then the activation."""
    x = input if prologue_y is None else activation.grad(input, prologue_y, prologue_activation, prologue_slope)
    if rows.is_product(x.shape, out_size, weight.shape[2:], stride, pad_begin, groups):
        out = rows.image(F.linear(rows.matrix(x), weight.flatten(1), bias))
    else:
        padding, x = pad_input(x, weight.shape[2:], stride, pad_begin, dilation, out_size)
        none = [0] * len(stride)
        out = torch.ops.aten.convolution(x, weight, bias, list(stride), padding, list(dilation), False, none, groups)
    return layout.with_format(activation.apply(out, act, slope), layout.output_format(input, weight))
