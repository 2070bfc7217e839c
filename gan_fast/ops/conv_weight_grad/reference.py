"""gan_fast::conv_weight_grad in plain PyTorch: any device, dtype and 1 to 3 spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gan_fast.ops import activation, layout, rows
from gan_fast.ops.geometry import extent
from gan_fast.ops.padding import crop_widths, input_padding, output_padding, pad_or_crop
from gan_fast.ops.registry import planned


def weight_shape(
    input: Tensor, grad_output: Tensor, kernel_size: Sequence[int], groups: int, transposed: bool
) -> tuple[int, ...]:
    """Shape of the forward operation's weight."""
    if transposed:
        return (input.shape[1], grad_output.shape[1] // groups, *kernel_size)
    return (grad_output.shape[1], input.shape[1] // groups, *kernel_size)


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
    prologue_y: Tensor | None = None,
    prologue_activation: str = "none",
    prologue_slope: float = 0.01,
    channels_last: bool = False,
) -> Callable[..., tuple[Tensor, Tensor]]:
    size, out_size = input.shape[2:], grad_output.shape[2:]
    is_product = rows.is_product(input.shape, out_size, kernel_size, stride, pad_begin, groups)
    extra: list[int] | None = [0] * len(stride)
    widths = None  # to pad or crop with: the input, or of a transposed convolution the output's gradient
    if transposed:
        padding, extra = output_padding(size, kernel_size, stride, pad_begin, dilation, out_size)
        if extra is None:
            full = [(n - 1) * s + extent(k, d) for n, k, s, d in zip(size, kernel_size, stride, dilation, strict=True)]
            # The adjoint of cutting is filling with zeros: the forward operation's widths with the other sign.
            widths = [-width for width in crop_widths(full, pad_begin, out_size)]
    else:
        padding, widths = input_padding(size, kernel_size, stride, pad_begin, dilation, out_size)
    parameters = list(stride), padding, list(dilation), transposed, extra or [0] * len(stride), groups
    shape = weight_shape(input, grad_output, kernel_size, groups, transposed)
    memory_format = layout.named(channels_last)
    form = layout.Format(shape, memory_format)
    prologue = prologue_activation if prologue_y is not None else None
    but_channels = [0, *range(2, grad_output.dim())]

    def run(input: Tensor, grad_output: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        x, g = input, grad_output
        if prologue is not None:
            g = activation.grad(g, rest[7], prologue, prologue_slope)
        bias_grad = g.sum(but_channels) if want_bias else g.new_empty(0)
        if is_product:
            gathered, dense = (g, x) if transposed else (x, g)
            product = rows.matrix(dense).t() @ rows.matrix(gathered)
            return form.of(product[:, :, None, None]), bias_grad
        if widths is not None:
            x, g = (x, pad_or_crop(g, widths)) if transposed else (pad_or_crop(x, widths), g)
        # Only its shape and format count; PyTorch would make a whole weight of an expanded element.
        weight = torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=memory_format)
        _, weight_grad, _ = torch.ops.aten.convolution_backward(g, x, weight, None, *parameters, (False, True, False))
        return form.of(weight_grad), bias_grad

    return run


#: The padding of the forward operation, then PyTorch's own convolution_backward for the weight alone.
conv_weight_grad = planned(_plan)
