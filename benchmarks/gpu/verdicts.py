"""How near to float64 is near enough, and whether it was our kernels that ran.

The bound is that of the tests (tests/tolerance.py): twice PyTorch's own error in the same precision. TF32 has one more
yardstick, since PyTorch may take an exact kernel where it is free to round: what float64 makes of operands cut to TF32.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from tolerance import Errors, assert_as_good, errors
from torch import Tensor


@dataclasses.dataclass
class Used:
    """What ran: how many of our kernels, and which of our operators PyTorch had to serve."""

    launches: int = 0
    served: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether our kernels ran and none was replaced."""
        return self.launches > 0 and not self.served


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Of one check: "green" or "red", our largest error, what was allowed, and the reason of a red."""

    check: str
    error: float | None = None
    allowed: float | None = None
    reason: str | None = None

    def fields(self) -> dict[str, Any]:
        """For a row."""
        found = {"error": self.error, "allowed": self.allowed, "reason": self.reason}
        return {name: value for name, value in found.items() if value is not None}


@contextlib.contextmanager
def uses_kernels() -> Iterator[Used]:
    """Counts launches of our kernels within the block."""
    from gan_fast.ops import _triton, first_use

    used, launch = Used(), _triton.launch

    def counting(*arguments: Any) -> None:
        used.launches += not _triton.is_recording()
        launch(*arguments)

    _triton.launch = counting
    try:
        yield used
    finally:
        _triton.launch = launch
        used.served = tuple(first_use.disabled())


@contextlib.contextmanager
def raw_kernels() -> Iterator[None]:
    """The kernels themselves within the block, without the check at first use, behind which PyTorch would serve."""
    from gan_fast.ops import first_use

    devices, first_use.DEVICES = first_use.DEVICES, []
    try:
        yield
    finally:
        first_use.DEVICES = devices


def truncated(tensor: Tensor) -> Tensor:
    """float32 cut to the 10 bits of TF32's mantissa, as a matrix unit reads it."""
    return (tensor.view(torch.int32) & ~0x1FFF).view(torch.float32)


def judge(ours: Any, exact: Any, theirs: Any, ideal: Any = None, used: Used | None = None) -> Verdict:
    """The verdict on one result or a tuple of them.

    Args:
        ours: of our kernels.
        exact: in float64.
        theirs: PyTorch's in the same precision.
        ideal: another yardstick for what the precision itself costs; None for none.
        used: what ran while `ours` was made; without a launch the verdict is red.
    """
    if used is not None and used.launches == 0:
        return Verdict("red", reason="no kernel of ours ran")
    several = isinstance(exact, (tuple, list))
    groups = [list(x) if several else [x] for x in (ours, exact, theirs, exact if ideal is None else ideal)]
    worst = Verdict("green", 0.0, 0.0)
    for mine, truth, other, best in zip(*groups, strict=True):
        verdict = _judge_one(mine, truth, other, best)
        if verdict.check == "red":
            return verdict
        if _share(verdict) >= _share(worst):
            worst = verdict
    return worst


def _share(verdict: Verdict) -> float:
    return (verdict.error or 0.0) / max(verdict.allowed or 0.0, 1e-30)


def _judge_one(mine: Tensor, truth: Tensor, other: Tensor, best: Tensor) -> Verdict:
    if truth.numel() == 0:
        return Verdict("green" if mine.shape == truth.shape else "red", 0.0, 0.0)
    scale = float(truth.abs().max())
    yardsticks = [errors(value, truth) for value in (other, best)]
    # One rounding of the result, which PyTorch's own error on a few elements may happen to be below. Triton's
    # interpreter cuts float32 to bfloat16 where a device rounds.
    cuts = mine.device.type == "cpu" and mine.dtype == torch.bfloat16
    rounding = torch.finfo(mine.dtype).eps * scale / (1 if cuts else 2)
    on_average = rounding if truth.numel() < 8 else rounding / 2
    allowed = Errors(
        max(rounding, *(e.largest for e in yardsticks)), max(on_average, *(e.mean_square for e in yardsticks))
    )
    if mine.shape != truth.shape:
        return Verdict("red", reason=f"shape {tuple(mine.shape)}, expected {tuple(truth.shape)}")
    found = errors(mine, truth)
    try:
        assert_as_good(mine, truth, allowed, "kernel")
    except AssertionError as error:
        return Verdict("red", found.largest, allowed.largest, str(error)[:300])
    return Verdict("green", found.largest, allowed.largest)
