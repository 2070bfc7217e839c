"""The check of a Triton kernel at its first use: it passes a good kernel once, and disables a broken one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton_proof
from torch import Tensor

from gan_fast.ops import OPERATORS, _triton, first_use
from gan_fast.ops.conv import triton as conv_module

__all__ = ["triton_proof"]  # imported for its conditions: triton, interpreted

FORM = ([2, 2], [1, 1], [1, 1], 1, [3, 3], "leaky_relu", 0.2)


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The interpreter's tensors count as a device, whose verdicts go to an empty folder."""
    monkeypatch.setattr(first_use, "DEVICES", ["cpu"])
    monkeypatch.setenv("GAN_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    first_use.forget()
    yield
    first_use.forget()


def call(batch: int = 3, dtype: torch.dtype = torch.float32, fill: float = 1.0) -> Tensor:
    x, w = torch.full((batch, 16, 5, 5), fill, dtype=dtype), torch.ones(17, 16, 3, 3, dtype=dtype)
    return OPERATORS["conv"](x, w, None, *FORM, None, "none", 0.01, "triton")


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    runs: list[Any] = []
    launch = _triton.launch

    def counting(kernel: Any, *rest: Any) -> None:
        if not _triton.is_recording():
            runs.append(kernel)
        launch(kernel, *rest)

    monkeypatch.setattr(_triton, "launch", counting)
    return runs


def test_a_good_kernel_is_checked_once_per_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = count_runs(monkeypatch)
    call()
    assert len(runs) == 2  # the sample, then the call
    call(batch=2)  # another batch, the same binary
    assert len(runs) == 3
    call(dtype=torch.float16)
    assert len(runs) == 5
    first_use.forget()  # a new process finds the verdicts on disk
    call()
    assert len(runs) == 6


def test_a_users_nan_is_not_taken_for_a_fault(caplog: pytest.LogCaptureFixture) -> None:
    assert call(fill=float("nan")).isnan().any()
    assert not caplog.records


def test_a_broken_kernel_is_disabled_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    healthy = conv_module.conv

    def broken(*arguments: Any) -> Tensor:
        out = healthy(*arguments)
        if not _triton.is_recording():
            out.view(-1)[-1] += 1000
        return out

    monkeypatch.setattr(conv_module, "conv", broken)
    with caplog.at_level(logging.WARNING):
        results = [call(), call(), call()]
    right = OPERATORS["conv"](
        torch.ones(3, 16, 5, 5), torch.ones(17, 16, 3, 3), None, *FORM, None, "none", 0.01, "reference"
    )
    for result in results:
        torch.testing.assert_close(result, right)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and "conv gives wrong numbers" in warnings[0] and "doctor" in warnings[0]
