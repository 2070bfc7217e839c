"""Nearest upsampling and a convolution, collapsed into one conv_transpose, against one after the other in PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
from frame import MODES, PROVIDERS, chosen_shapes, convolution, convolution_tensors, measure

from gan_fast.suite.shapes import LayerShape


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", chosen_shapes("upsample_conv"), ids=lambda shape: shape.name)
def test_upsample_conv(benchmark: Any, shape: LayerShape, mode: str, provider: str) -> None:
    """One layer in one mode."""
    measure(
        benchmark, f"upsample_conv {shape.name}", mode, provider, convolution(shape, provider),
        convolution(shape, "torch"), convolution_tensors(shape), shape=shape.name, macs=shape.macs,
    )  # fmt: skip
