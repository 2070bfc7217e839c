"""The geometry of a convolution, in one form for all operators, backends and passes.

``stride, pad_begin, dilation, groups, out_size`` say everything: along each axis output o and tap k of a convolution
read input ``o * stride - pad_begin + k * dilation`` where that lies inside, else 0. The padding at the end follows
from out_size and may be negative (input that no output reads). A transposed convolution is the same relation with the
roles swapped: input i adds to output ``i * stride - pad_begin + k * dilation`` where that lies inside.

Tuples have one entry for each spatial axis; tensors are (N, C, spatial...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

_INT: Any = (int, torch.SymInt)  # symbolic sizes too: an export with a dynamic image size computes with them


class Geometry(NamedTuple):
    """What an operator needs beside its tensors; in the order of the operators' schemas."""

    stride: tuple[int, ...]
    pad_begin: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    out_size: tuple[int, ...]


def as_ints(value: object, rank: int) -> tuple[int, ...] | None:
    """``value`` (an int, or a sequence of 1 or ``rank`` ints) as ``rank`` ints; None if it is neither."""
    if isinstance(value, _INT) and not isinstance(value, bool):
        return (value,) * rank
    if not isinstance(value, (tuple, list)) or len(value) not in (1, rank):
        return None
    for item in value:
        if not isinstance(item, _INT) or isinstance(item, bool):
            return None
    return tuple(value) * (rank // len(value)) if len(value) == 1 else tuple(value)


def extent(kernel: int, dilation: int) -> int:
    """Input positions that one output spans."""
    return dilation * (kernel - 1) + 1


def pad_end(size: int, kernel: int, stride: int, begin: int, dilation: int, out: int) -> int:
    """End padding of the convolution size -> out; for a transposed one swap size and out. Negative: a crop."""
    return (out - 1) * stride + extent(kernel, dilation) - size - begin


def _channels_fit(input: Sequence[int], weight: Sequence[int], groups: int, transposed: bool) -> bool:
    if groups < 1 or min(input) < 1 or min(weight) < 1 or weight[0] % groups:
        return False
    return input[1] == (weight[0] if transposed else weight[1] * groups)


def _resolve_common(rank: int, stride: object, dilation: object) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    strides, dilations = as_ints(stride, rank), as_ints(dilation, rank)
    if strides is None or dilations is None or min(strides) < 1 or min(dilations) < 1:
        return None
    return strides, dilations


def resolve_conv(
    input: Sequence[int],
    weight: Sequence[int],
    stride: object,
    padding: object,
    dilation: object,
    groups: int,
) -> Geometry | None:
    """torch.nn.functional.conv{1,2,3}d's arguments as a geometry.

    ``input``: shape (N, C, spatial...); ``weight``: shape (OC, C / groups, kernel...). None for anything out of the
    ordinary (wrong shapes or values, empty tensors): the caller then lets PyTorch serve or refuse it.
    """
    rank = len(weight) - 2
    if len(input) != rank + 2 or not _channels_fit(input, weight, groups, transposed=False):
        return None
    common = _resolve_common(rank, stride, dilation)
    if common is None:
        return None
    strides, dilations = common
    spans = [extent(k, d) for k, d in zip(weight[2:], dilations, strict=True)]
    if isinstance(padding, str):
        if padding == "valid":
            begins, totals = (0,) * rank, [0] * rank
        elif padding == "same" and max(strides) == 1:
            totals = [span - 1 for span in spans]
            begins = tuple(total // 2 for total in totals)
        else:
            return None
    else:
        pads = as_ints(padding, rank)
        if pads is None or min(pads) < 0:
            return None
        begins, totals = pads, [2 * p for p in pads]
    out = tuple(
        (size + total - span) // s + 1 for size, total, span, s in zip(input[2:], totals, spans, strides, strict=True)
    )
    if min(out) < 1:
        return None
    return Geometry(strides, begins, dilations, groups, out)


def resolve_conv_transpose(
    input: Sequence[int],
    weight: Sequence[int],
    stride: object,
    padding: object,
    output_padding: object,
    groups: int,
    dilation: object,
) -> Geometry | None:
    """torch.nn.functional.conv_transpose{1,2,3}d's arguments as a geometry; None as in :func:`resolve_conv`.

    ``weight``: shape (C, OC / groups, kernel...).
    """
    rank = len(weight) - 2
    if len(input) != rank + 2 or not _channels_fit(input, weight, groups, transposed=True):
        return None
    common = _resolve_common(rank, stride, dilation)
    pads, extra = as_ints(padding, rank), as_ints(output_padding, rank)
    if common is None or pads is None or extra is None or min(pads) < 0 or min(extra) < 0:
        return None
    strides, dilations = common
    if any(e >= s and e >= d for e, s, d in zip(extra, strides, dilations, strict=True)):
        return None
    out = tuple(
        (size - 1) * s - 2 * p + extent(k, d) + e
        for size, k, s, p, d, e in zip(input[2:], weight[2:], strides, pads, dilations, extra, strict=True)
    )
    if min(out) < 1:
        return None
    return Geometry(strides, pads, dilations, groups, out)


def same_keras(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(pad_begin, out_size) of Keras' padding="same": out = ceil(size / stride); of an odd total the end gets more."""
    out = tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
    begin = tuple(
        max((o - 1) * s + extent(k, d) - n, 0) // 2
        for n, k, s, d, o in zip(size, kernel, stride, dilation, out, strict=True)
    )
    return begin, out


def same_keras_transpose(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(pad_begin, out_size) of Keras' Conv2DTranspose(padding="same"): out = size * stride, the adjoint of "same"."""
    out = tuple(n * s for n, s in zip(size, stride, strict=True))
    begin, _ = same_keras(out, kernel, stride, dilation)
    return begin, out


def check(
    op: str,
    transposed: bool,
    input: Sequence[int],
    weight: Sequence[int],
    bias: Sequence[int] | None,
    geometry: Geometry,
) -> None:
    """ValueError, naming argument, value and expectation, unless the shapes and the geometry fit each other."""
    rank = len(input) - 2
    if rank not in (1, 2, 3):
        raise ValueError(f"{op}: input must be (N, C, spatial...) with 1 to 3 spatial axes, got shape {tuple(input)}")
    if len(weight) != rank + 2:
        raise ValueError(f"{op}: weight must have {rank + 2} axes like input, got shape {tuple(weight)}")
    for name in ("stride", "pad_begin", "dilation", "out_size"):
        value = getattr(geometry, name)
        if len(value) != rank:
            raise ValueError(f"{op}: {name} must have {rank} entries for a {rank}-D convolution, got {list(value)}")
        if name != "pad_begin" and min(value) < 1:
            raise ValueError(f"{op}: {name} must be positive, got {list(value)}")
    groups = geometry.groups
    if groups < 1:
        raise ValueError(f"{op}: groups must be positive, got {groups}")
    if min(weight) < 1 or min(input[1:]) < 1:
        raise ValueError(
            f"{op}: channels and sizes must be positive, got input {tuple(input)} and weight {tuple(weight)}"
        )
    if weight[0] % groups:
        raise ValueError(f"{op}: weight.size(0)={weight[0]} is not divisible by groups={groups}")
    expected = weight[0] if transposed else weight[1] * groups
    if input[1] != expected:
        raise ValueError(
            f"{op}: input must have {expected} channels for weight {tuple(weight)} and groups={groups}, "
            f"got {input[1]} in {tuple(input)}"
        )
    if bias is not None:
        channels = out_channels(weight, groups, transposed)
        if len(bias) != 1 or bias[0] != channels:
            raise ValueError(f"{op}: bias must have shape ({channels},), got {tuple(bias)}")


def out_channels(weight: Sequence[int], groups: int, transposed: bool) -> int:
    """Channels of the output."""
    return weight[1] * groups if transposed else weight[0]


def facts(
    transposed: bool, input: Sequence[int], weight: Sequence[int], geometry: Geometry, channels_last: bool
) -> dict[str, object]:
    """What the table of automatic choices may ask about a convolution (see backends_table.json)."""
    groups = geometry.groups
    kernel = math.prod(weight[2:])
    # Products: every input (transposed) or output (not) position meets every tap once.
    positions = input[0] * math.prod(input[2:] if transposed else geometry.out_size)
    macs = positions * kernel * weight[0] * weight[1]
    inner, outer = weight[0] // groups, weight[1]
    return {
        "mflop": 2e-6 * macs,
        "groups": groups,
        "in_channels": inner if transposed else outer,
        "out_channels": outer if transposed else inner,
        "narrow": min(inner, outer),
        "mweights": 1e-6 * kernel * inner * outer,
        "kernel": kernel,
        "positions": positions,
        "in_pixels": math.prod(input[2:]),
        "out_pixels": math.prod(geometry.out_size),
        "stride": max(geometry.stride),
        "dilation": max(geometry.dilation),
        "batch": input[0],
        "channels_last": channels_last,
    }


def kernel_code(
    input: Sequence[int], output: Sequence[int], kernel: Sequence[int], geometry: Geometry
) -> tuple[int, ...]:
    """The 16 integers that the compiled kernels take: N, IC, IH, IW, OC, OH, OW, KH, KW, SH, SW, PH, PW, DH, DW,
    groups.

    1-D convolutions are passed with height 1. ``input`` and ``output``: shapes of the forward operation's tensors.
    """

    def two(values: Sequence[int], fill: int) -> tuple[int, ...]:
        return (fill, *values) if len(values) == 1 else tuple(values)

    return (
        input[0],
        input[1],
        *two(input[2:], 1),
        output[1],
        *two(output[2:], 1),
        *two(kernel, 1),
        *two(geometry.stride, 1),
        *two(geometry.pad_begin, 0),
        *two(geometry.dilation, 1),
        geometry.groups,
    )
