"""gan_fast::bce_with_logits on the CUDA kernel ``_cuda.bce_with_logits`` (csrc/cuda/bce_with_logits*): one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import _cuda, _kernels, layout

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
    """Same arguments as the reference; float32, bfloat16 or float16."""
    elements = input.numel()
    grad = torch.empty_like(input)
    loss = torch.empty_like(input) if reduction == "none" else input.new_empty(())
    if elements == 0:
        # As PyTorch: the mean of nothing is NaN, its sum 0.
        return loss.fill_(float("nan") if reduction == "mean" else 0.0), grad
    x = layout.like(input, grad)
    t, w, p = (None if tensor is None else layout.like(tensor, grad) for tensor in (target, weight, pos_weight))
    partial = counter = None
    module = backends.cuda_extension()
    blocks = 1 if module is None else module.bce_blocks(elements)
    if reduction != "none" and blocks > 1:
        partial = torch.empty(blocks, dtype=torch.float64, device=input.device)
        counter = _cuda.counter(input.device)
    _cuda.call(
        "bce_with_logits",
        input.device,
        _cuda.storage(input.dtype),
        elements,
        _kernels.pointer(x),
        _kernels.pointer(t),
        target_value,
        _kernels.pointer(w),
        _kernels.pointer(p),
        _REDUCTION_CODES[reduction],
        _kernels.pointer(loss),
        _kernels.pointer(grad),
        _kernels.pointer(partial),
        _kernels.pointer(counter),
    )
    return loss, grad
