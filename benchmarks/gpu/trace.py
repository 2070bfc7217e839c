"""Kernels and device time of one step, with the profiler's trace beside the results."""

from __future__ import annotations

import collections
import gzip
import shutil
from typing import Any

from torch.profiler import ProfilerActivity, profile

from .device import Settings, precision, synchronise, tidy
from .journal import Row, row
from .steps import Network, Program, Run

#: Kernels that are named in a row.
MOST_NAMES = 12


def one_step(network: Network, program: Program, batch: int, settings: Settings, keep: bool) -> list[Row]:
    """Count the kernels of a step, and add up their times.

    Args:
        network, program, batch: whose step; its check is that of the measurement.
        keep: write the trace to the folder of the results (gzip; chrome://tracing and Perfetto read it).
    """
    tidy(settings)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if settings.cuda else [])]
    with precision(program.precision):
        run = Run(network, program, batch, settings)
        for _ in range(1 if settings.tiny else 3):
            run.step()
        synchronise(settings)
        with profile(activities=activities) as profiler:
            run.step()
            synchronise(settings)
    more: dict[str, Any] = {}
    on_device = [e for e in profiler.events() or [] if str(e.device_type).endswith("CUDA")]
    # Ranges that programs name (an optimiser's step) stand among the kernels that they span.
    kernels = [e for e in on_device if not getattr(e, "is_user_annotation", False) and "#" not in e.name]
    if settings.cuda:
        names: collections.Counter[str] = collections.Counter()
        for event in kernels:
            names[event.name[:80]] += event.device_time  # type: ignore[attr-defined]  # in microseconds
        more["kernels"] = len(kernels)
        more["device_seconds"] = 1e-6 * sum(names.values())
        more["longest"] = {name: 1e-6 * total for name, total in names.most_common(MOST_NAMES)}
    if keep:
        more["trace"] = export(profiler, f"trace-{network.name}-{batch}-{program.key}".replace("/", "-"), settings)
    what = f"{network.name} step, {program.name}, profiled"
    check = "green" if program.ours else "baseline"
    facts = {"network": network.name, "program": program.name, "layout": program.layout}
    return [row(what, check=check, dtype=program.precision, batch=batch, **facts, **more)]


def export(profiler: Any, stem: str, settings: Settings) -> str:
    """Write the trace, packed; returns the file's name."""
    plain, packed = settings.out / f"{stem}.json", settings.out / f"{stem}.json.gz"
    profiler.export_chrome_trace(str(plain))
    with plain.open("rb") as source, gzip.open(packed, "wb") as target:
        shutil.copyfileobj(source, target)
    plain.unlink()
    return packed.name
