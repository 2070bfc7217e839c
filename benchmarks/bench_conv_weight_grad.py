"""gan_fast::conv_weight_grad, the gradient of a convolution's weight and bias alone, against PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
from frame import PROVIDERS, chosen_shapes, convolution, convolution_tensors, measure

from gan_fast.suite.shapes import LayerShape


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    "shape", [*chosen_shapes("conv"), *chosen_shapes("conv_transpose")], ids=lambda shape: shape.name
)
def test_conv_weight_grad(benchmark: Any, shape: LayerShape, provider: str) -> None:
    """One layer; it has no forward of its own: what is timed is a backward pass that wants no gradient of the input."""
    measure(
        benchmark, f"conv_weight_grad {shape.name}", "backward", provider, convolution(shape, provider),
        convolution(shape, "torch"), convolution_tensors(shape), wanted=(1, 2), shape=shape.name, macs=shape.macs,
    )  # fmt: skip
