"""gan_fast::bce_with_logits as Triton kernels: value and gradient in one pass; for a mean or sum of more elements than
one program takes, a second launch adds up the programs' sums in order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gan_fast.ops import _triton, layout

_BLOCK, _WARPS = 1024, 4
#: A mean or sum of so many elements is one program's work, to save a launch; where it would pay no more is for a device
#: to say.
_ALONE, _ALONE_WARPS = 8192, 16


@triton.jit
def _softplus_of_minus(a):
    """log(1 + exp(-a)) for a >= 0: csrc/cpu/vec_math.h's polynomial; 1 + exp(-a) itself would round away from 17 on."""
    e = tl.exp(-a)
    t = e - 0.5
    p = t * -2.07990175e-3 + 4.30790428e-3
    p = p * t - 6.11014571e-3
    p = p * t + 9.79214348e-3
    p = p * t - 1.67553369e-2
    p = p * t + 2.89502516e-2
    p = p * t - 5.10853790e-2
    p = p * t + 9.32302400e-2
    p = p * t - 1.79224908e-1
    p = p * t + 3.78139555e-1
    return e - (e * e) * p


@triton.jit(do_not_specialize=["target_value", "elements", "scale", "loss_scale"])
def bce_kernel(
    x, target, weight, pos_weight, loss, grad, target_value, elements, scale, loss_scale,
    HAS_TARGET: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_POS_WEIGHT: tl.constexpr, REDUCE: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The operator's formulas, each side of 0 in the form in which nothing cancels. REDUCE: loss is one sum for each
    program, times loss_scale."""
    pid = tl.program_id(0)
    first = pid
    if WIDE:
        first = pid.to(tl.int64)
    e = first * BLOCK + tl.arange(0, BLOCK)
    mask = e < elements
    logit = tl.load(x + e, mask=mask, other=0.0).to(tl.float32)
    t = tl.zeros((BLOCK,), dtype=tl.float32) + target_value
    if HAS_TARGET:
        t = tl.load(target + e, mask=mask, other=0.0).to(tl.float32)
    p = tl.full((BLOCK,), 1.0, dtype=tl.float32)
    if HAS_POS_WEIGHT:
        p = tl.load(pos_weight + e, mask=mask, other=0.0).to(tl.float32)
    factor = 1.0 + (p - 1.0) * t  # of softplus(-x)
    a = tl.abs(logit)
    decay = tl.exp(-a)
    outer = decay / (1.0 + decay)  # sigmoid(-|x|)
    # x < 0: (1 - t) x + factor softplus(-x) = -p t x + factor log(1 + exp(x)), and likewise for the gradient.
    slope = tl.where(logit < 0, -p * t, 1.0 - t)
    value = slope * logit + factor * _softplus_of_minus(a)
    gradient = slope + tl.where(logit < 0, factor, -factor) * outer
    if HAS_WEIGHT:
        w = tl.load(weight + e, mask=mask, other=0.0).to(tl.float32)
        value *= w
        gradient *= w
    tl.store(grad + e, (gradient * scale).to(grad.dtype.element_ty), mask=mask)
    if REDUCE:
        total = tl.sum(tl.where(mask, value, 0.0), axis=0) * loss_scale
        tl.store(loss + pid, total.to(loss.dtype.element_ty))
    else:
        tl.store(loss + e, value.to(loss.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["parts", "scale"])
def total_kernel(partial, loss, parts, scale, BLOCK: tl.constexpr):
    """The sum of the programs' sums, by one program."""
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, parts, BLOCK):
        e = start + tl.arange(0, BLOCK)
        total += tl.load(partial + e, mask=e < parts, other=0.0)
    tl.store(loss, (tl.sum(total, axis=0) * scale).to(loss.dtype.element_ty))


def bce_with_logits(
    input: Tensor,
    target: Tensor | None,
    target_value: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Same arguments as the reference; float32, bfloat16 or float16."""
    elements = input.numel()
    grad = torch.empty_like(input)
    reduce = reduction != "none"
    loss = input.new_empty(()) if reduce else torch.empty_like(input)
    if elements == 0:
        # As PyTorch: the mean of nothing is NaN, its sum 0.
        return loss.fill_(float("nan") if reduction == "mean" else 0.0), grad
    scale = 1.0 / elements if reduction == "mean" else 1.0
    block, warps = (_ALONE, _ALONE_WARPS) if reduce and _BLOCK < elements <= _ALONE else (_BLOCK, _WARPS)
    programs = _triton.ceil_div(elements, block)
    in_parts = reduce and programs > 1
    parts = input.new_empty(programs, dtype=torch.float32) if in_parts else loss
    t, w, p = (None if tensor is None else layout.like(tensor, grad) for tensor in (target, weight, pos_weight))
    _triton.launch(
        bce_kernel,
        programs,
        input.device,
        {
            "x": layout.like(input, grad), "target": t, "weight": w, "pos_weight": p, "loss": parts, "grad": grad,
            "target_value": float(target_value), "elements": elements, "scale": scale,
            "loss_scale": 1.0 if in_parts else scale,
        },
        {
            "HAS_TARGET": t is not None, "HAS_WEIGHT": w is not None, "HAS_POS_WEIGHT": p is not None,
            "REDUCE": reduce, "WIDE": _triton.wide(input), "BLOCK": block,
        },
        warps,
        1,
    )  # fmt: skip
    if in_parts:
        arguments = {"partial": parts, "loss": loss, "parts": programs, "scale": scale}
        _triton.launch(total_kernel, 1, input.device, arguments, {"BLOCK": _BLOCK}, _WARPS, 1)
    return loss, grad
