"""gan_fast::batch_norm_act_backward, the gradients of input, weight and bias, against PyTorch's two backward calls."""

from __future__ import annotations

from typing import Any

import pytest
from bench_batch_norm_act import PLAIN, SIZES, compare
from frame import PROVIDERS


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("activation", sorted(PLAIN))
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_batch_norm_act_backward(benchmark: Any, size: tuple[int, ...], activation: str, provider: str) -> None:
    """The backward pass on a graph recorded beforehand."""
    compare(benchmark, size, activation, "backward", provider)
