"""gan_fast::bce_with_logits, loss and gradient in one pass, against PyTorch's with a tensor of constant targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from frame import MODES, PROVIDERS, measure
from torch import Tensor

from gan_fast import functional

SIZES = [(128, 1), (16, 1, 30, 30), (64, 1, 256, 256)]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_bce_with_logits(benchmark: Any, size: tuple[int, ...], mode: str, provider: str) -> None:
    """The mean loss of one tensor of logits in one mode, all targets 1 as in the generator's step."""

    def ours(logits: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, 1.0, backend="cpu")

    def plain(logits: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))

    tensors = [torch.randn(size, generator=torch.Generator().manual_seed(0)) * 4]
    call = ours if provider == "gan_fast" else plain
    name = f"bce_with_logits {'x'.join(map(str, size))}"
    measure(benchmark, name, mode, provider, call, plain, tensors, elements=tensors[0].numel())
