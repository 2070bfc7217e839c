"""One self-contained HTML page of a result file: speed-up bars, roofline, cost against batch, tables that sort.

Nothing is loaded from anywhere: the plots are matplotlib's SVG, inline, in the page's own colours (light and dark, as
the reader's system says), and the one script sorts tables.
"""

from __future__ import annotations

import html
import importlib.util
import io
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gan_fast.cache import atomic_write
from gan_fast.suite import results
from gan_fast.suite.results import Row

__all__ = ["page", "write"]

#: Okabe and Ito's colours, told apart by colour-blind readers: ours, PyTorch's.
OURS, THEIRS, GREEN = "#d55e00", "#0072b2", "#009e73"
#: Drawn in the page's text colour, whatever that is.
TEXT = "#010203"
#: Narrow, so that a telephone shows the letters at their size.
WIDTH = 5.2
MOST_BARS = 24


def write(path: Path, machine: Mapping[str, Any], rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
    """Write :func:`page` to a file, as a whole."""
    text = page(machine, rows, settings)

    def save(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, save)


def require() -> None:
    """Raise before anything is measured if reports cannot be drawn.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("a report needs matplotlib: pip install 'gan-fast[plots]'")


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
    require()
    parts = [_verdict(rows)]
    for title, note, picture in (
        ("Training steps", "Times as fast as PyTorch's fastest program; whiskers: uncertainty of the medians.",
         _bars(_step_ratios(rows))),
        ("Layers", "By family of networks: geometric mean over layers and passes; whiskers: slowest and fastest.",
         _bars(_family_ratios(rows))),
        ("Roofline", "Each dot is a layer in one pass. The roof is what this machine did in a loop of multiply-adds; "
         "the slope, what it copies in a second. Above the roof: fewer products than the definition (Winograd).",
         _roofline(machine, rows)),
        ("Cost against batch", "Milliseconds for one image; flat is linear growth, falling means that a batch pays.",
         _scaling(rows)),
    ):  # fmt: skip
        if picture:
            parts.append(f"<section><h2>{title}</h2><p>{note}</p><figure>{picture}</figure></section>")
    for kind, title in (("step", "All steps"), ("layer", "All layers")):
        found = [row for row in rows if row.kind == kind]
        if found:
            parts.append(f"<section><h2>{title}</h2>{_table(found)}</section>")
    parts.append(f"<section><h2>Machine</h2>{_facts({**machine, **settings})}</section>")
    return _FRAME.replace("@STYLE@", _STYLE).replace("@SCRIPT@", _SCRIPT).replace("@BODY@", "\n".join(parts))


# ------------------------------------------------------------------------------------------------------------ text


def _verdict(rows: Sequence[Row]) -> str:
    """What the page comes to, in a sentence for each kind."""
    said = []
    ratios = results.ratios(rows)
    steps = [(row, ratio) for row, ratio in ratios if row.kind == "step"]
    for row, ratio in steps:
        said.append(f"<b>{html.escape(row.name)}</b>: {ratio:.2f} times as fast as PyTorch's best.")
    layers = [ratio for row, ratio in ratios if row.kind == "layer"]
    if layers:
        slower = sum(ratio < 1 - results.SMALLEST_CHANGE for ratio in layers)
        said.append(
            f"<b>{len(layers)} layer passes</b>: {results.geometric_mean(layers):.2f} times in the geometric mean, "
            f"{slower} slower than PyTorch's best by over 3 %."
        )
    wrong = [row for row in rows if row.wrong]
    for row in wrong:
        said.append(f"<b class=bad>WRONG</b>: {html.escape(' '.join(row.key))}: {html.escape(row.wrong)}.")
    disturbed = sum(not row.trusted for row in rows)
    if disturbed:
        said.append(f"{disturbed} of {len(rows)} times were taken while the machine was disturbed.")
    return "<section class=verdict>" + "".join(f"<p>{text}</p>" for text in said) + "</section>"


def _table(rows: Sequence[Row]) -> str:
    """Every row; numbers carry their value for sorting."""
    best = results.best_peer(rows)
    head = ["what", "pass", "format", "program", "ms", "±%", "GF/s", "% of peak", "images/s", "x best"]
    lines = []
    for row in rows:
        seconds = row.seconds
        numbers: list[tuple[float | None, str]] = [(None, "")] * 6
        if seconds is not None:
            rate = None if row.gflop is None else row.gflop / seconds
            share = None if rate is None or not row.peak else 100e9 * rate / row.peak
            images = None if row.images is None else row.images / seconds
            spread = 100 * row.uncertainty if math.isfinite(row.uncertainty) else None
            peer = best.get((row.kind, row.name, row.pass_, row.dtype))
            values = (1e3 * seconds, spread, rate, share, images, None if peer is None else peer / seconds)
            forms = ("{:.3f}", "{:.1f}", "{:.1f}", "{:.0f}", "{:.0f}", "{:.2f}")
            numbers = [(v, "" if v is None else form.format(v)) for v, form in zip(values, forms, strict=True)]
        words = "".join(f"<td>{html.escape(w)}</td>" for w in (row.name, row.pass_, row.format, row.program))
        cells = "".join(f'<td class=n data-v="{-1.0 if v is None else v}">{text}</td>' for v, text in numbers)
        kind = " class=bad" if row.wrong else " class=ours" if row.program.startswith("gan_fast") else ""
        lines.append(f"<tr{kind}>{words}{cells}</tr>")
    heads = "".join(f'<th scope=col tabindex=0 aria-sort="none">{html.escape(word)}</th>' for word in head)
    body = "\n".join(lines)
    return f"<div class=wide><table class=sorts><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def _facts(facts: Mapping[str, Any]) -> str:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        flat.update({f"{key}: {k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value})
    lines = (f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in flat.items())
    return f"<div class=wide><table>{''.join(lines)}</table></div>"


# -------------------------------------------------------------------------------------------------------- pictures


def _svg(figure: Any) -> str:
    """A figure as inline SVG in the page's text colour; the same figure gives the same text."""
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
    names = {name: f"p{_numbered()}-{name}" for name in set(re.findall(r'id="([^"]+)"', text))}  # unique in the page
    pattern = re.compile(r'(id="|href="#|url\(#)([^")]+)')
    text = pattern.sub(lambda found: found[1] + names.get(found[2], found[2]), text)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "role=img", text, count=1)


