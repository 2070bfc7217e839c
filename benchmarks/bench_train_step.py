"""One training step of whole networks at batch 1 to 512: eager PyTorch, accelerated, gan_fast's Trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from frame import measure_step, some
from torch import Tensor

from gan_fast.suite import peers, steps

NETWORKS = ("article", "dcgan28", "dcgan64")
BATCHES = tuple(1 << power for power in range(10))
FROZEN = "frozen channels_last"
PROGRAMS = (
    steps.BASELINE,
    "textbook channels_last",
    FROZEN,
    "gan_fast.accelerate, textbook",
    "gan_fast.Trainer",
)


def frozen(networks: steps.Networks, real: Tensor, z: Tensor) -> Callable[[], Any]:
    """The careful loop for a discriminator with batch statistics, which sees real and fake images apart."""
    step = peers.Frozen(*copy.deepcopy(networks), apart=True, memory_format=torch.channels_last)
    return lambda: step.step(real, z)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("batch", some(BATCHES, (1, 32)))
@pytest.mark.parametrize("network", NETWORKS)
def test_train_step(benchmark: Any, network: str, batch: int, program: str) -> None:
    """One network at one batch."""
    networks, (real, z) = steps.networks(network), steps.inputs(network, batch)
    recipes = {FROZEN: lambda: frozen(networks, real, z), **steps.recipes(networks, real, z)}
    measure_step(benchmark, f"train_step {network} b{batch}", program, recipes, batch, network=network)
