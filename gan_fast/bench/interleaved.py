"""Interleaved timing of several programs in one process, with disturbed rounds taken out.

A shared machine drifts, and now and then runs at half its speed for a while. So the programs take turns, a fixed
piece of work is timed around each turn, and a turn in which that work took clearly longer than at its best does not
count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

#: A turn counts if the fixed work around it took at most this many times its best.
LARGEST_DISTURBANCE = 1.15


class Calibration:
    """A fixed piece of work (a matrix product on all threads) whose time tells whether the machine is disturbed."""

    def __init__(self, size: int = 640) -> None:
        self._left = torch.ones(size, size)
        self._right = torch.ones(size, size)
        self._out = torch.empty(size, size)
        self.best = min(self() for _ in range(20))

    def __call__(self) -> float:
        """Seconds for the fixed work, now."""
        start = time.perf_counter()
        torch.mm(self._left, self._right, out=self._out)
        return time.perf_counter() - start

    def disturbed(self, seconds: float) -> bool:
        """Whether the machine was disturbed when the fixed work took so long; a new best is remembered."""
        self.best = min(self.best, seconds)
        return seconds > LARGEST_DISTURBANCE * self.best


def measure(
    programs: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 2, repeats: int = 1
) -> dict[str, dict[str, Any]]:
    """Time programs in turns.

    Args:
        programs: name -> what to run once.
        rounds: turns of each program that must count; at most three times as many are taken.
        warmup: uncounted turns first.
        repeats: runs in one turn, for programs that are too short for the clock.

    Returns:
        name -> {"seconds": median of one run, "quartiles": [lower, upper], "rounds": turns counted,
        "disturbed": turns not}. If too many turns were disturbed, all are counted, and "disturbed" says so.
    """
    for _ in range(warmup):
        for run in programs.values():
            run()
    calibration = Calibration()
    good: dict[str, list[float]] = {name: [] for name in programs}
    every: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(3 * rounds):
        if all(len(times) >= rounds for times in good.values()):
            break
        for name, run in programs.items():
            before = calibration()
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            seconds = (time.perf_counter() - start) / repeats
            after = calibration()
            every[name].append(seconds)
            if not calibration.disturbed(max(before, after)):
                good[name].append(seconds)
    results = {}
    for name in programs:
        times = good[name] if len(good[name]) >= max(3, rounds // 3) else every[name]
        lower, median, upper = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
        results[name] = {
            "seconds": median,
            "quartiles": [lower, upper],
            "rounds": len(times),
            "disturbed": len(every[name]) - len(good[name]),
        }
    return results
