"""One self-contained HTML page of a result file: speed-up bars, roofline, scaling curves, tables that sort."""

from __future__ import annotations

import html
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gan_fast.pages import frame, plots
from gan_fast.suite import exponents, results
from gan_fast.suite.results import Row

__all__ = ["families", "family_bars", "page", "quartiles", "scaling_curves", "write"]

#: How an axis is called beside its curve.
AXES = {"batch": "images in a batch", "side": "side of the images", "width": "channels", "threads": "threads"}


def write(path: Path, machine: Mapping[str, Any], rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
    """Write :func:`page` to a file, as a whole."""
    frame.write(path, page(machine, rows, settings))


def page(machine: Mapping[str, Any], rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    """The page's HTML.

    Args:
        machine: as :func:`gan_fast.suite.results.describe` gives it; "bandwidth" (bytes in a second) adds the slope of
            the roofline.
        rows: what was measured.
        settings: shown as they are.

    Raises:
        ImportError: matplotlib is not installed.
    """
    plots.require()
    against = "times as fast as PyTorch's best"
    found = exponents.lines(rows, machine)
    parts = [
        _verdict(rows),
        frame.picture(
            "Training steps",
            "Times as fast as PyTorch's fastest program, by turns that both took; whiskers: 95 % intervals.",
            plots.svg(plots.bars(_step_ratios(rows), against, 1.0)),
        ),
        frame.picture(
            "Layers",
            "By family of networks: geometric mean over layers and passes; whiskers: quartiles.",
            plots.svg(plots.bars(family_bars(families(rows)), against, 1.0)),
        ),
        frame.picture(
            "Roofline",
            "Each dot is a layer in one pass. The roof is what this machine did in a loop of multiply-adds; the slope, "
            "what it copies in a second. Above the roof: fewer products than the definition (Winograd).",
            _roofline(machine, rows),
        ),
        frame.picture(
            "Scaling",
            "A training step of a fully convolutional pair of networks: milliseconds for one image; whiskers: "
            "quartiles; e: the fitted exponent, cost ~ x^e.",
            *(plots.svg(plots.curves(curves, AXES.get(axis, axis), "ms for one image"))
              for axis, curves in scaling_curves(rows, found).items()),
        ),
        frame.section("Exponents", _exponents(found)),
        frame.picture(
            "Cost against batch",
            "Milliseconds for one image; flat is linear growth, falling means that a batch pays.",
            _by_batch(rows),
        ),
    ]  # fmt: skip
    for kind, title in (("step", "All steps"), ("scaling", "All steps along the axes"), ("layer", "All layers")):
        chosen = [row for row in rows if row.kind == kind]
        if chosen:
            parts.append(frame.section(title, _table(chosen)))
    parts.append(frame.section("Machine", frame.facts({**machine, **settings})))
    return frame.page("gan-fast bench", parts)


# ------------------------------------------------------------------------------------------------------------ text


def _verdict(rows: Sequence[Row]) -> str:
    """What the page comes to, in a sentence for each kind."""
    said = []
    ratios = results.ratios(rows)
    steps = [(row, ratio) for row, ratio in ratios if row.kind == "step"]
    for row, ratio in steps:
        said.append(f"<b>{html.escape(row.name)}</b>: {ratio.value:.2f} times as fast as PyTorch's best.")
    for kind, name in (("layer", "layer passes"), ("scaling", "cells of scaling")):
        found = [ratio.value for row, ratio in ratios if row.kind == kind and row.family != exponents.FIXED]
        if found:
            slower = sum(value < 1 - results.SMALLEST_CHANGE for value in found)
            said.append(
                f"<b>{len(found)} {name}</b>: {results.geometric_mean(found):.2f} times in the geometric mean, "
                f"{slower} slower than PyTorch's best by over 3 %."
            )
    wrong = [row for row in rows if row.wrong]
    for row in wrong:
        said.append(f"<b class=bad>WRONG</b>: {html.escape(' '.join(row.key))}: {html.escape(row.wrong)}.")
    disturbed = sum(not row.trusted for row in rows)
    if disturbed:
        said.append(f"{disturbed} of {len(rows)} times were taken while the machine was disturbed.")
    return frame.verdict(said)


def _table(rows: Sequence[Row]) -> str:
    """Every row."""
    best = results.fastest_peers(rows)
    head = [
        "what",
        "pass",
        "format",
        "program",
        "ms",
        "±%",
        "GF/s",
        "% of peak",
        "images/s",
        "x best",
        "x ±%",
        "quartiles",
    ]
    lines = []
    for row in rows:
        values: list[float | None] = [None] * 7
        quartiles = ""
        if row.seconds is not None:
            rate = None if row.gflop is None else row.gflop / row.seconds
            share = None if rate is None or not row.peak else 100e9 * rate / row.peak
            images = None if row.images is None else row.images / row.seconds
            values = [1e3 * row.seconds, _percent(row.uncertainty), rate, share, images, None, None]
            if row.piece in best:
                ratio = results.ratio(best[row.piece], row)
                values[5:] = ratio.value, _percent(ratio.uncertainty)
                quartiles = "" if ratio.quartiles is None else "{:.2f} to {:.2f}".format(*ratio.quartiles)
        forms = ("{:.3f}", "{:.1f}", "{:.1f}", "{:.0f}", "{:.0f}", "{:.2f}", "{:.1f}")
        numbers = [frame.Number(value, form) for value, form in zip(values, forms, strict=True)]
        kind = "bad" if row.wrong else "ours" if row.program.startswith("gan_fast") else ""
        lines.append(frame.Line([row.name, row.pass_, row.format, row.program, *numbers, quartiles], kind))
    return frame.table(head, lines)


def _percent(uncertainty: float) -> float | None:
    return 100 * uncertainty if math.isfinite(uncertainty) else None


def _exponents(found: Sequence[exponents.Line]) -> str:
    """The fitted lines, with every bend in a line of its own."""
    head = ["axis", "program", "from", "to", "e", "standard error", "e between neighbours", "where it bends"]
    lines = []
    for line in found:
        kind = "ours" if line.program.startswith("gan_fast") else ""
        numbers = [
            frame.Number(value, form)
            for value, form in ((line.start, "{:g}"), (line.end, "{:g}"), (line.exponent, "{:+.2f}"))
        ]
        local = ", ".join(f"{part.exponent:+.2f}" for part in line.local)
        bends = [exponents.sentence(bend) for bend in line.bends] or ["nowhere"]
        for bend in bends:
            error = frame.Number(line.error, "{:.2f}")
            lines.append(frame.Line([line.axis, line.program, *numbers, error, local, bend], kind))
    return frame.table(head, lines) if lines else ""


# -------------------------------------------------------------------------------------------------------- pictures


def _step_ratios(rows: Sequence[Row]) -> list[plots.Bar]:
    best = results.fastest_peers(rows)
    bars = []
    for row in rows:
        if row.kind == "step" and row.program.startswith("gan_fast") and row.seconds and row.piece in best:
            found = results.ratio(best[row.piece], row)
            lower, upper = found.interval if math.isfinite(found.uncertainty) else (found.value, found.value)
            label = f"{row.name}: {row.program.removeprefix('gan_fast.')}"
            bars.append(plots.Bar(label, found.value, found.value - lower, upper - found.value, _colour(found.value)))
    return bars


def families(rows: Sequence[Row], dtype: str = "float32") -> dict[str, list[float]]:
    """Family -> how many times faster than PyTorch's best in this dtype each of its layers is in each pass."""
    found: dict[str, list[float]] = defaultdict(list)
    for row, ratio in results.ratios(rows):
        if row.kind == "layer" and row.dtype == dtype:
            found[row.family if row.family != "own" else row.name].append(ratio.value)
    return dict(found)


def quartiles(ratios: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper one; of a single ratio, itself."""
    if len(ratios) == 1:
        return ratios[0], ratios[0]
    lower, _, upper = statistics.quantiles(ratios, n=4)
    return lower, upper


def family_bars(found: Mapping[str, Sequence[float]]) -> list[plots.Bar]:
    """Geometric means with their quartiles; a mean may lie outside of them, and its whisker then ends at the bar."""
    bars = []
    for family, ratios in found.items():
        mean, (lower, upper) = results.geometric_mean(ratios), quartiles(ratios)
        bars.append(plots.Bar(family, mean, max(0.0, mean - lower), max(0.0, upper - mean), _colour(mean)))
    return bars


def _colour(ratio: float) -> str:
    return plots.GREEN if ratio >= 1 - results.SMALLEST_CHANGE else plots.OURS


def _roofline(machine: Mapping[str, Any], rows: Sequence[Row]) -> str:
    found = [row for row in rows if row.kind == "layer" and row.seconds and row.gflop and row.gbyte and row.peak]
    dots = [
        plots.Dot(
            (row.gflop or 0) / (row.gbyte or 1), 1e9 * (row.gflop or 0) / (row.seconds or 1),
            row.program.startswith("gan_fast"),
        )
        for row in found
    ]  # fmt: skip
    peak = max((row.peak or 0 for row in found), default=0.0)
    x = "floating-point operations for each byte of input, weight and output"
    return plots.svg(
        plots.roofline(dots, peak, float(machine.get("bandwidth") or 0), x, "GF/s of the definition's products")
    )


def scaling_curves(rows: Sequence[Row], found: Sequence[exponents.Line]) -> dict[str, list[plots.Curve]]:
    """Axis -> its programs' curves in milliseconds for one image, labelled with the fitted exponents."""
    said = {(line.axis, line.program): f"{line.program}, e = {line.said}" for line in found}
    points: dict[tuple[str, str], dict[float, tuple[float, float, float]]] = defaultdict(dict)
    for row in rows:
        if row.kind == "scaling" and row.seconds and row.at and row.images and (row.family, row.program) in said:
            lower, upper = row.quartiles or (row.seconds, row.seconds)
            scale = 1e3 / row.images
            points[row.family, row.program][row.at] = (scale * lower, scale * row.seconds, scale * upper)
    curves: dict[str, list[plots.Curve]] = defaultdict(list)
    for (axis, program), line in points.items():
        number = len(curves[axis])
        colour = plots.OURS if program.startswith("gan_fast") else (plots.THEIRS, *plots.PALETTE[2:])[number % 5]
        curves[axis].append(plots.Curve(said[axis, program], line, colour, number))
    return dict(curves)


def _by_batch(rows: Sequence[Row]) -> str:
    """Layers and steps that were measured at three batches or more: the fastest time of each side for one image."""
    lines: dict[tuple[str, bool], dict[int, Row]] = defaultdict(dict)
    for row in rows:
        found = re.fullmatch(r"(.*)[- ]b(\d+)", row.name)
        if found is None or row.seconds is None or row.pass_ not in ("", "forward") or row.dtype != "float32":
            continue
        line = lines[found[1], row.program.startswith("gan_fast")]
        other = line.get(int(found[2]))
        if other is None or row.seconds < (other.seconds or math.inf):
            line[int(found[2])] = row
    lines = {key: line for key, line in lines.items() if len(line) >= 3}
    names = list(dict.fromkeys(name for name, _ in lines))[:6]
    curves = []
    for number, name in enumerate(names):
        for ours in (False, True):
            points = {}
            for batch, row in lines.get((name, ours), {}).items():
                lower, upper = row.quartiles or (row.seconds or 0, row.seconds or 0)
                points[float(batch)] = (1e3 * lower / batch, 1e3 * (row.seconds or 0) / batch, 1e3 * upper / batch)
            label = (name.partition("/")[2] or name) if ours else ""
            curves.append(plots.Curve(label, points, plots.OURS if ours else plots.THEIRS, number))
    return plots.svg(
        plots.curves(curves, "batch (orange: gan_fast, blue: PyTorch's best; forward)", "ms for one image")
    )
