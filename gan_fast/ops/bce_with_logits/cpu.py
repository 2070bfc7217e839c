"""gan_fast::bce_with_logits on the compiled kernel ``_C.bce_with_logits`` (csrc/cpu/bce_with_logits*)."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_fast.ops import _kernels, memory
from gan_fast.ops.bce_with_logits import compiled


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
    loss = memory.empty_like(input) if reduction == "none" else input.new_empty(())
    pointers, _held = compiled.arguments(input, target, target_value, weight, pos_weight, reduction, loss, grad)
    _kernels.module().bce_with_logits(
        _kernels.DTYPE_CODES[input.dtype], input.numel(), *pointers, torch.get_num_threads()
    )
    return loss, grad
