"""gan_fast::bce_with_logits on the compiled kernel ``_C.bce_with_logits`` (csrc/cpu/bce_with_logits*)."""

from __future__ import annotations

from torch import Tensor


def bce_with_logits(
    input: Tensor,
    target: Tensor | None,
    target_value: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Same arguments as the reference; float32 or float64 on the CPU."""
    raise NotImplementedError
