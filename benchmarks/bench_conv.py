"""gan_fast::conv, the strided convolution with its gradients, against PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
from frame import MODES, PROVIDERS, chosen_shapes, convolution, convolution_tensors, measure

from gan_fast.suite.shapes import LayerShape


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", chosen_shapes("conv"), ids=lambda shape: shape.name)
def test_conv(benchmark: Any, shape: LayerShape, mode: str, provider: str) -> None:
    """One layer in one mode."""
    measure(
        benchmark, f"conv {shape.name}", mode, provider, convolution(shape, provider), convolution(shape, "torch"),
        convolution_tensors(shape), shape=shape.name, macs=shape.macs,
    )  # fmt: skip
