"""From what was measured to the report."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gan_fast import backends
from gan_fast.choice_table import Choice
from gan_fast.machine import cpu_model

from . import advice, roofline
from .counting import Count
from .networks import Networks, Tracker
from .operators import AUTOGRAD, PYTHON, WAITING, Detail
from .phases import Clock, Segment
from .report import LayerRow, OperatorRow, PhaseRow, Report, Stretch

__all__ = ["Measured", "assemble"]


@dataclass
class Measured:
    """The raw figures of a `Profile`."""

    networks: Networks
    clock: Clock | None = None
    timed: list[list[Segment]] = field(default_factory=list)
    bare: list[tuple[Any, Any]] = field(default_factory=list)
    detailed: list[tuple[Any, Any]] = field(default_factory=list)
    counts: dict[tuple[str, bool, str], Count] = field(default_factory=dict)
    detail: Detail | None = None
    memory: dict[str, Any] = field(default_factory=dict)


def assemble(measured: Measured, device: str, tracker: Tracker) -> Report:
    """The report; parts for which the loop was too short are left out, and noted."""
    seconds = measured.clock.seconds if measured.clock is not None else lambda begin, end: 0.0
    walls = [seconds(step[0].begin, step[-1].end) for step in measured.timed]
    bare = [seconds(*stamps) for stamps in measured.bare]
    detailed = [seconds(*stamps) for stamps in measured.detailed]
    counts = {"timed": len(walls), "bare": len(bare), "detail": len(detailed), "counted": int(bool(measured.counts))}
    wall = statistics.fmean(walls) if walls else 0.0
    step = statistics.median(bare or walls or detailed or [0.0])
    report = Report(_machine(device), counts, step, wall, memory=measured.memory)
    report.phases = _phases(measured, wall)
    report.timeline = _timeline(measured, walls)
    if bare:
        for what, times in (("timing the phases", walls), ("layers and operators", detailed)):
            if times:
                report.overhead[what] = statistics.median(times) / step - 1
    if len(bare) > 1:
        lower, _, upper = statistics.quantiles(bare, n=4)
        report.spread = (upper - lower) / step
    roof = None
    if measured.counts:
        report.flops = sum(count.flops for count in measured.counts.values())
        report.bytes = sum(count.bytes for count in measured.counts.values())
        roof = roofline.measured(device, torch.get_num_threads())
        share = roof.seconds(report.flops, report.bytes) / step if step else 0.0
        report.roof = {"flops": roof.flops, "bandwidth": roof.bandwidth, "share": share}
    if measured.detail is not None and measured.detail.steps:
        _add_detail(report, measured, measured.detail, roof)
    report.notes = _notes(report, measured)
    report.verdict = [*advice.sentences(report), *advice.prospects(measured.networks, report.layers)]
    return report


def _machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_model()
    return {
        "on": name,
        "threads": torch.get_num_threads(),
        "level": backends.instruction_level() or "none (no compiled module)",
        "torch": str(torch.__version__),
    }


def _phases(measured: Measured, wall: float) -> list[PhaseRow]:
    """Means over the timed steps, in the order in which the phases first came."""
    assert measured.clock is not None or not measured.timed
    sums: dict[tuple[str, str], float] = {}
    for step in measured.timed:
        for segment in step:
            key = (segment.update, segment.label)
            seconds = measured.clock.seconds(segment.begin, segment.end)  # type: ignore[union-attr]  # asserted above
            sums[key] = sums.get(key, 0.0) + seconds
    n = len(measured.timed)
    return [PhaseRow(*key, seconds / n, seconds / n / wall if wall else 0.0) for key, seconds in sums.items()]


def _timeline(measured: Measured, walls: list[float]) -> list[Stretch]:
    """The step of median length; of two in the middle, the shorter one."""
    if not walls or measured.clock is None:
        return []
    step = measured.timed[walls.index(statistics.median_low(walls))]
    seconds, start = measured.clock.seconds, step[0].begin
    return [
        Stretch(segment.label, segment.update, seconds(start, segment.begin), seconds(segment.begin, segment.end))
        for segment in step
    ]


def _add_detail(report: Report, measured: Measured, detail: Detail, roof: roofline.Roof | None) -> None:
    inside = sum(time for (_, _, name), time in detail.seconds.items() if name not in (PYTHON, AUTOGRAD))
    report.outside = max(0.0, 1 - inside / detail.wall) if detail.wall else None
    report.kernels = {name: time / detail.steps for name, time in detail.kernels.seconds.items()}
    if detail.kernels.span:
        report.gaps = 1 - detail.kernels.busy / detail.kernels.span

    def share(flops: int, traffic: int, seconds: float) -> float | None:
        if roof is None or not seconds or not (flops or traffic):
            return None
        return roof.seconds(flops, traffic) / seconds

    detail.seconds = {key: seconds for key, seconds in detail.seconds.items() if key[2] != WAITING}  # a phase's matter
    report.operators = _operators(measured, detail, share)
    report.layers = _layers(measured, detail, share)


def _operators(measured: Measured, detail: Detail, share: Any) -> list[OperatorRow]:
    times: dict[str, float] = defaultdict(float)
    calls: dict[str, float] = defaultdict(float)
    for (_, _, name), seconds in detail.seconds.items():
        times[name] += seconds / detail.steps
    for (_, _, name), number in detail.calls.items():
        calls[name] += number / detail.steps
    sums: dict[str, Count] = defaultdict(Count)
    for (_, _, name), count in measured.counts.items():
        sums[name].flops += count.flops
        sums[name].bytes += count.bytes
        sums[name].served.update(count.served)
    rows = []
    for name, seconds in times.items():
        count = sums.get(name, Count())
        roof = share(count.flops, count.bytes, seconds)
        rows.append(OperatorRow(name, calls[name], seconds, count.flops, count.bytes, roof, dict(count.served)))
    return sorted(rows, key=lambda row: -row.seconds)


def _layers(measured: Measured, detail: Detail, share: Any) -> list[LayerRow]:
    times: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (layer, is_backward, _), seconds in detail.seconds.items():
        times[layer][is_backward] += seconds / detail.steps
    why = advice.choices(measured.networks)
    kinds = {
        f"{name}.{path}" if path else name: type(layer).__name__
        for name, network in measured.networks.modules.items()
        for path, layer in network.named_modules()
    }
    rows = []
    for layer, both in times.items():
        forward, backward = both
        mine = {key: count for key, count in measured.counts.items() if key[0] == layer}
        flops, traffic = sum(count.flops for count in mine.values()), sum(count.bytes for count in mine.values())
        served = (_served(mine, False), _served(mine, True)) if layer else ("", "")
        reason = _reason(mine, why[layer].forward if layer in why else None)
        roof = share(flops, traffic, forward + backward)
        kind = kinds.get(layer, "") if layer else "losses, optimisers, loop"
        rows.append(LayerRow(layer, kind, forward, backward, flops, traffic, roof, *served, reason))
    return sorted(rows, key=lambda row: -(row.forward + row.backward))


def _reason(counts: dict[tuple[str, bool, str], Count], expected: Choice | None) -> str:
    """Why a layer's forward pass is where it is: the reason of the calls that were seen, else the one of the rules."""
    seen = [reason for (_, backward, _), count in counts.items() if not backward for reason in count.served.values()]
    if seen:
        return seen[0]
    if expected is None:
        return ""
    if expected.backend in ("torch", "none"):
        return expected.reason
    return "PyTorch, though the rules have a kernel for it: another memory format, dtype or mode than they suppose"


def _served(counts: dict[tuple[str, bool, str], Count], backward: bool) -> str:
    """Who served a layer's pass: the backends of its products if it has any, else of all its operators."""
    mine = {name: count for (_, direction, name), count in counts.items() if direction is backward}
    heavy = {name: count for name, count in mine.items() if count.flops}
    found = sorted({backend for count in (heavy or mine).values() for backend in (count.served or ("torch",))})
    if not heavy and any(count.served for count in mine.values()):
        found = sorted({backend for count in mine.values() for backend in count.served})
    return "+".join(found)


def _notes(report: Report, measured: Measured) -> list[str]:
    notes = []
    if not any(isinstance(module, nn.Module) for module in measured.networks.modules.values()):
        notes.append("no network was called inside the with block")
    if not measured.timed:
        steps = (
            "no step was seen; call profile.step() at the end of each" if measured.clock is None else "too few steps"
        )
        notes.append(f"no phases: {steps} (warm-up, counting and torch.profiler come first)")
    if measured.timed and not measured.bare:
        notes.append("the loop ended before an unprofiled step, so the overhead is not known")
    return notes
