"""gan_fast::act_grad, the gradient through an activation by its output, against PyTorch's own backward functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from frame import PROVIDERS, measure
from torch import Tensor

import gan_fast.ops  # noqa: F401  # registers torch.ops.gan_fast

SIZES = [(128, 128, 14, 14), (64, 512, 4, 4)]
PLAIN = {
    "leaky_relu": lambda g, y: torch.where(y > 0, g, 0.2 * g),
    "tanh": lambda g, y: torch.ops.aten.tanh_backward(g, y),
    "sigmoid": lambda g, y: torch.ops.aten.sigmoid_backward(g, y),
}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("activation", sorted(PLAIN))
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_act_grad(benchmark: Any, size: tuple[int, ...], activation: str, provider: str) -> None:
    """One tensor and one activation; as a part of other operators' backward passes it has only a forward here."""

    def ours(g: Tensor, y: Tensor) -> Tensor:
        return torch.ops.gan_fast.act_grad(g, y, activation, 0.2, "cpu")

    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator), torch.rand(size, generator=generator) * 1.8 - 0.9]
    call = ours if provider == "gan_fast" else PLAIN[activation]
    name = f"act_grad {activation} {'x'.join(map(str, size))}"
    measure(
        benchmark, name, "forward", provider, call, PLAIN[activation], tensors, wanted=(0,), elements=tensors[0].numel()
    )
