"""gan_fast::bias_act in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_fast.ops import activation


def bias_act(input: Tensor, bias: Tensor | None, act: str, slope: float) -> Tensor:
    """act(input + bias), in input's memory order; never an alias of input."""
    x = input if bias is None else input + bias.view(-1, *[1] * (input.dim() - 2))
    return torch.empty_like(input).copy_(activation.apply(x, act, slope))
