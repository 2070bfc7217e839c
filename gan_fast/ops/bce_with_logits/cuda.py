"""gan_fast::bce_with_logits on the CUDA kernel ``_cuda.bce_with_logits`` (csrc/cuda/bce_with_logits*): one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import _cuda, _kernels
from gan_fast.ops.bce_with_logits import compiled


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
    loss = torch.empty_like(input) if reduction == "none" else input.new_empty(())
    if elements == 0:
        # As PyTorch: the mean of nothing is NaN, its sum 0.
        return loss.fill_(float("nan") if reduction == "mean" else 0.0), grad
    partial = counter = None
    module = backends.cuda_extension()
    blocks = 1 if module is None else module.bce_blocks(elements)
    if reduction != "none" and blocks > 1:
        partial = torch.empty(blocks, dtype=torch.float64, device=input.device)
        counter = _cuda.counter(input.device)
    pointers, _held = compiled.arguments(input, target, target_value, weight, pos_weight, reduction, loss, grad)
    _cuda.call(
        "bce_with_logits",
        input.device,
        _cuda.storage(input.dtype),
        elements,
        *pointers,
        _kernels.pointer(partial),
        _kernels.pointer(counter),
    )
    return loss, grad
