"""The way of a linear layer's call: PyTorch's matrix product, or gan_fast::conv on a view of the rows as pixels.

Its input gradient is then gan_fast::conv_transpose and its weight gradient gan_fast::conv_weight_grad, to any order;
:mod:`gan_fast.ops.rows` has the views. :func:`gan_fast.functional.linear` has the signature.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import activation as activations
from gan_fast.ops import convolution_choice, dispatch, rows
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
    key, known = dispatch.look_up(backend, "linear", input, weight, activation, negative_slope)
    if known is None:
        out = F.linear(input, weight, bias)
        return out if activation is None else activations.apply(out, activation, negative_slope)
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
    if asked == "auto" and not _chosen(count, x, w, act, negative_slope):
        dispatch.remember(key if x is input and w is weight else None, None)
        return by_torch()
    pixels = rows.image(x.reshape(count, x.shape[-1]))
    out = dispatch.convolution(2, pixels, w[:, :, None, None], b, FORM, act, negative_slope, asked)
    return rows.matrix(out).reshape(*x.shape[:-1], w.shape[0])


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the convolution takes this call; the rest, errors included, is PyTorch's."""
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1] or not dispatch.tensors_fit(x, weight, bias):
        return False
    return x.numel() > 0 and weight.numel() > 0 and (bias is None or bias.shape == weight.shape[:1])


def _chosen(count: int, x: Tensor, weight: Tensor, act: str, negative_slope: float) -> bool:
    """Whether the automatic choice takes the convolution on ``count`` rows; the image need not exist yet."""
    return convolution_choice.enters(
        *question(count, weight, act, negative_slope), convolution_choice.wanted(x, weight), x.device.type, x.dtype,
        backends.circumstances(x.is_cuda),
    )  # fmt: skip


def question(count: int, weight: Tensor, act: str, negative_slope: float) -> convolution_choice.Question:
    """What the layer on ``count`` rows comes to for :func:`convolution_choice.passes`."""
    fused = activations.fuses(act, negative_slope)
    pixels = (1, weight.shape[1], 1, count)
    formats = convolution_choice.Formats(True, True, False)
    return convolution_choice.Question(False, pixels, (*weight.shape, 1, 1), geometry(count), formats, fused)