def _numbered(counter: list[int] = [0]) -> int:  # noqa: B006  # the counter is meant to be shared
    counter[0] += 1
    return counter[0]


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


def _plain_numbers(axis: Any) -> None:
    """1, 2, 5, 10 and so on along a logarithmic scale."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


Bar = tuple[str, float, float, float]  # label, ratio, and how far the whisker reaches to either side


def _step_ratios(rows: Sequence[Row]) -> list[Bar]:
    best = results.best_peer(rows)
    bars = []
    for row in rows:
        peer = best.get((row.kind, row.name, row.pass_, row.dtype))
        if row.kind == "step" and row.program.startswith("gan_fast") and row.seconds is not None and peer:
            ratio = peer / row.seconds
            spread = ratio * row.uncertainty if math.isfinite(row.uncertainty) else 0.0
            bars.append((f"{row.name}: {row.program.removeprefix('gan_fast.')}", ratio, spread, spread))
    return bars


def _family_ratios(rows: Sequence[Row]) -> list[Bar]:
    families: dict[str, list[float]] = defaultdict(list)
    for row, ratio in results.ratios(rows):
        if row.kind == "layer":
            families[row.family if row.family != "own" else row.name].append(ratio)
    bars = []
    for family, found in families.items():
        mean = results.geometric_mean(found)
        bars.append((family, mean, mean - min(found), max(found) - mean))
    return bars


def _bars(bars: list[Bar]) -> str:
    if not bars:
        return ""
    bars = bars[:MOST_BARS]
    figure, axes = _figure(0.9 + 0.28 * len(bars))
    places = range(len(bars), 0, -1)
    colours = [GREEN if ratio >= 1 - results.SMALLEST_CHANGE else OURS for _, ratio, _, _ in bars]
    whiskers = [[low for _, _, low, _ in bars], [high for _, _, _, high in bars]]
    axes.barh(
        places, [bar[1] for bar in bars], xerr=whiskers, color=colours, ecolor=TEXT, capsize=2, height=0.65,
        error_kw={"alpha": 0.6, "linewidth": 0.8},
    )  # fmt: skip
    axes.set_yticks(places, [bar[0] for bar in bars])
    axes.axvline(1.0, color=TEXT, linewidth=1)
    axes.set_xlabel("times as fast as PyTorch's best")
    axes.set_xlim(left=0)
    axes.set_ylim(0.3, len(bars) + 0.7)
    return _svg(figure)


def _roofline(machine: Mapping[str, Any], rows: Sequence[Row]) -> str:
    dots = [row for row in rows if row.kind == "layer" and row.seconds and row.gflop and row.gbyte and row.peak]
    if not dots:
        return ""
    figure, axes = _figure(3.6)
    for ours, colour, label in ((False, THEIRS, "PyTorch"), (True, OURS, "gan_fast")):
        chosen = [row for row in dots if row.program.startswith("gan_fast") is ours]
        x = [(row.gflop or 0) / (row.gbyte or 1) for row in chosen]
        y = [(row.gflop or 0) / (row.seconds or 1) for row in chosen]
        axes.scatter(x, y, s=14, color=colour, alpha=0.7, linewidth=0, label=label)
    peak = 1e-9 * max(row.peak or 0 for row in dots)
    bandwidth = 1e-9 * float(machine.get("bandwidth") or 0)
    low = min((row.gflop or 0) / (row.gbyte or 1) for row in dots) / 2
    high = max((row.gflop or 0) / (row.gbyte or 1) for row in dots) * 2
    if bandwidth:
        knee = peak / bandwidth
        axes.plot([low, knee, max(high, 2 * knee)], [low * bandwidth, peak, peak], color=TEXT, linewidth=1)
    else:
        axes.plot([low, high], [peak, peak], color=TEXT, linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    axes.set_xlabel("floating-point operations for each byte of input, weight and output")
    axes.set_ylabel("GF/s of the definition's products")
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=8)
    return _svg(figure)


def _scaling(rows: Sequence[Row]) -> str:
    """Layers that were measured at three batches or more: the fastest time of each side for one image."""
    lines: dict[tuple[str, bool], dict[int, float]] = defaultdict(dict)
    for row in rows:
        found = re.fullmatch(r"(.*)[- ]b(\d+)", row.name)
        if found is None or row.seconds is None or row.pass_ not in ("", "forward") or row.dtype != "float32":
            continue
        batch, ours = int(found[2]), row.program.startswith("gan_fast")
        line = lines[found[1], ours]
        line[batch] = min(1e3 * row.seconds / batch, line.get(batch, math.inf))
    lines = {key: line for key, line in lines.items() if len(line) >= 3}
    if not lines:
        return ""
    figure, axes = _figure(3.6)
    names = list(dict.fromkeys(name for name, _ in lines))[:6]
    for number, name in enumerate(names):
        for ours in (False, True):
            points = sorted(lines.get((name, ours), {}).items())
            label = name.partition("/")[2] or name
            axes.plot(
                [batch for batch, _ in points], [ms for _, ms in points], color=OURS if ours else THEIRS,
                marker="os^Dv*"[number], markersize=4, linewidth=1, label=label if ours else None,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    batches = sorted({batch for line in lines.values() for batch in line})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    _plain_numbers(axes.yaxis)
    axes.set_xlabel("batch (orange: gan_fast, blue: PyTorch's best; forward)")
    axes.set_ylabel("ms for one image")
    axes.legend(frameon=False, labelcolor=TEXT, fontsize=7)
    return _svg(figure)


_FRAME = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>gan-fast bench</title><style>@STYLE@</style></head>
<body><main><h1>gan-fast bench</h1>
@BODY@
</main><script>@SCRIPT@</script></body></html>
"""

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1c1e; --line: #d8d8dc; --ours: #d55e0018; --bad: #b00020; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181c; --text: #e6e6e6; --line: #3a3d44; --ours: #d55e0030; --bad: #ff8a80; }
}
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.verdict { border-left: 4px solid #009e73; padding-left: 1rem; }
figure { margin: 0; } figure svg { width: 100%; max-width: 44rem; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--line); padding: 0.25rem 0.6rem; text-align: left; }
.sorts th { cursor: pointer; } .n { text-align: right; font-variant-numeric: tabular-nums; }
th[aria-sort=ascending]::after { content: " \\2191"; } th[aria-sort=descending]::after { content: " \\2193"; }
.ours { background: var(--ours); } .bad { color: var(--bad); }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const sort = () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const value = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
      });
      table.tBodies[0].append(...rows);
      heads.forEach(other => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}
"""
