"""gan_fast::bias_act as a Triton kernel: one pass."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from gan_fast.ops import _triton, activation, layout
from gan_fast.ops.triton_common import activate

_BLOCK = 1024


@triton.jit(do_not_specialize=["elements", "channels", "inner", "slope"])
def bias_act_kernel(
    x, bias, y, elements, channels, inner, slope,
    HAS_BIAS: tl.constexpr, ACT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = act(x + bias); of element e the channel is (e / inner) mod channels."""
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    e = pid * BLOCK + tl.arange(0, BLOCK)
    mask = e < elements
    value = tl.load(x + e, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + (e // inner) % channels, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + e, activate(value, slope, ACT).to(y.dtype.element_ty), mask=mask)


def bias_act(input: Tensor, bias: Tensor | None, act: str, slope: float) -> Tensor:
    """Same arguments as the reference; float32, bfloat16 or float16."""
    last = layout.is_channels_last(input)
    x = input.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    y = torch.empty_like(x)
    if y.numel():
        _triton.launch(
            bias_act_kernel,
            _triton.ceil_div(x.numel(), _BLOCK),
            x.device,
            {
                "x": x, "bias": None if bias is None else bias.contiguous(), "y": y, "elements": x.numel(),
                "channels": x.shape[1], "inner": 1 if last else math.prod(x.shape[2:]), "slope": float(slope),
            },
            {
                "HAS_BIAS": bias is not None, "ACT": activation.CODES[act], "WIDE": _triton.wide(x), "BLOCK": _BLOCK,
            },
            4,
            1,
        )  # fmt: skip
    pattern = torch.empty_like(input)  # PyTorch's rule for the strides of an elementwise result
    return y if y.stride() == pattern.stride() else pattern.copy_(y)
