"""Functions with the names, argument order and defaults of torch.nn.functional, plus ``activation=`` and ``backend=``.

Each call chooses first (see :mod:`gan_fast.backends`): where PyTorch serves it, the call goes straight to
``torch.nn.functional`` followed by the activation, and never enters an operator of ours. That is also the path of
everything unusual: 3-D convolutions, empty or invalid tensors (PyTorch's own error is raised), dtypes other than
float32, tensor subclasses, and, with backend "auto", of code under ``torch.compile`` and ``torch.export``: the
compiler fuses PyTorch's operations, not an opaque one, and an exported program then holds nothing but aten
operations.

``backend``: None follows ``gan_fast.use_backend`` and GAN_FAST_BACKEND; a name is strict and raises RuntimeError
where that backend cannot run. The choice holds for the backward pass too.

``activation``: None, "relu", "leaky_relu" (with ``negative_slope``), "tanh", "sigmoid"; the result is that of the
same call without it, followed by the function of that name. Derivatives of every order exist. Forward-mode
differentiation is PyTorch's with backend "auto" and raises with any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

from gan_fast import backends
from gan_fast.ops import OPERATORS
from gan_fast.ops import activation as activations
from gan_fast.ops import geometry as geometries
from gan_fast.ops.convolution import tensor_facts
from gan_fast.ops.geometry import Geometry
from gan_fast.ops.registry import autocast_enabled

__all__ = [
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
]

Size = int | Sequence[int]


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
    return _conv(1, input, weight, bias, parameters, activation, negative_slope, backend)


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
    return _conv(2, input, weight, bias, parameters, activation, negative_slope, backend)


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
    return _conv(3, input, weight, bias, parameters, activation, negative_slope, backend)


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
    return _conv(-1, input, weight, bias, parameters, activation, negative_slope, backend)


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
    return _conv(-2, input, weight, bias, parameters, activation, negative_slope, backend)


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
    return _conv(-3, input, weight, bias, parameters, activation, negative_slope, backend)


#: Spatial axes (negative: transposed) -> PyTorch's own function.
_TORCH: dict[int, Callable[..., Tensor]] = {
    1: F.conv1d,
    2: F.conv2d,
    3: F.conv3d,
    -1: F.conv_transpose1d,
    -2: F.conv_transpose2d,
    -3: F.conv_transpose3d,
}


def _conv(
    kind: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    parameters: tuple[Any, ...],
    activation: str | None,
    negative_slope: float,
    backend: str | None,
) -> Tensor:
    """All six convolutions; ``kind`` as the keys of ``_TORCH``, ``parameters`` in the order of PyTorch's function."""
    act = activations.check(activation)
    asked = backends.requested(backend)

    def by_torch() -> Tensor:
        out = _TORCH[kind](input, weight, bias, *parameters)
        return activations.apply(out, act, negative_slope)

    if _only_torch(asked, input, weight, bias):
        return by_torch()
    x, w, b = _autocast(input, weight, bias)
    rank = abs(kind)
    unbatched = x.dim() == rank + 1
    shape = (1, *x.shape) if unbatched else x.shape
    geometry = None
    channels = 0
    if w.dim() == rank + 2 and _tensors_fit(x, w, b):
        resolve = geometries.resolve_conv if kind > 0 else geometries.resolve_conv_transpose
        geometry = resolve(shape, w.shape, *parameters)
        channels = 0 if geometry is None else geometries.out_channels(w.shape, geometry.groups, kind < 0)
    if geometry is None or (b is not None and b.shape != (channels,)):
        # Invalid, so that PyTorch raises its own error; or valid but empty, which no kernel of ours needs to serve.
        return by_torch()
    if unbatched:
        x = x.unsqueeze(0)
    op = "conv" if kind > 0 else "conv_transpose"
    choice = backends.choose(op, backend=asked, **tensor_facts(x, w.shape, geometry, kind < 0))
    if choice.backend == "torch":
        return by_torch()
    out = _call(op, x, w, b, geometry, act, negative_slope, asked)
    return out.squeeze(0) if unbatched else out


def _only_torch(asked: str, *tensors: Any) -> bool:
    """Whether this call is PyTorch's whatever its shapes: traced for a compiler or an export, or with foreign
    tensors.
    """
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return asked == "auto" or not torch.compiler.is_dynamo_compiling() or torch.compiler.is_exporting()
    if has_torch_function(tensors):
        return True
    if forward_ad._current_level >= 0:
        # Operators registered from Python drop tangents without a word, which would read as a derivative of 0.
        if asked != "auto":
            raise NotImplementedError(
                f"backend {asked!r} has no forward-mode derivative; backend 'auto' leaves it to PyTorch"
            )
        return True
    return False


def _call(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    act: str,
    negative_slope: float,
    asked: str,
) -> Tensor:
    """One operator call, with the activation inside wherever its derivative can be read off the output."""
    fused = act if activations.fusable(act, negative_slope) else "none"
    slope = float(negative_slope) if fused == "leaky_relu" else 0.01
    stride, pad_begin, dilation, groups, out_size = geometry
    out = OPERATORS[op](
        x, weight, bias, list(stride), list(pad_begin), list(dilation), groups, list(out_size), fused, slope,
        None, "none", 0.01, asked,
    )  # fmt: skip
    return out if fused == act else activations.apply(out, act, negative_slope)


