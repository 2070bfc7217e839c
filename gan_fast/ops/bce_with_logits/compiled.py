"""What the compiled kernels of bce_with_logits, the CPU's and CUDA's, are given alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gan_fast.ops import _kernels, layout

#: reduction -> its code in the kernels' signatures.
_REDUCTION_CODES = {"none": 0, "mean": 1, "sum": 2}


def arguments(
    input: Tensor,
    target: Tensor | None,
    target_value: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
    loss: Tensor,
    grad: Tensor,
) -> tuple[tuple[Any, ...], list[Tensor | None]]:
    """(the arguments after dtype and number of elements, tensors that must outlive the call); all are laid out as
    ``grad`` is."""
    x, t, w, p = (
        None if tensor is None else layout.like(tensor, grad) for tensor in (input, target, weight, pos_weight)
    )
    pointers = (
        _kernels.pointer(x),
        _kernels.pointer(t),
        target_value,
        _kernels.pointer(w),
        _kernels.pointer(p),
        _REDUCTION_CODES[reduction],
        _kernels.pointer(loss),
        _kernels.pointer(grad),
    )
    return pointers, [x, t, w, p]
