"""Functions with the names, argument order and defaults of torch.nn.functional, plus ``activation=`` and ``backend=``.

Each call chooses first (see :mod:`gan_fast.backends`): where PyTorch serves it, the call goes straight to
``torch.nn.functional`` followed by the activation, and never enters an operator of ours. That is also the path of
everything unusual: 3-D convolutions, empty or invalid tensors (PyTorch's own error is raised), other dtypes than
float32 and bfloat16, tensor subclasses, and, with backend "auto", of code under
``torch.compile`` and ``torch.export``: the compiler fuses PyTorch's operations, not an opaque one, and an exported
program then holds nothing but aten operations.

``backend``: None follows ``gan_fast.use_backend`` and GAN_FAST_BACKEND; a name is strict and raises RuntimeError
where that backend cannot run. The choice holds for the backward pass too.

``activation``: None, "relu", "leaky_relu" (with ``negative_slope``), "tanh", "sigmoid"; the result is that of the
same call without it, followed by the function of that name. Derivatives of every order exist. Forward-mode
differentiation is PyTorch's with backend "auto" and raises with any other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import OPERATORS, batch_norm_call, dispatch, linear_call
from gan_fast.ops import activation as activations
from gan_fast.ops.bce_with_logits.op import broadcasts_to
from gan_fast.ops.dispatch import Size
from gan_fast.ops.layout import as_channels_last
from gan_fast.ops.registry import autocast_enabled
from gan_fast.ops.upsample_conv import Factor, upsample_convolution

__all__ = [
    "as_channels_last",
    "batch_norm",
    "bias_act",
    "binary_cross_entropy_with_logits",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_geometry",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "conv_transpose_geometry",
    "linear",
    "upsample_conv1d",
    "upsample_conv2d",
]

# --------------------------------------------------------------------------------------------------- convolutions


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """torch.nn.functional.conv1d, then the activation. input (N, C, L) or (C, L), weight (OC, C / groups, K)."""
    parameters = (stride, padding, dilation, groups)
    return dispatch.convolution(1, input, weight, bias, parameters, activation, negative_slope, backend)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """torch.nn.functional.conv2d, then the activation. input (N, C, H, W) or (C, H, W), weight (OC, C / groups, KH,
    KW).
    """
    parameters = (stride, padding, dilation, groups)
    return dispatch.convolution(2, input, weight, bias, parameters, activation, negative_slope, backend)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """torch.nn.functional.conv3d, then the activation; PyTorch serves it (backend "cpu" raises)."""
    parameters = (stride, padding, dilation, groups)
    return dispatch.convolution(3, input, weight, bias, parameters, activation, negative_slope, backend)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """torch.nn.functional.conv_transpose1d, then the activation. input (N, C, L) or (C, L), weight (C, OC / groups,
    K).
    """
    parameters = (stride, padding, output_padding, groups, dilation)
    return dispatch.convolution(-1, input, weight, bias, parameters, activation, negative_slope, backend)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """torch.nn.functional.conv_transpose2d, then the activation.

    input (N, C, H, W) or (C, H, W), weight (C, OC / groups, KH, KW).
    """
    parameters = (stride, padding, output_padding, groups, dilation)
    return dispatch.convolution(-2, input, weight, bias, parameters, activation, negative_slope, backend)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """torch.nn.functional.conv_transpose3d, then the activation; PyTorch serves it (backend "cpu" raises)."""
    parameters = (stride, padding, output_padding, groups, dilation)
    return dispatch.convolution(-3, input, weight, bias, parameters, activation, negative_slope, backend)


# ------------------------------------------------------------------------------------ upsampling, then a convolution


def upsample_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale_factor: Factor = 2,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """torch.nn.functional.interpolate(mode="nearest"), then conv1d; as :func:`upsample_conv2d`.

    input (N, C, L) or (C, L), weight (OC, C / groups, K).
    """
    parameters = (scale_factor, stride, padding, dilation, groups)
    return upsample_convolution(1, input, weight, bias, parameters, activation, negative_slope, backend)


def upsample_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale_factor: Factor = 2,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """torch.nn.functional.interpolate(mode="nearest"), then conv2d, then the activation: a generator's usual way up.

    input (N, C, H, W) or (C, H, W), weight (OC, C / groups, KH, KW): PyTorch's of the convolution. scale_factor: one
    number, or one for each axis; the other arguments are the convolution's.

    With whole factors, stride 1, dilation 1 and one group both are exactly one transposed convolution, whose weight
    is a sum of taps; it is computed so where that is faster (always, if a backend other than "reference" is asked for
    by name). For a 3x3 kernel and factor 2 that is 4 products for each output instead of 9, and no upsampled tensor.
    """
    parameters = (scale_factor, stride, padding, dilation, groups)
    return upsample_convolution(2, input, weight, bias, parameters, activation, negative_slope, backend)


# ------------------------------------------------------------------------------------------- the geometry's own form


def conv_geometry(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Size,
    pad_begin: Size,
    out_size: Size,
    dilation: Size = 1,
    groups: int = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """A convolution given by its padding at the beginning and its output's size; the end padding follows.

    Equal to padding or cropping input, then PyTorch's convolution without padding. 1-D to 3-D by the rank of input
    (N, C, spatial...). Padding at either side may be negative (a crop). Raises ValueError for what does not fit.
    """
    parameters = (stride, pad_begin, out_size, dilation, groups)
    return dispatch.geometry_form("conv", input, weight, bias, parameters, activation, negative_slope, backend)


def conv_transpose_geometry(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Size,
    pad_begin: Size,
    out_size: Size,
    dilation: Size = 1,
    groups: int = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """A transposed convolution given by what is cut at the beginning and its output's size; the end follows.

    Equal to PyTorch's transposed convolution without padding, cut (or filled with zeros) to out_size, then bias and
    activation. 1-D to 3-D by the rank of input (N, C, spatial...). Raises ValueError for what does not fit.
    """
    parameters = (stride, pad_begin, out_size, dilation, groups)
    return dispatch.geometry_form(
        "conv_transpose", input, weight, bias, parameters, activation, negative_slope, backend
    )


# ------------------------------------------------------------------------------------------------------------ linear


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """torch.nn.functional.linear, then the activation. input (..., C), weight (O, C), bias (O); result (..., O).

    On a kernel of ours it is a 1x1 convolution over one row of pixels (views, nothing is copied). With backend "auto"
    PyTorch serves it unless ``gan-fast tune`` found the kernel faster here.
    """
    return linear_call.linear(input, weight, bias, activation, negative_slope, backend)


# -------------------------------------------------------------------------------------------------- bias, activation


def bias_act(
    input: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    *,
    backend: str | None = None,
) -> Tensor:
    """act(input + bias) in one pass. input (N, C, ...), bias (C,) or None; the result has input's memory order."""
    act = activations.check(activation)
    asked = backends.requested(backend)
    if input.dim() < 2:
        raise ValueError(f"bias_act: input must be (N, C, ...), got shape {tuple(input.shape)}")
    if bias is not None and tuple(bias.shape) != (input.shape[1],):
        raise ValueError(f"bias_act: bias must have shape ({input.shape[1]},), got {tuple(bias.shape)}")
    traced = dispatch.only_torch(asked, input, bias)
    ours = not traced and (bias is None or (bias.dtype, bias.device) == (input.dtype, input.device))
    if ours and input.numel():
        choice = dispatch.choose("bias_act", asked, device=input.device.type, dtype=input.dtype, elements=input.numel())
        if choice.backend != "torch":
            if activations.fusable(act, negative_slope):
                return OPERATORS["bias_act"](input, bias, act, float(negative_slope), asked)
            out = OPERATORS["bias_act"](input, bias, "none", 0.01, asked)
            return activations.apply(out, act, negative_slope)
    x = input if bias is None else input + bias.view(-1, *[1] * (input.dim() - 2))
    out = activations.apply(x, act, negative_slope)
    return out if ours else dispatch.served_by_torch(out, "auto" if traced else asked, "these dtypes")


