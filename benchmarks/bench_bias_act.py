"""gan_fast::bias_act, bias and activation in one pass, against the two calls of PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from frame import MODES, PROVIDERS, measure
from torch import Tensor

from gan_fast import functional

SIZES = [(128, 128, 14, 14), (64, 512, 4, 4), (64, 64, 1024)]
PLAIN = {"leaky_relu": lambda x: torch.nn.functional.leaky_relu(x, 0.2), "tanh": torch.tanh}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("activation", sorted(PLAIN))
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_bias_act(benchmark: Any, size: tuple[int, ...], activation: str, mode: str, provider: str) -> None:
    """One tensor and one activation in one mode."""

    def ours(x: Tensor, bias: Tensor) -> Tensor:
        return functional.bias_act(x, bias, activation=activation, negative_slope=0.2, backend="cpu")

    def plain(x: Tensor, bias: Tensor) -> Tensor:
        return PLAIN[activation](x + bias.view(1, -1, *(1,) * (x.dim() - 2)))

    tensors = [torch.randn(size, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, size[1])]
    call = ours if provider == "gan_fast" else plain
    name = f"bias_act {activation} {'x'.join(map(str, size))}"
    measure(benchmark, name, mode, provider, call, plain, tensors, elements=tensors[0].numel())
