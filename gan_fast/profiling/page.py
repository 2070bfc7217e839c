"""One self-contained HTML page of a profile: the step's timeline, phases, roofline, tables that sort."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gan_fast.pages import frame, plots

from .report import LayerRow, Report, ms

__all__ = ["page", "write"]

_SERVED_BY_OTHERS = ("", "torch")


def write(path: Path, report: Report, facts: Mapping[str, Any]) -> None:
    """Write :func:`page` to a file, as a whole."""
    frame.write(path, page(report, facts))


def page(report: Report, facts: Mapping[str, Any]) -> str:
    """The page's HTML.

    Args:
        report: what was found.
        facts: what was profiled, shown as it is.

    Raises:
        ImportError: matplotlib is not installed.
    """
    plots.require()
    parts = [
        _verdict(report),
        frame.picture(
            "One step",
            f"The timed step of median length, of {report.counts.get('timed', 0)}; in brackets: for whose update.",
            plots.svg(plots.timeline(_stretches(report))),
        ),
        frame.picture(
            "Phases",
            "Mean time of a step's phases; they neither overlap nor leave anything out.",
            plots.svg(plots.bars(_phase_bars(report), "ms of a step")),
        ),
        frame.section("All phases", _phases(report)),
        frame.picture(
            "Roofline",
            "Each dot is a layer, forward and backward together. The roof is what this machine did in a loop of "
            "multiply-adds, the slope what it copies in a second; above it: served by the caches, or fewer products.",
            _roofline(report),
        ),
        frame.section("Layers", _layers(report), "Backward: all passes of gradients. A click on a head sorts."),
        frame.section("Operators", _operators(report)),
        frame.section("Kernels", _kernels(report)),
        frame.section("Machine", frame.facts({**facts, **_totals(report), **report.machine})),
    ]
    return frame.page("gan-fast profile", parts)


def _verdict(report: Report) -> str:
    said = [f"<b>{ms(report.step)} a step.</b>", *(html.escape(sentence) for sentence in report.verdict)]
    return frame.verdict([*said, *(f"Note: {html.escape(note)}." for note in report.notes)])


def _name(phase: str, update: str) -> str:
    return f"{phase} ({update})" if update else phase


def _stretches(report: Report) -> dict[str, list[tuple[float, float]]]:
    """In the phases' order, so that both plots have the same colours."""
    rows: dict[str, list[tuple[float, float]]] = {_name(row.phase, row.update): [] for row in report.phases}
    for stretch in report.timeline:
        rows[_name(stretch.phase, stretch.update)].append((stretch.begin, stretch.seconds))
    return rows


def _phase_bars(report: Report) -> list[plots.Bar]:
    return [
        plots.Bar(_name(row.phase, row.update), 1e3 * row.seconds, colour=plots.PALETTE[number % len(plots.PALETTE)])
        for number, row in enumerate(report.phases)
    ]


def _phases(report: Report) -> str:
    lines = [
        frame.Line([row.phase, row.update, _ms(row.seconds), frame.Number(100 * row.share, "{:.1f}")])
        for row in report.phases
    ]
    return frame.table(["phase", "for the update of", "ms", "% of the step"], lines) if lines else ""


def _layers(report: Report) -> str:
    lines = []
    for row in report.layers:
        numbers = [_ms(row.forward), _ms(row.backward), _ms(row.forward + row.backward), *_amounts(row)]
        words = [row.forward_backend, row.backward_backend, row.why]
        lines.append(frame.Line([row.layer or "(outside)", row.kind, *numbers, *words], "ours" if _ours(row) else ""))
    head = ["layer", "kind", "forward ms", "backward ms", "ms", "GFLOP", "MB", "% of roof"]
    return frame.table([*head, "forward by", "backward by", "why"], lines) if lines else ""


def _operators(report: Report) -> str:
    lines = []
    for row in report.operators:
        served = ", ".join(row.served) or ("torch" if "::" in row.operator else "")
        why = "; ".join(dict.fromkeys(row.served.values()))
        numbers = [frame.Number(row.calls, "{:.0f}"), _ms(row.seconds), *_amounts(row)]
        lines.append(frame.Line([row.operator, *numbers, served, why], "ours" if row.served else ""))
    head = ["operator", "calls", "ms", "GFLOP", "MB", "% of roof", "served by", "why"]
    return frame.table(head, lines) if lines else ""


def _kernels(report: Report) -> str:
    lines = [frame.Line([name, _ms(seconds)]) for name, seconds in report.kernels.items()]
    return frame.table(["kernel", "ms"], lines) if lines else ""


def _ms(seconds: float) -> frame.Number:
    return frame.Number(1e3 * seconds, "{:.3f}")


def _amounts(row: Any) -> list[frame.Number]:
    return [
        frame.Number(1e-9 * row.flops if row.flops else None, "{:.3f}"),
        frame.Number(1e-6 * row.bytes if row.bytes else None, "{:.2f}"),
        frame.Number(None if row.roof is None else 100 * row.roof, "{:.0f}"),
    ]


def _ours(row: LayerRow) -> bool:
    """Whether a kernel of gan_fast's served one of its passes."""
    served = [*row.forward_backend.split("+"), *row.backward_backend.split("+")]
    return any(name not in _SERVED_BY_OTHERS for name in served)


def _roofline(report: Report) -> str:
    dots = []
    for row in report.layers:
        seconds = row.forward + row.backward
        if row.layer and row.flops and row.bytes and seconds:
            dots.append(plots.Dot(row.flops / row.bytes, row.flops / seconds, _ours(row)))
    x = "floating-point operations for each byte that the operators read and write"
    roof = report.roof
    return plots.svg(plots.roofline(dots, roof["flops"], roof["bandwidth"], x, "GF/s")) if roof else ""


def _totals(report: Report) -> dict[str, Any]:
    """What stands beside the tables, in words."""
    found: dict[str, Any] = {"steps": ", ".join(f"{number} {what}" for what, number in report.counts.items())}
    if report.flops:
        found["work of a step"] = f"{report.flops / 1e9:.3g} GFLOP, {report.bytes / 1e6:.3g} MB"
    if report.roof:
        found["roof"] = f"{report.roof['flops'] / 1e9:.3g} GFLOP/s, {report.roof['bandwidth'] / 1e9:.3g} GB/s"
        found["the step's share of it"] = f"{report.roof['share']:.1%}"
    if report.memory:
        found["memory at the peak"] = f"{report.memory['peak'] / 2**20:.0f} MiB ({report.memory['of']})"
    if report.gaps is not None:
        found["the device waits between kernels"] = f"{report.gaps:.1%} of the time"
    found.update({f"overhead of {what}": f"{share:+.1%}" for what, share in report.overhead.items()})
    if report.spread is not None:
        found["unprofiled steps differ by"] = f"{report.spread:.1%}"
    return found
