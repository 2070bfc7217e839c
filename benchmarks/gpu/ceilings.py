"""What the device can do at all: the rates that everything else is held to."""

from __future__ import annotations

from typing import Any

import torch

from .device import DTYPES, Settings, capture, kernel_time, normal, precision, step_time
from .journal import Row, row

STAGE = "ceiling"
COPY = "ceiling/copy"


def gemm_key(name: str) -> str:
    """Key of the matrix product's task in a precision."""
    return f"ceiling/gemm/{name}"


def copy(settings: Settings) -> list[Row]:
    """A copy within the device's memory, too large for any cache."""
    elements = 1 << 16 if settings.tiny else 1 << 29
    source = torch.ones(elements, device=settings.device)
    target = torch.empty_like(source)
    timing = kernel_time(lambda: target.copy_(source), settings)
    rate = 8e-9 * elements / timing.seconds
    return [row("copy", check="baseline", gbytes_per_second=rate, dtype="fp32", **timing.fields())]


def gemm(settings: Settings, name: str) -> list[Row]:
    """PyTorch's matrix product on random numbers: zeros draw less power and run faster."""
    size = 64 if settings.tiny else 8192
    left, right = (normal(settings, (size, size), seed).to(DTYPES[name]) for seed in (1, 2))
    out = torch.empty_like(left)
    with precision(name):
        timing = kernel_time(lambda: torch.mm(left, right, out=out), settings, budget=0.1)
    rate = 2e-12 * size**3 / timing.seconds
    return [row("matrix product", check="baseline", dtype=name, tflops=rate, size=size, **timing.fields())]


def launches(settings: Settings) -> list[Row]:
    """One small kernel after another: started by Python, and as nodes of a graph."""
    x = torch.zeros(1, device=settings.device)

    def run() -> Any:
        return x.add_(1)

    rows = [row("launch, eager", check="baseline", **step_time(run, settings).fields())]
    if settings.cuda:
        graph = capture(run, 200)
        timing = step_time(graph.replay, settings)
        rows.append(row("launch, graph node", check="baseline", seconds=timing.seconds / 200, how="graph"))
    return rows
