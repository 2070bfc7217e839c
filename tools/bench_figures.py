"""Pictures and Markdown from result files of `gan-fast bench`: layers by family, scaling, the report itself.

For tools/figures.py, which puts them into docs/ and README.md.
"""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from gan_fast.pages import plots
from gan_fast.suite import exponents, report, results

__all__ = ["layers", "level", "report_shots", "scaling"]

ROOT = Path(__file__).resolve().parent.parent
DOTS = 150  # to the inch
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: Name of a picture of the page -> (width, height, whether it is dark).
SHOTS = {"light": (1000, 1300, False), "dark": (1000, 1300, True), "phone": (390, 1300, True)}


def level(path: Path) -> str:
    """The instruction level of the machine that the result file comes from.

    Raises:
        ValueError: no result file.
    """
    return str(results.read(path)[0]["level"])


def layers(path: Path, docs: Path, dtype: str = "float32") -> str:
    """Draw docs/layers_LEVEL.png, in bfloat16 docs/layers_LEVEL_bfloat16.png: speed-ups by family with their quartiles;
    the text for README.md.

    Raises:
        ValueError: no result file, or one without layers in this dtype.
    """
    machine, rows = results.read(path)
    rows = [row for row in rows if row.dtype == dtype]
    families = report.families(rows, dtype)
    if not families:
        raise ValueError(f"{path}: expected layers in {dtype}, as `gan-fast bench layers` or `full` measure them")
    lines = ["| family | passes | geometric mean | quartiles | below 0.97x |", "|---|---:|---:|---:|---:|"]
    for family, found in families.items():
        lower, upper = report.quartiles(found)
        slower = sum(ratio < 1 - results.SMALLEST_CHANGE for ratio in found)
        mean = results.geometric_mean(found)
        lines.append(f"| {family} | {len(found)} | {mean:.2f}x | {lower:.2f} to {upper:.2f} | {slower} |")
    over = results.geometric_mean([results.geometric_mean(found) for found in families.values()])
    cells = [ratio for found in families.values() for ratio in found]
    slower = sum(ratio < 1 - results.SMALLEST_CHANGE for ratio in cells)
    lines.append(f"| over families | {len(cells)} | {over:.2f}x | | {slower} |")
    named = str(machine["level"]) + ("" if dtype == "float32" else f"_{dtype}")
    picture = f"layers_{named}.png"
    _save(
        plots.bars(report.family_bars(families), "times as fast as PyTorch's fastest memory format", 1.0),
        docs / picture,
    )
    told = (
        f"Every layer in each pass in {dtype} against PyTorch's fastest memory format in it; bars: geometric means, "
        "whiskers: quartiles."
    )
    told += "".join(f" {line[0].upper()}{line[1:]}." for line in results.verdict(rows) if not line.startswith(" "))
    head = f"![speed of layers by family, level {machine['level']}, {dtype}](docs/{picture})"
    return "\n".join([head, "", *lines, "", f"{told} {_source(machine, path)}"])


def scaling(path: Path, docs: Path) -> str:
    """Draw docs/scaling_AXIS.png for each axis; the text for README.md.

    Raises:
        ValueError: no result file, or none of `gan-fast bench scaling`.
    """
    machine, rows = results.read(path)
    found = exponents.lines(rows, machine)
    if not found:
        raise ValueError(f"{path}: expected the cells that `gan-fast bench scaling` measures")
    pictures = []
    for axis, curves in report.scaling_curves(rows, found).items():
        _save(plots.curves(curves, report.AXES[axis], "ms for one image"), docs / f"scaling_{axis}.png")
        pictures.append(f'<img src="docs/scaling_{axis}.png" alt="cost of an image against {axis}" width="49%">')
    lines = ["| cost of an image ~ axis^e | from, to | program | e | e between neighbours |", "|---|---|---|---:|---|"]
    bends = []
    for line in found:
        local = ", ".join(f"{part.exponent:+.2f}" for part in line.local)
        lines.append(f"| {line.axis} | {line.start:g}, {line.end:g} | {line.program} | {line.said} | {local} |")
        if line.program.startswith("gan_fast"):  # the others' are on the page that --report makes
            bends += [f"* {line.axis}, {line.program}: {exponents.sentence(bend)}" for bend in line.bends]
    told = (
        "A training step of a fully convolutional pair of networks of the DCGAN kind (gan_fast/suite/scaling.py); "
        "whiskers: quartiles; e with its standard error."
    )
    return "\n".join(["\n".join(pictures), "", *lines, "", *bends, "", f"{told} {_source(machine, path)}"])


def report_shots(path: Path, docs: Path) -> str:
    """Photograph the page of a result file in a browser: docs/report_light.png, _dark.png and _phone.png; the text for
    README.md.

    Raises:
        ValueError: no result file.
        RuntimeError: there is no browser, or it failed.
    """
    machine, rows = results.read(path)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise RuntimeError(f"--report-shots needs a browser: expected one of {', '.join(BROWSERS)} on the path")
    settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shot, (width, height, dark) in SHOTS.items():
            # Inside of another page, since the browser's own window is never as narrow as a telephone.
            style = f"position: absolute; left: 0; top: 0; border: 0; width: {width}px; height: {height}px"
            inner = html.escape(report.page(machine, rows, {**settings, "results": path.name}))
            outer = folder / f"{shot}.html"
            outer.write_text(f'<!DOCTYPE html><iframe srcdoc="{inner}" style="{style}"></iframe>', encoding="utf-8")
            target = docs / f"report_{shot}.png"
            command = [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--user-data-dir={folder / 'browser'}",
                f"--window-size={width},{height}", f"--screenshot={target}", outer.as_uri(),
            ]  # fmt: skip
            target.unlink(missing_ok=True)
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode != 0 or not target.exists():
                raise RuntimeError(f"{browser} made no {target.name}: {done.stderr[-500:]}")
            _crop(target, width)
    return "\n".join(
        [
            "<picture>",
            '  <source media="(prefers-color-scheme: dark)" srcset="docs/report_dark.png">',
            '  <img src="docs/report_light.png" alt="the page that --report writes" width="70%">',
            "</picture>",
            '<img src="docs/report_phone.png" alt="the same on a telephone, dark" width="27%">',
            "",
            f"The page that `gan-fast bench --report` makes, on a desk and on a telephone. {_source(machine, path)}",
        ]
    )


def _crop(path: Path, width: int) -> None:
    """The browser's picture is as wide as its narrowest window."""
    from PIL import Image

    with Image.open(path) as picture:
        cropped = picture.convert("RGB").crop((0, 0, min(width, picture.width), picture.height))
    cropped.quantize(128).save(path, optimize=True)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DOTS)


def _source(machine: dict[str, Any], path: Path) -> str:
    """The machine and the versions that the figures belong to, and their file."""
    name = path.resolve().relative_to(ROOT).as_posix()
    return (
        f"Machine: {machine['cpu']}, {machine['threads']} threads, level {machine['level']}; torch {machine['torch']}, "
        f"gan_fast {machine['gan_fast']} at {machine['commit']}; figures: [{path.name}]({name})."
    )