# --------------------------------------------------------------------------------------------- batch normalisation


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """torch.nn.functional.batch_norm, then the activation. input (N, C), (N, C, L) or (N, C, H, W), the others (C,).

    In training the running statistics are updated in place. Images are fastest in channels_last. PyTorch serves
    everything else: other ranks and dtypes, tensors of different dtypes, and torch.func's transforms.
    """
    parameters = (training, momentum, eps)
    return batch_norm_call.batch_norm(
        input, (running_mean, running_var), (weight, bias), parameters, activation, negative_slope, backend
    )


# -------------------------------------------------------------------------------------------------------------- loss


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor | float,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """torch.nn.functional.binary_cross_entropy_with_logits; ``target`` may also be a number, the same for all elements.

    input: logits of any shape; target: of the same shape; weight and pos_weight broadcast to it. Value and gradient
    come from one pass over input. Under torch.func's transforms PyTorch serves it.
    """
    asked = backends.requested(backend)
    if target is None:
        raise TypeError("target: got None, expected a tensor of the input's shape or a number")
    constant = None if isinstance(target, Tensor) else float(target)

    def by_torch() -> Tensor:
        t: Any = input.new_full((), constant).expand_as(input) if constant is not None else target
        return F.binary_cross_entropy_with_logits(input, t, weight, size_average, reduce, reduction, pos_weight)

    tensors: Any = (input, None if constant is not None else target, weight, pos_weight)
    if not _bce_fits(tensors, size_average, reduce, reduction, asked):
        exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()
        return by_torch() if exporting else dispatch.served_by_torch(by_torch(), asked, "this form of the loss")
    choice = dispatch.choose(
        "bce_with_logits", asked, device=input.device.type, dtype=input.dtype, elements=input.numel()
    )
    if choice.backend == "torch":
        return by_torch()
    if autocast_enabled(input.device.type):  # PyTorch computes this loss in float32 then
        tensors = tuple(t if t is None or t.dtype == torch.float64 else t.float() for t in tensors)
    input, t, weight, pos_weight = tensors
    loss, _ = OPERATORS["bce_with_logits"](input, t, constant or 0.0, weight, pos_weight, reduction, asked)
    return loss


def _bce_fits(
    tensors: tuple[Any, Any, Any, Any], size_average: bool | None, reduce: bool | None, reduction: str, asked: str
) -> bool:
    """Whether the operator takes this call; the rest, errors included, is PyTorch's."""
    input, target, weight, pos_weight = tensors
    if dispatch.only_torch(asked, *tensors) or (asked == "auto" and torch._C._are_functorch_transforms_active()):
        return False
    if size_average is not None or reduce is not None or reduction not in ("mean", "sum", "none"):
        return False
    if not input.is_floating_point() or input.numel() == 0 or (target is not None and target.shape != input.shape):
        return False
    for tensor in (target, weight, pos_weight):
        if tensor is not None and (tensor.dtype != input.dtype or tensor.device != input.device):
            return False
    for factor in (weight, pos_weight):
        if factor is None:
            continue
        if factor.requires_grad or not broadcasts_to(factor.shape, input.shape):
            return False
    return True
