"""Timing of programs on a GPU, in turns, by events on the device's own clock."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

#: A turn lasts at least so many seconds, by repeating what is shorter.
SHORTEST_TURN = 1e-3
#: Most repeats in a turn.
MOST_REPEATS = 100

#: Takes a program and a number of runs, and gives a turn: a function that returns the seconds of one run.
Clock = Callable[[Callable[[], Any], int], Callable[[], float]]


def one_by_one(run: Callable[[], Any], repeats: int) -> Callable[[], float]:
    """A `Clock`: with what starting a kernel costs, where the device has to wait for it."""

    def runs() -> None:
        for _ in range(repeats):
            run()

    return _timed(runs, repeats)


def as_graph(run: Callable[[], Any], repeats: int) -> Callable[[], float]:
    """A `Clock`: the device's own time, as in a step that was captured."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            run()
    return _timed(graph.replay, repeats)


def _timed(run: Callable[[], None], repeats: int) -> Callable[[], float]:
    def turn() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    return turn


def measure(programs: Mapping[str, Callable[[], Any]], rounds: int, clock: Clock) -> dict[str, float]:
    """Seconds of one run of each program, the median of its turns; the programs take turns, so that a device that
    slows down does so for all."""
    for run in programs.values():
        for _ in range(2):  # compilers, and cuDNN's own search
            run()
    first = {name: clock(run, 1) for name, run in programs.items()}
    fastest = max(min(min(turn() for _ in range(3)) for turn in first.values()), 1e-9)
    repeats = max(1, min(MOST_REPEATS, math.ceil(SHORTEST_TURN / fastest)))
    turns = {name: clock(run, repeats) for name, run in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, turn in turns.items():
            times[name].append(turn())
    return {name: statistics.median(seconds) for name, seconds in times.items()}
