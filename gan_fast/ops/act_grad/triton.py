"""gan_fast::act_grad as a Triton kernel: one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gan_fast.ops import _triton, activation, layout
from gan_fast.ops.triton_common import act_backward

_BLOCK = 1024


@triton.jit(do_not_specialize=["elements", "slope"])
def act_grad_kernel(
    g, y, out, elements, slope, ACT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out = g * act'(y), element by element in memory."""
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    e = pid * BLOCK + tl.arange(0, BLOCK)
    mask = e < elements
    gradient = tl.load(g + e, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(y + e, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + e, act_backward(gradient, value, slope, ACT).to(out.dtype.element_ty), mask=mask)


def act_grad(grad_output: Tensor, y: Tensor, act: str, slope: float) -> Tensor:
    """Same arguments as the reference; float32, bfloat16 or float16."""
    out = torch.empty_like(y)  # dense, in y's order of axes if y is dense itself
    if out.numel():
        _triton.launch(
            act_grad_kernel,
            _triton.ceil_div(out.numel(), _BLOCK),
            out.device,
            {
                "g": layout.like(grad_output, out), "y": layout.like(y, out), "out": out, "elements": out.numel(),
                "slope": float(slope),
            },
            {"ACT": activation.CODES[act], "WIDE": _triton.wide(out), "BLOCK": _BLOCK},
            4,
            1,
        )  # fmt: skip
    return out
