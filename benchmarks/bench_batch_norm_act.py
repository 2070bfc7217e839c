"""gan_fast::batch_norm_act, batch normalisation and activation in one operator, against the two calls of PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from frame import PROVIDERS, measure
from torch import Tensor

from gan_fast import functional

#: Hidden layers of DCGAN at 28x28 and 64x64.
SIZES = [(128, 128, 14, 14), (128, 64, 28, 28), (128, 512, 4, 4), (128, 64, 32, 32)]
PLAIN = {"none": lambda x: x, "leaky_relu": lambda x: torch.nn.functional.leaky_relu(x, 0.2, inplace=True)}


def compare(benchmark: Any, size: tuple[int, ...], activation: str, mode: str, provider: str) -> None:
    """One tensor in channels_last, one activation (or none), training, in one mode."""
    fused = None if activation == "none" else activation

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.batch_norm(
            x, None, None, weight, bias, True, activation=fused, negative_slope=0.2, backend="cpu"
        )

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return PLAIN[activation](torch.nn.functional.batch_norm(x, None, None, weight, bias, True))

    x = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    tensors = [x, torch.linspace(0.5, 1.5, size[1]), torch.linspace(-1, 1, size[1])]
    call = ours if provider == "gan_fast" else plain
    name = f"batch_norm {activation} {'x'.join(map(str, size))}"
    measure(benchmark, name, mode, provider, call, plain, tensors, elements=x.numel())


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("mode", ["forward", "full"])
@pytest.mark.parametrize("activation", sorted(PLAIN))
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_batch_norm_act(benchmark: Any, size: tuple[int, ...], activation: str, mode: str, provider: str) -> None:
    """The forward pass, and both passes as a training step has them."""
    compare(benchmark, size, activation, mode, provider)
