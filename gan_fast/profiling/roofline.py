"""What the machine could do at best: a rate of multiply-adds and a rate of copying, each measured once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gan_fast import tuning

__all__ = ["Roof", "measured"]

_COPIED = 1 << 26  # bytes: far beyond the caches, and quickly copied
_TRIALS = 7


@dataclass(frozen=True)
class Roof:
    """Floating-point operations and bytes in a second, at best."""

    flops: float
    bandwidth: float

    def seconds(self, flops: float, traffic: float) -> float:
        """The least time in which this much can be done: arithmetic and memory side by side."""
        return max(flops / self.flops, traffic / self.bandwidth)


@functools.cache
def measured(device: str, threads: int) -> Roof:
    """The roof of this machine. On the CPU: the kernels' own loop of fp32 multiply-adds on all threads, and a copy of
    64 MiB; on CUDA: PyTorch's fp32 matrix product, and such a copy."""
    source = torch.ones(_COPIED // 4, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * _COPIED / _best(lambda: target.copy_(source), device)
    if device == "cpu":
        return Roof(tuning.calibration().peak, bandwidth)
    size = 4096
    left = torch.ones(size, size, device=device)
    return Roof(2 * size**3 / _best(lambda: left @ left, device), bandwidth)


def _best(work: Callable[[], object], device: str) -> float:
    times = []
    for _ in range(_TRIALS):
        begin = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times)
