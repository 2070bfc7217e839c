"""gan_fast::batch_norm_act_backward as Triton kernels: sums of slices, their sum, and one pass that makes the gradient
of the input. Three launches."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gan_fast.ops import _triton, activation, normalization, triton_rows
from gan_fast.ops.triton_common import act_backward, activate
from gan_fast.ops.triton_rows import BLOCK_CHANNELS, BLOCK_ROWS


@triton.jit
def _channel(
    weight, bias, mean, var, c, eps, C: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr
):  # fmt: skip
    """(mean, 1 / sqrt(var + eps), weight, bias) of the channels c."""
    m = tl.load(mean + c, mask=c < C, other=0.0).to(tl.float32)
    r = 1.0 / tl.sqrt_rn(tl.load(var + c, mask=c < C, other=1.0).to(tl.float32) + eps)
    w = tl.full(c.shape, 1.0, dtype=tl.float32)
    b = tl.zeros(c.shape, dtype=tl.float32)
    if HAS_WEIGHT:
        w = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    if HAS_BIAS:
        b = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
    return m, r, w, b


@triton.jit
def _gradient(g, x, offsets, mask, m, r, w, b, slope, ACT: tl.constexpr):
    """(g, h): the gradient that has passed the activation, and the normalised input."""
    gradient = tl.load(g + offsets, mask=mask, other=0.0).to(tl.float32)
    h = (tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32) - m[None, :]) * r[None, :]
    if ACT != 0:
        y = activate(h * w[None, :] + b[None, :], slope, ACT)
        gradient = act_backward(gradient, y, slope, ACT)
    return gradient, h


@triton.jit(do_not_specialize=["rows", "length", "eps", "slope"])
def slice_sums(
    g, x, weight, bias, mean, var, sums, products, rows, length, eps, slope,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, ACT: tl.constexpr, C: tl.constexpr, WIDE: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sums of g and of g h over a slice, for BC channels."""
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    pid = tl.program_id(0)
    piece = pid // BLOCKS
    c = (pid % BLOCKS) * BC + tl.arange(0, BC)
    m, r, w, b = _channel(weight, bias, mean, var, c, eps, C, HAS_WEIGHT, HAS_BIAS)
    begin = piece * length
    end = tl.minimum(begin + length, rows)
    by_bias = tl.zeros((BR, BC), dtype=tl.float32)
    by_weight = tl.zeros((BR, BC), dtype=tl.float32)
    for start in range(begin, end, BR):
        row = start + tl.arange(0, BR)
        mask = (row < end)[:, None] & (c < C)[None, :]
        if WIDE:
            row = row.to(tl.int64)
        gradient, h = _gradient(g, x, row[:, None] * C + c[None, :], mask, m, r, w, b, slope, ACT)
        by_bias += gradient
        by_weight += gradient * h
    tl.store(sums + piece * C + c, tl.sum(by_bias, axis=0), mask=c < C)
    tl.store(products + piece * C + c, tl.sum(by_weight, axis=0), mask=c < C)


@triton.jit(do_not_specialize=["count"])
def union_sums(sums, products, grad_bias, grad_weight, count, C: tl.constexpr, BC: tl.constexpr):
    """The slices' sums in order; the float32 results stay in the first slice's place."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    total = tl.zeros((BC,), dtype=tl.float32)
    product = tl.zeros((BC,), dtype=tl.float32)
    for piece in range(count):
        total += tl.load(sums + piece * C + c, mask=c < C, other=0.0)
        product += tl.load(products + piece * C + c, mask=c < C, other=0.0)
    tl.store(grad_bias + c, total.to(grad_bias.dtype.element_ty), mask=c < C)
    tl.store(grad_weight + c, product.to(grad_weight.dtype.element_ty), mask=c < C)
    tl.store(sums + c, total, mask=c < C)
    tl.store(products + c, product, mask=c < C)


@triton.jit(do_not_specialize=["rows", "eps", "slope"])
def input_gradient(
    g, x, weight, bias, mean, var, sums, products, grad_input, rows, eps, slope,
    TRAINING: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, ACT: tl.constexpr, C: tl.constexpr,
    WIDE: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """weight r (g - mean(g) - h mean(g h)) in training, weight r g in evaluation."""
    BLOCKS: tl.constexpr = (C + BC - 1) // BC
    pid = tl.program_id(0)
    c = (pid % BLOCKS) * BC + tl.arange(0, BC)
    row = (pid // BLOCKS) * BR + tl.arange(0, BR)
    m, r, w, b = _channel(weight, bias, mean, var, c, eps, C, HAS_WEIGHT, HAS_BIAS)
    mask = (row < rows)[:, None] & (c < C)[None, :]
    if WIDE:
        row = row.to(tl.int64)
    offsets = row[:, None] * C + c[None, :]
    gradient, h = _gradient(g, x, offsets, mask, m, r, w, b, slope, ACT)
    if TRAINING:
        part = 1.0 / rows
        total = tl.load(sums + c, mask=c < C, other=0.0) * part
        product = tl.load(products + c, mask=c < C, other=0.0) * part
        gradient = gradient - total[None, :] - h * product[None, :]
    value = gradient * (w * r)[None, :]
    tl.store(grad_input + offsets, value.to(grad_input.dtype.element_ty), mask=mask)


def batch_norm_act_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Same arguments as the reference; float32, bfloat16 or float16."""
    channels = input.shape[1]
    rows = input.numel() // channels
    cut = triton_rows.slices(rows, channels)
    sums, products = (input.new_empty((cut.number, channels), dtype=torch.float32) for _ in range(2))
    parameters = normalization.parameter_dtype(input, weight, bias)
    grad_weight, grad_bias = (input.new_empty(channels, dtype=parameters) for _ in range(2))
    grad_input = triton_rows.empty_rows(input)
    x = triton_rows.to_rows(input)
    common: dict[str, Any] = {
        "g": triton_rows.to_rows(grad_output), "x": x, "weight": None if weight is None else weight.contiguous(),
        "bias": None if bias is None else bias.contiguous(), "mean": mean.contiguous(), "var": var.contiguous(),
        "sums": sums, "products": products, "rows": rows, "eps": float(eps), "slope": float(slope),
    }  # fmt: skip
    constants: dict[str, Any] = {
        "HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None, "ACT": activation.CODES[act], "C": channels,
        "WIDE": _triton.wide(x), "BR": BLOCK_ROWS, "BC": BLOCK_CHANNELS,
    }  # fmt: skip
    _triton.launch(
        slice_sums, cut.number * cut.channel_blocks, x.device, {**common, "length": cut.length}, constants, 4, 1
    )
    _triton.launch(
        union_sums, cut.channel_blocks, x.device,
        {"sums": sums, "products": products, "grad_bias": grad_bias, "grad_weight": grad_weight, "count": cut.number},
        {"C": channels, "BC": BLOCK_CHANNELS}, 2, 1,
    )  # fmt: skip
    _triton.launch(
        input_gradient, _triton.ceil_div(rows, BLOCK_ROWS) * cut.channel_blocks, x.device,
        {**common, "grad_input": grad_input}, {"TRAINING": training, **constants}, 4, 1,
    )  # fmt: skip
    return triton_rows.from_rows(grad_input, input), grad_weight, grad_bias
