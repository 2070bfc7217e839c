"""gan_fast::conv_transpose in plain PyTorch: any device, dtype and 1 to 3 spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast.ops import activation, layout, rows
from gan_fast.ops.padding import crop_widths, output_padding, pad_or_crop
from gan_fast.ops.registry import planned


def _plan(
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
) -> Callable[..., Tensor]:
    size, kernel = input.shape, weight.shape[2:]
    is_product = rows.is_product(size, out_size, kernel, stride, pad_begin, groups)
    padding, extra = output_padding(size[2:], kernel, stride, pad_begin, dilation, out_size)
    cut = extra is None  # PyTorch's result cut or filled with zeros
    parameters = list(stride), padding, list(dilation), True, extra or [0] * len(stride), groups
    prologue = prologue_activation if prologue_y is not None else None
    form = layout.Format.of_output((size[0], weight.shape[1] * groups, *out_size), input, weight)

    def run(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        x = input if prologue is None else activation.grad(input, rest[7], prologue, prologue_slope)
        if is_product:
            out = rows.image(F.linear(rows.matrix(x), weight.flatten(1).t(), bias))
        elif not cut:
            out = torch.ops.aten.convolution(x, weight, bias, *parameters)
        else:
            full = torch.ops.aten.convolution(x, weight, None, *parameters)
            out = pad_or_crop(full, crop_widths(full.shape[2:], pad_begin, out_size))
            if bias is not None:  # after the padding: positions that no input reaches get the bias too
                out = out + bias.view(-1, *[1] * len(stride))
        return form.of(activation.apply(out, act, slope))

    return run


#: PyTorch's transposed convolution, cut or filled with zeros to out_size, then bias and activation.
conv_transpose = planned(_plan)
