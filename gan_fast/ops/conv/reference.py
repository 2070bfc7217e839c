"""gan_fast::conv in plain PyTorch: any device, dtype and 1 to 3 spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast.ops import activation, layout, rows
from gan_fast.ops.padding import input_padding, pad_or_crop
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
    padding, widths = input_padding(size[2:], kernel, stride, pad_begin, dilation, out_size)
    parameters = list(stride), padding, list(dilation), False, [0] * len(stride), groups
    prologue = prologue_activation if prologue_y is not None else None
    form = layout.Format.of_output((size[0], weight.shape[0], *out_size), input, weight)

    def run(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        x = input if prologue is None else activation.grad(input, rest[7], prologue, prologue_slope)
        if is_product:
            out = rows.image(F.linear(rows.matrix(x), weight.flatten(1), bias))
        else:
            padded = x if widths is None else pad_or_crop(x, widths)
            out = torch.ops.aten.convolution(padded, weight, bias, *parameters)
        return form.of(activation.apply(out, act, slope))

    return run


#: Pad or crop so that exactly out_size outputs remain, then PyTorch's convolution (its matrix product where it is one),
#: then the activation.
conv = planned(_plan)
