"""gan_fast::bce_with_logits on the compiled kernel ``_C.bce_with_logits`` (csrc/cpu/bce_with_logits*)."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_fast.ops import _kernels, layout, memory

#: reduction -> its code in the kernel's signature.
_REDUCTION_CODES = {"none": 0, "mean": 1, "sum": 2}


def bce_with_logits(
    input: Tensor,
    target: Tensor | None,
    target_value: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Same arguments as the reference; float32, bfloat16 or float64 on the CPU."""
    grad = memory.empty_like(input)
    x = layout.like(input, grad)
    loss = memory.empty_like(input) if reduction == "none" else input.new_empty(())
    t, w, p = (None if tensor is None else layout.like(tensor, grad) for tensor in (target, weight, pos_weight))
    _kernels.module().bce_with_logits(
        _kernels.DTYPE_CODES[input.dtype],
        input.numel(),
        _kernels.pointer(x),
        _kernels.pointer(t),
        target_value,
        _kernels.pointer(w),
        _kernels.pointer(p),
        _REDUCTION_CODES[reduction],
        _kernels.pointer(loss),
        _kernels.pointer(grad),
        torch.get_num_threads(),
    )
    return loss, grad
