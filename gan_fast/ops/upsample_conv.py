"""Nearest upsampling followed by a convolution, computed as one transposed convolution.

Along one axis, with factor s, kernel size k and padding p, the upsampled image is u[s * i + r] = x[i] for r in [0, s),
and zero outside. The convolution y[o] = sum over t of w[t] * u[o - p + t] therefore adds w[t] * x[i] to the outputs
o = s * i + r + p - t for every r. With T = r + k - 1 - t that is o = s * i - (k - 1 - p) + T: a transposed convolution
with stride s, ``pad_begin`` k - 1 - p and the kernel

    w'[T] = sum over r of w[k - 1 - (T - r)]        T in [0, s + k - 1)

Exact for every padding, borders included: where u is zero, there is no x[i]. For s = 2 and k = 3 the kernel has 4 taps:
w'= (w2, w1 + w2, w0 + w1, w0). On images each output takes 2x2 products instead of 3x3, and the upsampled image never
exists. The map w -> w' is linear and made of differentiable operations, so that the gradients of any order follow.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends, choice_table
from gan_fast.choice_table import Choice
from gan_fast.ops import dispatch, layout
from gan_fast.ops import geometry as geometries
from gan_fast.ops.geometry import Geometry

#: Up to this factor PyTorch's nearest upsampling repeats every element exactly that often; from 25 on its float32
#: arithmetic now and then takes an element once too often and its neighbour once too rarely.
LARGEST_FACTOR = 24

#: Elements of all the matrices that are kept. Beyond that a call makes its own; none is ever given up for another,
#: because a recorded graph goes on reading where it was.
MOST_KEPT = 2**20

Factor = float | Sequence[float]

#: What :func:`collapse` multiplies by, by device, dtype, kernel and factors.
_matrices: dict[tuple[torch.device, torch.dtype, tuple[int, ...], tuple[int, ...]], Tensor] = {}


def whole_factors(scale_factor: Factor, rank: int) -> tuple[int, ...] | None:
    """``scale_factor`` (one number, or one for each axis) as integers; None if it is not whole or out of range."""
    factors: Sequence[Any] = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,) * rank
    if len(factors) != rank:
        return None
    for factor in factors:
        known = isinstance(factor, (int, float)) and not isinstance(factor, bool)
        if not known or factor % 1 or not 1 <= factor <= LARGEST_FACTOR:
            return None
    return tuple(int(factor) for factor in factors)


def collapsed_geometry(
    input: Sequence[int],
    weight: Sequence[int],
    scale_factor: Factor,
    stride: object,
    padding: object,
    dilation: object,
    groups: int,
) -> Geometry | None:
    """The transposed convolution's geometry; None for what cannot be collapsed, what is out of the ordinary or wrong.

    input: shape (N, C, spatial...) before the upsampling; weight: shape (OC, C, kernel...); the others are the
    convolution's. To be collapsed it needs stride 1, dilation 1, one group, and whole factors up to LARGEST_FACTOR. A
    kernel of size 1 is not collapsed, for it would save nothing.
    """
    rank = len(weight) - 2
    factors = whole_factors(scale_factor, rank)
    if factors is None or max(factors) == 1 or len(input) != rank + 2 or max(weight[2:]) == 1:
        return None
    upsampled = (*input[:2], *(size * factor for size, factor in zip(input[2:], factors, strict=True)))
    conv = geometries.resolve_conv(upsampled, weight, stride, padding, dilation, groups)
    if conv is None or conv.groups != 1 or max(conv.stride) > 1 or max(conv.dilation) > 1:
        return None
    begin = tuple(kernel - 1 - pad for kernel, pad in zip(weight[2:], conv.pad_begin, strict=True))
    return Geometry(factors, begin, conv.dilation, 1, conv.out_size)


def collapsed_kernel(kernel: Sequence[int], factors: Sequence[int]) -> tuple[int, ...]:
    """Size of the transposed convolution's kernel."""
    return tuple(size + factor - 1 for size, factor in zip(kernel, factors, strict=True))


