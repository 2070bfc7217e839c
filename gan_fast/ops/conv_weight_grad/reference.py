"""gan_fast::conv_weight_grad in plain PyTorch: any device, dtype and 1 to 3 spatial axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gan_fast.ops import activation, layout, rows
from gan_fast.ops.geometry import extent
from gan_fast.ops.padding import crop_widths, output_padding, pad_input, pad_or_crop


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
    prologue_y: Tensor | None = None,
    prologue_activation: str = "none",
    prologue_slope: float = 0.01,
    channels_last: bool = False,
) -> tuple[Tensor, Tensor]:
    """The padding of the forward operation, then PyTorch's own convolution_backward for the weight alone."""
    x, g = input, grad_output
    if prologue_y is not None:
        g = activation.grad(g, prologue_y, prologue_activation, prologue_slope)
    bias_grad = g.sum([0, *range(2, g.dim())]) if want_bias else g.new_empty(0)
    extra: list[int] | None = [0] * len(stride)
    out_size = grad_output.shape[2:]
    memory_format = layout.named(channels_last)
    if rows.is_product(x.shape, out_size, kernel_size, stride, pad_begin, groups):
        gathered, dense = (g, x) if transposed else (x, g)
        product = rows.matrix(dense).t() @ rows.matrix(gathered)
        return layout.with_format(product[:, :, None, None], memory_format), bias_grad
    if not transposed:
        padding, x = pad_input(x, kernel_size, stride, pad_begin, dilation, out_size)
    else:
        padding, extra = output_padding(x.shape[2:], kernel_size, stride, pad_begin, dilation, out_size)
        if extra is None:
            full = [
                (n - 1) * s + extent(k, d)
                for n, k, s, d in zip(x.shape[2:], kernel_size, stride, dilation, strict=True)
            ]
            # The adjoint of cutting is filling with zeros: the forward operation's widths with the other sign.
            g = pad_or_crop(g, [-width for width in crop_widths(full, pad_begin, out_size)])
            extra = [0] * len(stride)
    # Of the weight only the shape counts.
    weight = g.new_empty(1).expand(weight_shape(input, grad_output, kernel_size, groups, transposed))
    _, weight_grad, _ = torch.ops.aten.convolution_backward(
        g, x, weight, None, list(stride), padding, list(dilation), transposed, extra, groups, (False, True, False)
    )
    return layout.with_format(weight_grad, memory_format), bias_grad


def weight_shape(
    input: Tensor, grad_output: Tensor, kernel_size: Sequence[int], groups: int, transposed: bool
) -> tuple[int, ...]:
    """Shape of the forward operation's weight."""
    if transposed:
        return (input.shape[1], grad_output.shape[1] // groups, *kernel_size)
    return (grad_output.shape[1], input.shape[1] // groups, *kernel_size)
