"""The way of a linear layer's call: PyTorch's matrix product, or gan_fast::conv on a view of the rows as pixels.

Its input gradient is then gan_fast::conv_transpose and its weight gradient gan_fast::conv_weight_grad, to any order;
:mod:`gan_fast.ops.rows` has the views. :func:`gan_fast.functional.linear` has the signature.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import activation as activations
from gan_fast.ops import dispatch, rows
from gan_fast.ops.geometry import Geometry

#: stride, padding, dilation and groups of the convolution that a linear layer is.
FORM = (1, 0, 1, 1)


def geometry(count: int) -> Geometry:
    """Of the convolution on ``count`` rows."""
    return Geometry((1, 1), (0, 0), (1, 1), 1, (1, count))


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    negative_slope: float,
    backend: str | None,
) -> Tensor:
    """The layer's result, as :func:`gan_fast.functional.linear` says."""
    act = activations.check(activation)
    asked = backends.requested(backend)

    def by_torch() -> Tensor:
        return activations.apply(F.linear(input, weight, bias), act, negative_slope)

    if dispatch.only_torch(asked, input, weight, bias):
        return by_torch()
    x, w, b = dispatch.autocast(input, weight, bias)
    if not _fits(x, w, b):
        return dispatch.served_by_torch(by_torch(), asked, "these shapes, dtypes, layouts or devices")
    count = x.numel() // x.shape[-1]
    if asked == "auto" and not _chosen(count, x, w, b):
        return by_torch()
    pixels = rows.image(x.reshape(count, x.shape[-1]))
    out = dispatch.convolution(2, pixels, w[:, :, None, None], b, FORM, act, negative_slope, asked)
    return rows.matrix(out).reshape(*x.shape[:-1], w.shape[0])


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the convolution takes this call; the rest, errors included, is PyTorch's."""
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1] or not dispatch.tensors_fit(x, weight, bias):
        return False
    return x.numel() > 0 and weight.numel() > 0 and (bias is None or bias.shape == weight.shape[:1])


def _chosen(count: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the automatic choice takes the convolution, whose tensors need not exist yet."""
    channels = x.shape[-1]
    pixels = (1, channels, 1, count)
    strides = (count * channels, 1, count * channels, channels)
    bias_shape = None if bias is None else bias.shape
    facts = (pixels, strides, (*weight.shape, 1, 1), bias_shape, x.dtype, x.device.type, FORM, "auto")
    return dispatch.plan(2, *facts, backends.extension()) is not None