@lru_cache(maxsize=256)
def _sums(kernel: tuple[int, ...], factors: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """0/1 matrix (taps of the convolution, taps of the transposed one), both axes flattened into one."""

    def shares(old: int, new: int, size: int, factor: int) -> bool:
        return 0 <= new - (size - 1 - old) < factor

    axes = list(zip(kernel, factors, strict=True))
    new_taps = list(itertools.product(*(range(size + factor - 1) for size, factor in axes)))
    return tuple(
        tuple(
            float(all(shares(o, n, *axis) for o, n, axis in zip(old, new, axes, strict=True))) for new in new_taps
        )
        for old in itertools.product(*(range(size) for size in kernel))
    )  # fmt: skip


def collapse(weight: Tensor, factors: tuple[int, ...]) -> Tensor:
    """The transposed convolution's weight (C, OC, kernel + factors - 1) of a convolution's weight (OC, C, kernel)."""
    kernel = tuple(weight.shape[2:])
    if torch.compiler.is_compiling():  # the compiler traces no caches
        matrix = torch.tensor(_sums.__wrapped__(kernel, factors), dtype=weight.dtype, device=weight.device)
    else:
        matrix = _matrix(weight, kernel, factors)
    taps = weight.transpose(0, 1).contiguous().flatten(2) @ matrix
    return taps.unflatten(2, collapsed_kernel(kernel, factors))


def _matrix(weight: Tensor, kernel: tuple[int, ...], factors: tuple[int, ...]) -> Tensor:
    """:func:`_sums` as a tensor that goes with ``weight``; it is made once, since its way to a device is a copy that
    waits for it, which the recording of a CUDA graph does not allow."""
    if type(weight) not in (Tensor, torch.nn.Parameter):  # a fake tensor, or another subclass with a world of its own
        return torch.tensor(_sums(kernel, factors), dtype=weight.dtype, device=weight.device)
    key = (weight.device, weight.dtype, kernel, factors)
    found = _matrices.get(key)
    if found is None:
        with torch.inference_mode(False):  # else no later call could save it for its backward pass
            found = torch.tensor(_sums(kernel, factors), dtype=weight.dtype, device=weight.device)
        if type(found) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(found):
            if found.numel() + sum(matrix.numel() for matrix in _matrices.values()) <= MOST_KEPT:
                _matrices[key] = found
    return found


@lru_cache(maxsize=4096)
def plan(
    input: tuple[int, ...], weight: tuple[int, ...], parameters: tuple[Any, ...], asked: str
) -> tuple[Geometry, Choice] | None:
    """The transposed convolution's geometry and whether it shall be computed; None where there is none.

    Shapes as :func:`collapsed_geometry` takes them; ``parameters``: scale_factor, stride, padding, dilation, groups.
    The choice's backend is "collapse" or "torch" (one after the other). Who computes the transposed convolution is
    chosen later, as for any other.
    """
    geometry = collapsed_geometry(input, weight, *parameters)
    if geometry is None:
        return None
    if asked == "reference":
        return geometry, Choice("torch", "the reference is one after the other")
    if asked != "auto":
        return geometry, Choice("collapse", "asked for by name")
    known: dict[str, Any] = geometries.facts(True, input, collapsed_shape(weight, geometry), geometry, False)
    return geometry, choice_table.look_up("upsample_conv", known, backends.instruction_level())


choice_table.on_change(plan.cache_clear)


def collapsed_shape(weight: Sequence[int], geometry: Geometry) -> tuple[int, ...]:
    """Of the transposed convolution's weight; ``weight`` is the shape of the convolution's."""
    return (weight[1], weight[0], *collapsed_kernel(weight[2:], geometry.stride))


def upsample_convolution(
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    parameters: tuple[Any, ...],
    activation: str | None,
    negative_slope: float,
    backend: str | None,
) -> Tensor:
    """The pair on ``rank`` spatial axes: collapsed where that wins, else one after the other.

    ``parameters``: scale_factor, stride, padding, dilation, groups.
    """
    asked = backends.requested(backend)
    unbatched = input.dim() == rank + 1
    x = input.unsqueeze(0) if unbatched else input
    foreign = dispatch.only_torch(asked, x, weight, bias)
    found = None if foreign else collapsing(rank, x, weight, bias, parameters, asked)
    if found is None:
        upsampled = F.interpolate(x, scale_factor=parameters[0], mode="nearest")
        out = dispatch.convolution(
            rank, upsampled, weight, bias, parameters[1:], activation, negative_slope, asked
        )  # fmt: skip
    else:
        stride, begin, dilation, groups, out_size = found[0]
        out = dispatch.geometry_form(
            "conv_transpose", *collapsed(x, weight, stride), bias, (stride, begin, out_size, dilation, groups),
            activation, negative_slope, asked,
        )  # fmt: skip
    return out.squeeze(0) if unbatched else out


def collapsed(x: Tensor, weight: Tensor, factors: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Input and weight of the transposed convolution."""
    if layout.is_channels_last(weight):
        # The output's format is then channels_last, as PyTorch has it; the collapsed weight no longer tells.
        x = layout.as_channels_last(x)
    return x, collapse(weight, factors)


def collapsing(
    rank: int, x: Tensor, weight: Tensor, bias: Tensor | None, parameters: tuple[Any, ...], asked: str
) -> tuple[Geometry, Choice] | None:
    """The transposed convolution's geometry, and why, if this call is to be collapsed."""
    x, weight, bias = dispatch.autocast(x, weight, bias)
    # What the automatic choice has figures for.
    measured = x.dtype in (torch.float32, torch.bfloat16) and x.device.type == "cpu"
    if weight.dim() != rank + 2 or not dispatch.tensors_fit(x, weight, bias) or (asked == "auto" and not measured):
        return None
    if bias is not None and bias.shape != weight.shape[:1]:  # PyTorch has the error
        return None
    form = tuple(tuple(p) if isinstance(p, list) else p for p in parameters)
    remembered = plan.__wrapped__ if torch.compiler.is_compiling() else plan  # the compiler traces no caches
    found = remembered(tuple(x.shape), tuple(weight.shape), form, asked)
    return found if found is not None and found[1].backend == "collapse" else None
