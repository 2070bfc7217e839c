"""gan_fast::batch_norm_act as Triton kernels: statistics of slices, their union, and one pass that normalises and
activates. Three launches in training, one in evaluation."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gan_fast.ops import _triton, activation, triton_rows
from gan_fast.ops.triton_common import activate
from gan_fast.ops.triton_rows import BLOCK_CHANNELS, BLOCK_ROWS


@triton.jit(do_not_specialize=["rows", "length"])
def slice_statistics(
    x, means, squares, rows, length, C: tl.constexpr, WIDE: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """Mean and sum of squared deviations of a slice, for BC channels. Each of the BR lanes keeps its own running mean
    (Welford): sums of squares would cancel where the mean is far from 0."""
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    pid = tl.program_id(0)
    piece = pid // BLOCKS
    c = (pid % BLOCKS) * BC + tl.arange(0, BC)
    lane = tl.arange(0, BR)
    begin = piece * length
    end = tl.minimum(begin + length, rows)
    mean = tl.zeros((BR, BC), dtype=tl.float32)
    square = tl.zeros((BR, BC), dtype=tl.float32)
    seen = 0.0
    for start in range(begin, end, BR):
        r = start + lane
        mask = (r < end)[:, None] & (c < C)[None, :]
        if WIDE:
            r = r.to(tl.int64)
        value = tl.load(x + r[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
        seen += 1.0
        step = tl.where(mask, value - mean, 0.0)
        mean += step / seen
        square += step * tl.where(mask, value - mean, 0.0)
    count = (end - begin - lane + BR - 1) // BR  # rows that a lane has seen
    count = tl.maximum(count, 0).to(tl.float32)[:, None]
    total = tl.maximum(end - begin, 1).to(tl.float32)
    whole = tl.sum(mean * count, axis=0) / total
    apart = mean - whole[None, :]
    tl.store(means + piece * C + c, whole, mask=c < C)
    tl.store(squares + piece * C + c, tl.sum(square + apart * apart * count, axis=0), mask=c < C)


@triton.jit(do_not_specialize=["rows", "length", "count"])
def union_statistics(means, squares, mean, var, rows, length, count, C: tl.constexpr, BC: tl.constexpr):
    """The slices' statistics united in order, in float64."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    average = tl.zeros((BC,), dtype=tl.float64)
    square = tl.zeros((BC,), dtype=tl.float64)
    for piece in range(count):
        before = (piece * length).to(tl.float64)
        here = (tl.minimum(length, rows - piece * length)).to(tl.float64)
        m = tl.load(means + piece * C + c, mask=c < C, other=0.0).to(tl.float64)
        s = tl.load(squares + piece * C + c, mask=c < C, other=0.0).to(tl.float64)
        apart = m - average
        average += apart * (here / (before + here))
        square += s + apart * apart * (before * here / (before + here))
    tl.store(mean + c, average, mask=c < C)
    tl.store(var + c, square / (rows * 1.0), mask=c < C)


@triton.jit(do_not_specialize=["rows", "eps", "slope"])
def normalise(
    x, weight, bias, mean, var, y, rows, eps, slope,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, ACT: tl.constexpr, C: tl.constexpr, WIDE: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y = act((x - mean) / sqrt(var + eps) * weight + bias), BR rows of BC channels."""
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    pid = tl.program_id(0)
    c = (pid % BLOCKS) * BC + tl.arange(0, BC)
    r = (pid // BLOCKS) * BR + tl.arange(0, BR)
    mask = (r < rows)[:, None] & (c < C)[None, :]
    if WIDE:
        r = r.to(tl.int64)
    m = tl.load(mean + c, mask=c < C, other=0.0).to(tl.float32)
    factor = 1.0 / tl.sqrt_rn(tl.load(var + c, mask=c < C, other=1.0).to(tl.float32) + eps)
    if HAS_WEIGHT:
        factor *= tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    offsets = r[:, None] * C + c[None, :]
    z = (tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) - m[None, :]) * factor[None, :]
    if HAS_BIAS:
        z += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    tl.store(y + offsets, activate(z, slope, ACT).to(y.dtype.element_ty), mask=mask)


def batch_norm_act(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Same arguments as the reference; float32, bfloat16 or float16."""
    channels = input.shape[1]
    rows = input.numel() // channels
    x = triton_rows.to_rows(input)
    constants = {"C": channels, "WIDE": _triton.wide(x), "BR": BLOCK_ROWS, "BC": BLOCK_CHANNELS}
    if mean is None or var is None:
        found = [input.new_empty(channels, dtype=torch.float64) for _ in range(2)]
        cut = triton_rows.slices(rows, channels)
        parts = [input.new_empty((cut.number, channels), dtype=torch.float32) for _ in range(2)]
        common = {"means": parts[0], "squares": parts[1], "rows": rows, "length": cut.length}
        _triton.launch(
            slice_statistics, cut.number * cut.channel_blocks, x.device, {"x": x, **common}, constants, 4, 1
        )  # fmt: skip
        _triton.launch(
            union_statistics, cut.channel_blocks, x.device,
            {"mean": found[0], "var": found[1], "count": cut.number, **common},
            {"C": channels, "BC": BLOCK_CHANNELS}, 2, 1,
        )  # fmt: skip
    else:
        found = [t.to(torch.float64, copy=True).contiguous() for t in (mean, var)]
    y = triton_rows.empty_rows(input)
    _triton.launch(
        normalise,
        _triton.ceil_div(rows, BLOCK_ROWS) * _triton.ceil_div(channels, BLOCK_CHANNELS),
        x.device,
        {
            "x": x, "weight": None if weight is None else weight.contiguous(),
            "bias": None if bias is None else bias.contiguous(), "mean": found[0], "var": found[1], "y": y,
            "rows": rows, "eps": float(eps), "slope": float(slope),
        },
        {
            "HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None, "ACT": activation.CODES[act], **constants,
        },
        4,
        1,
    )  # fmt: skip
    return triton_rows.from_rows(y, input), found[0], found[1]
