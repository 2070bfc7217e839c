"""What a training step launches by backend "triton": no copy into another format, no kernel more than is known of."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import triton_proof

from gan_fast.ops import OPERATORS, _triton

__all__ = ["triton_proof"]  # imported for its conditions: triton, interpreted

ROOT = Path(__file__).resolve().parent.parent
#: Convolutions, weight gradients of two launches each, losses of the article's networks. A simultaneous update runs D
#: once less.
WEIGHT_GRADIENTS_AND_LOSSES = {"partial_sums": 7, "sum_slices": 7, "bce_kernel": 3}
ARTICLE = {
    "alternating": {"gather_conv": 13, "flat_conv": 5, **WEIGHT_GRADIENTS_AND_LOSSES},
    "simultaneous": {"gather_conv": 10, "flat_conv": 3, **WEIGHT_GRADIENTS_AND_LOSSES},
}


@pytest.fixture
def count() -> Any:
    spec = importlib.util.spec_from_file_location("launch_count", ROOT / "tools" / "launch_count.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.count


@pytest.mark.parametrize("update", ARTICLE)
def test_the_articles_step(count: Any, update: str) -> None:
    ours, theirs = count("keras_mnist", update=update)
    assert ours == ARTICLE[update]
    copies = {name: number for name, number in theirs.items() if "copy" in name or "clone" in name}
    assert not copies, f"copies between formats: {copies}"
    assert sum(ours.values()) + sum(theirs.values()) <= 46, theirs


@pytest.mark.parametrize("elements", [1024, 1025, 8192, 8193])
def test_a_loss_of_few_logits_is_one_launch(elements: int) -> None:
    launches: list[_triton.Launch] = []
    with _triton.recording(launches.append):
        OPERATORS["bce_with_logits"](torch.zeros(elements), None, 1.0, None, None, "mean", "triton")
    names = Counter(launch.kernel.__name__ for launch in launches)
    assert names == ({"bce_kernel": 1} if elements <= 8192 else {"bce_kernel": 1, "total_kernel": 1})
