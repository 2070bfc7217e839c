"""gan_fast::act_grad in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_fast.ops import activation


def act_grad(grad_output: Tensor, y: Tensor, act: str, slope: float) -> Tensor:
    """grad_output * act'(y) in y's memory order; never an alias of grad_output."""
    return torch.empty_like(y).copy_(activation.grad(grad_output, y, act, slope))