def _tensors_fit(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """One dtype, one device, dense tensors: what our operators take. Anything else is PyTorch's to serve or refuse."""
    return (
        x.dtype == weight.dtype
        and x.device == weight.device
        and x.layout == weight.layout == torch.strided
        and x.dtype.is_floating_point
        and (bias is None or (bias.dtype == x.dtype and bias.device == x.device and bias.layout == torch.strided))
    )


def _autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the dtype that autocast gives PyTorch's convolutions; unchanged outside of autocast."""
    device = next(t.device.type for t in tensors if t is not None)
    if not autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)

    def cast(t: Tensor | None) -> Tensor | None:
        # As PyTorch has it: floating point tensors of this device, float64 left alone.
        eligible = t is not None and t.is_floating_point() and t.dtype != torch.float64 and t.device.type == device
        return t.to(dtype) if t is not None and eligible else t

    return tuple(cast(t) for t in tensors)


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
    return _geometry_form("conv", input, weight, bias, parameters, activation, negative_slope, backend)


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
    return _geometry_form("conv_transpose", input, weight, bias, parameters, activation, negative_slope, backend)


def _geometry_form(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    parameters: tuple[Size, Size, Size, Size, int],
    activation: str | None,
    negative_slope: float,
    backend: str | None,
) -> Tensor:
    act = activations.check(activation)
    asked = backends.requested(backend)
    x, w, b = _autocast(input, weight, bias)
    rank = x.dim() - 2
    transposed = op == "conv_transpose"
    names = ("stride", "pad_begin", "out_size", "dilation")
    values = [_ints(op, name, value, rank) for name, value in zip(names, parameters, strict=False)]
    geometry = Geometry(values[0], values[1], values[3], parameters[4], values[2])
    geometries.check(op, transposed, x.shape, w.shape, None if b is None else b.shape, geometry)
    if not _only_torch(asked, x, w, b) and x.shape[0] > 0:
        choice = backends.choose(op, backend=asked, **tensor_facts(x, w.shape, geometry, transposed))
        if choice.backend != "torch":
            return _call(op, x, w, b, geometry, act, negative_slope, asked)
    # The reference is PyTorch's own operations, traced and differentiated as such.
    stride, pad_begin, dilation, groups, out_size = geometry
    reference = OPERATORS[op].implementations["reference"]
    out = reference(x, w, b, stride, pad_begin, dilation, groups, out_size)
    return activations.apply(out, act, negative_slope)


def _ints(op: str, name: str, value: Size, rank: int) -> tuple[int, ...]:
    ints = geometries.as_ints(value, rank)
    if ints is None:
        raise ValueError(f"{op}: {name} must be an int or {rank} ints, got {value!r}")
    return ints


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
    ours = not _only_torch(asked, input, bias) and input.numel() > 0
    ours = ours and (bias is None or (bias.dtype, bias.device) == (input.dtype, input.device))
    if ours and activations.fusable(act, negative_slope):
        choice = backends.choose(
            "bias_act", backend=asked, device=input.device.type, dtype=input.dtype, elements=input.numel()
        )
        if choice.backend != "torch":
            return OPERATORS["bias_act"](input, bias, act, float(negative_slope), asked)
    x = input if bias is None else input + bias.view(-1, *[1] * (input.dim() - 2))
    return activations.apply(x, act, negative_slope)


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
    constant = None if isinstance(target, Tensor) else float(target)

    def by_torch() -> Tensor:
        t: Any = input.new_full((), constant).expand_as(input) if constant is not None else target
        return F.binary_cross_entropy_with_logits(input, t, weight, size_average, reduce, reduction, pos_weight)

    tensors = (input, None if constant is not None else target, weight, pos_weight)
    if not _bce_fits(tensors, size_average, reduce, reduction, asked):
        return by_torch()
    choice = backends.choose(
        "bce_with_logits", backend=asked, device=input.device.type, dtype=input.dtype, elements=input.numel()
    )
    if choice.backend == "torch":
        return by_torch()
    t = None if constant is not None else target
    loss, _ = OPERATORS["bce_with_logits"](input, t, constant or 0.0, weight, pos_weight, reduction, asked)
    return loss


def _bce_fits(
    tensors: tuple[Any, Any, Any, Any], size_average: bool | None, reduce: bool | None, reduction: str, asked: str
) -> bool:
    """Whether the operator takes this call; the rest, errors included, is PyTorch's."""
    input, target, weight, pos_weight = tensors
    if _only_torch(asked, *tensors) or (asked == "auto" and torch._C._are_functorch_transforms_active()):
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
        if factor.requires_grad or not _broadcasts(factor.shape, input.shape):
            return False
    return True


def _broadcasts(small: Sequence[int], large: Sequence[int]) -> bool:
    """Whether ``small`` broadcasts to exactly ``large``."""
    if len(small) > len(large):
        return False
    return all(s in (1, n) for s, n in zip(reversed(small), reversed(large), strict=False))
