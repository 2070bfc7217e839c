"""Which backend serves each pass of a convolution: what the table is asked, and whether the layer enters an operator.

A layer's passes are three operator calls (see :mod:`gan_fast.ops.convolution`), and each is chosen for itself: when it
runs, or with the first call like it (:mod:`gan_fast.ops.lane`). A call therefore enters our operator as soon as one of
the passes that will run is ours: the forward pass of a first layer may be PyTorch's while its weight gradient is not.
Where all of them are PyTorch's, the call is PyTorch's and pays for no operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gan_fast import backends, choice_table
from gan_fast.ops import geometry as geometries
from gan_fast.ops import layout, padding, rows
from gan_fast.ops.geometry import Geometry


class Wanted(NamedTuple):
    """Which gradients a call will be asked for."""

    input: bool
    weight: bool


class Formats(NamedTuple):
    """Whether a layer's input, the gradient of its output as the backward pass makes it, and its weight are
    channels_last."""

    input: bool
    grad: bool
    weight: bool


class Question(NamedTuple):
    """What is asked about a layer: the arguments of :func:`passes`."""

    transposed: bool
    input: tuple[int, ...]
    weight: tuple[int, ...]
    geometry: Geometry
    formats: Formats
    fused: bool


def wanted(input: Tensor, weight: Tensor) -> Wanted:
    """What a call on these tensors will be asked for, as far as anyone can tell before."""
    if not torch.is_grad_enabled():
        return Wanted(False, False)
    return Wanted(input.requires_grad, weight.requires_grad)


def formats(input: Tensor, weight: Tensor) -> Formats:
    """Of a call on these tensors."""
    input_last, weight_last = layout.is_channels_last(input), layout.is_channels_last(weight)
    return Formats(input_last, input_last or weight_last, weight_last)


def passes(
    transposed: bool, input: Sequence[int], weight: Sequence[int], geometry: Geometry, formats: Formats, fused: bool
) -> tuple[tuple[str, dict[str, Any]], ...]:
    """(operator, facts) of forward, input gradient and weight gradient.

    Args:
        transposed: conv_transpose rather than conv.
        input, weight: shapes (N, C, spatial...) and as the layer has it.
        geometry: the layer's.
        formats: of its tensors.
        fused: whether an activation is computed with it.
    """
    facts = {**geometries.facts(transposed, input, weight, geometry, formats.input), "fused": fused}
    forward = {**facts, "weight_last": formats.weight}
    swapped = {
        **forward,
        "in_channels": facts["out_channels"],
        "out_channels": facts["in_channels"],
        "in_pixels": facts["out_pixels"],
        "out_pixels": facts["in_pixels"],
        "channels_last": formats.grad,
    }
    ops = ("conv_transpose", "conv") if transposed else ("conv", "conv_transpose")
    return (ops[0], forward), (ops[1], swapped), ("conv_weight_grad", {**facts, "transposed": transposed})


def _is_torchs(op: str, facts: dict[str, Any], rank: int, device: str, dtype: torch.dtype) -> bool:
    """Whether an automatic choice leaves a pass to PyTorch."""
    return backends.choose(op, backend="auto", device=device, dtype=dtype, rank=rank, **facts).backend == "torch"


@lru_cache(maxsize=4096)
def enters(
    transposed: bool,
    input: tuple[int, ...],
    weight: tuple[int, ...],
    geometry: Geometry,
    formats: Formats,
    fused: bool,
    wanted: Wanted,
    device: str,
    dtype: torch.dtype,
    circumstances: tuple[object, ...],
) -> bool:
    """Whether an automatic choice has the call enter our operator; remembered, for training asks the same few hundred
    questions. ``circumstances``: what :func:`gan_fast.backends.circumstances` says.
    """
    needed = (True, *wanted)
    calls = passes(transposed, input, weight, geometry, formats, fused)
    return any(
        not _is_torchs(op, facts, len(input) - 2, device, dtype)
        for (op, facts), need in zip(calls, needed, strict=True)
        if need
    )


choice_table.on_change(enters.cache_clear)


class Left(NamedTuple):
    """Gradients that are left to PyTorch, and the arguments of ``aten::convolution_backward`` between the weight's
    bias sizes and the mask of what is wanted."""

    input: bool
    weight: bool
    parameters: tuple[Any, ...]


@lru_cache(maxsize=4096)
def left_to_torch(
    transposed: bool,
    input: tuple[int, ...],
    weight: tuple[int, ...],
    geometry: Geometry,
    formats: Formats,
    fused: bool,
    device: str,
    dtype: torch.dtype,
    circumstances: tuple[object, ...],
) -> Left | None:
    """Which gradients an automatic choice leaves to PyTorch, or None: then those are PyTorch's own backward pass.

    As calls of our operators they would be a forward convolution of PyTorch's, and one backward pass for each gradient,
    which in its layer are one. For single sounds that made the layer up to 1.5 times as slow as PyTorch's.
    """
    stride, pad_begin, dilation, groups, out_size = geometry
    kernel, rank = weight[2:], len(input) - 2
    if rows.is_product(input, out_size, kernel, stride, pad_begin, groups):
        return None
    sizes = input[2:], kernel, stride, pad_begin, dilation, out_size
    if transposed:
        pads, extra = padding.output_padding(*sizes)
    else:
        pads, widths = padding.input_padding(*sizes)
        extra = [0] * rank if widths is None else None
    if extra is None:
        return None
    calls = passes(transposed, input, weight, geometry, formats, fused)[1:]
    of_input, of_weight = (_is_torchs(op, facts, rank, device, dtype) for op, facts in calls)
    if not (of_input or of_weight):
        return None
    return Left(of_input, of_weight, (list(stride), pads, list(dilation), transposed, extra, groups))


choice_table.on_change(left_to_torch.cache_clear)
