"""Plots: matplotlib's figures, and what makes them SVG inside a page, in the page's text colour whatever that is.

Saved as pictures instead, they are black on white.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "GREEN", "OURS", "PALETTE", "TEXT", "THEIRS", "Bar", "Curve", "Dot", "bars", "curves", "require", "roofline",
    "svg", "timeline",
]  # fmt: skip

#: Okabe and Ito's colours, told apart by colour-blind readers: ours, PyTorch's, and others.
OURS, THEIRS, GREEN = "#d55e00", "#0072b2", "#009e73"
PALETTE = (THEIRS, OURS, GREEN, "#cc79a7", "#e69f00", "#56b4e9")
#: Drawn in the page's text colour.
TEXT = "#010203"
#: Narrow, so that a telephone shows the letters at their size.
WIDTH = 5.2
#: More bars than these are left out: the tables have them.
MOST_BARS = 24
_MARKERS = "os^Dv*"
_numbers = itertools.count(1)


class Bar(NamedTuple):
    """A horizontal bar, and how far its whisker reaches to either side."""

    label: str
    value: float
    below: float = 0.0
    above: float = 0.0
    colour: str = GREEN


class Dot(NamedTuple):
    """Of a roofline: operations for each byte, operations in a second."""

    intensity: float
    rate: float
    ours: bool


class Curve(NamedTuple):
    """x -> (lower quartile, median, upper quartile)."""

    label: str
    points: Mapping[float, tuple[float, float, float]]
    colour: str
    marker: int = 0


def require() -> None:
    """Raise before anything is measured if reports cannot be drawn.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("a report needs matplotlib: pip install 'gan-fast[plots]'")


def bars(found: Sequence[Bar], label: str, reference: float | None = None) -> Any:
    """A figure of horizontal bars, the first on top, with a line at `reference`; None without bars."""
    if not found:
        return None
    found = found[:MOST_BARS]
    figure, axes = _figure(0.9 + 0.28 * len(found))
    places = range(len(found), 0, -1)
    whiskers = [[bar.below for bar in found], [bar.above for bar in found]]
    axes.barh(
        places, [bar.value for bar in found], xerr=whiskers if any(map(sum, whiskers)) else None,
        color=[bar.colour for bar in found], ecolor=TEXT, capsize=2, height=0.65,
        error_kw={"alpha": 0.6, "linewidth": 0.8},
    )  # fmt: skip
    axes.set_yticks(places, [bar.label for bar in found])
    if reference is not None:
        axes.axvline(reference, color=TEXT, linewidth=1)
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.set_ylim(0.3, len(found) + 0.7)
    return figure


def roofline(dots: Sequence[Dot], peak: float, bandwidth: float, x: str, y: str) -> Any:
    """Dots under the roof that a peak (operations in a second) and a bandwidth (bytes in a second, or 0) make."""
    if not dots:
        return None
    figure, axes = _figure(3.6)
    for ours, colour, label in ((False, THEIRS, "PyTorch"), (True, OURS, "gan_fast")):
        chosen = [dot for dot in dots if dot.ours is ours]
        if chosen:
            rates = [1e-9 * dot.rate for dot in chosen]
            intensities = [dot.intensity for dot in chosen]
            axes.scatter(intensities, rates, s=14, color=colour, alpha=0.7, linewidth=0, label=label)
    peak, bandwidth = 1e-9 * peak, 1e-9 * bandwidth
    low, high = min(dot.intensity for dot in dots) / 2, max(dot.intensity for dot in dots) * 2
    if bandwidth:
        knee = peak / bandwidth
        low = min(low, knee)
        axes.plot([low, knee, max(high, 2 * knee)], [low * bandwidth, peak, peak], color=TEXT, linewidth=1)
    else:
        axes.plot([low, high], [peak, peak], color=TEXT, linewidth=1)
    _logarithmic(axes)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=8)
    return figure


def curves(found: Sequence[Curve], x: str, y: str) -> Any:
    """Curves with quartiles along two logarithmic scales; ticks where something was measured."""
    if not found:
        return None
    figure, axes = _figure(3.6)
    for curve in found:
        points = sorted(curve.points.items())
        medians = [median for _, (_, median, _) in points]
        below = [median - min(lower, median) for _, (lower, median, _) in points]
        above = [max(upper, median) - median for _, (_, median, upper) in points]
        axes.errorbar(
            [place for place, _ in points], medians, yerr=[below, above], color=curve.colour, capsize=2,
            marker=_MARKERS[curve.marker % len(_MARKERS)], markersize=4, linewidth=1, label=curve.label or None,
        )  # fmt: skip
    _logarithmic(axes)
    places = sorted({place for curve in found for place in curve.points})
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=7)
    return figure


def timeline(rows: Mapping[str, Iterable[tuple[float, float]]]) -> Any:
    """What ran when: a row for each name, stretches as (begin, seconds), shown in milliseconds."""
    if not rows:
        return None
    figure, axes = _figure(0.9 + 0.28 * len(rows))
    for number, (name, stretches) in enumerate(rows.items()):
        spans = [(1e3 * begin, 1e3 * seconds) for begin, seconds in stretches]
        place = len(rows) - number
        # An edge keeps what is shorter than a pixel visible.
        colour = PALETTE[number % len(PALETTE)]
        axes.broken_barh(spans, (place - 0.33, 0.66), color=colour, linewidth=0.4, edgecolor=colour, label=name)
    axes.set_yticks(range(len(rows), 0, -1), list(rows))
    axes.set_xlabel("ms since the step began")
    axes.set_xlim(left=0)
    axes.set_ylim(0.3, len(rows) + 0.7)
    return figure


def _figure(height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    for spine in axes.spines.values():
        spine.set_color(TEXT)
        spine.set_alpha(0.4)
    axes.tick_params(which="both", colors=TEXT, labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(TEXT)
        axis.label.set_fontsize(8)
    axes.grid(color=TEXT, alpha=0.15)
    axes.set_axisbelow(True)
    return figure, axes


def _logarithmic(axes: Any) -> None:
    """1, 2, 5, 10 and so on along both scales."""
    from matplotlib import ticker

    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(ticker.NullFormatter())


def svg(figure: Any) -> str:
    """A figure as inline SVG in the page's text colour; "" of None. The figure is closed."""
    if figure is None:
        return ""
    import matplotlib
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gan_fast"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(TEXT, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)  # names addresses, which a page must not
    text = re.sub(r' xmlns:\w+="[^"]*"', "", text).replace("xlink:href", "href")
    number = next(_numbers)  # names are unique in the page
    names = {name: f"p{number}-{name}" for name in set(re.findall(r'id="([^"]+)"', text))}
    pattern = re.compile(r'(id="|href="#|url\(#)([^")]+)')
    text = pattern.sub(lambda found: found[1] + names.get(found[2], found[2]), text)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "role=img", text, count=1)
