"""Rows of measurements: files, the machine that they belong to, ratios and tables."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import gan_fast
from gan_fast import backends
from gan_fast.bench import paired
from gan_fast.cache import atomic_write
from gan_fast.machine import caches, cpu_model

__all__ = [
    "AGAIN",
    "PROCESSES",
    "Row",
    "describe",
    "fastest_peers",
    "findings",
    "geometric_mean",
    "ratio",
    "ratios",
    "read",
    "slug",
    "summary",
    "suspects",
    "table",
    "verdict",
    "write",
]

#: Of result files; another one's are refused.
FORMAT = "gan_fast bench 1"
#: A cell counts as slower below 1 - this.
SMALLEST_CHANGE = 0.03
#: A cell counts as slower if the ratio's 95 % interval lies below 1 - SMALLEST_CHANGE in so many processes.
PROCESSES = 3
#: PyTorch a second time, as if it were another program: what the measurement itself makes of equal programs.
AGAIN = "torch, again"
_HOME = Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Row:
    """One program on one piece of work. `seconds` and what follows are of one run; None where `wrong` or `missing`
    says why."""

    kind: str  # "layer", "step" or "scaling"
    name: str  # which layer; network and batch of a step; axis and place of a cell
    program: str
    pass_: str = ""
    format: str = ""
    dtype: str = "float32"
    family: str = ""
    seconds: float | None = None
    quartiles: tuple[float, float] | None = None
    rounds: int = 0
    trusted: bool = True
    peak: float | None = None  # multiply-adds x 2 in a second that the machine did at its best meanwhile
    gflop: float | None = None  # of the definition
    gbyte: float | None = None  # input, weight and output, once each
    images: int | None = None
    at: float | None = None  # place on the axis `family`
    working_set: int | None = None  # bytes of the largest layer's input, weight and output
    wrong: str = ""
    missing: str = ""  # why a peer is not here
    served: bool | None = None  # of a layer: whether a kernel of ours ran
    slower_in: int | None = None  # of a layer that looked slower: so many of PROCESSES confirm it
    times: list[list[float]] | None = None  # of all turns, by visits; rows of one piece belong together, turn by turn

    @property
    def piece(self) -> tuple[str, ...]:
        """What was measured, whoever did it and in whatever memory format."""
        return (self.kind, self.name, self.pass_, self.dtype)

    @property
    def work(self) -> tuple[str, ...]:
        """What was measured, whoever did it."""
        return (self.kind, self.name, self.pass_, self.format, self.dtype)

    @property
    def key(self) -> tuple[str, ...]:
        """What a row is found by in another file."""
        return (*self.work, self.program)

    @property
    def uncertainty(self) -> float:
        """Of the median, relative: that of a box plot's notch (McGill, Tukey, Larsen 1978), 1.57 IQR / sqrt(n)."""
        if self.seconds is None or self.quartiles is None or self.rounds < 2:
            return math.inf
        return 1.57 * (self.quartiles[1] - self.quartiles[0]) / math.sqrt(self.rounds) / self.seconds

    def check(self) -> None:
        """Types and numbers of a row that was read.

        Raises:
            TypeError, ValueError: something else than `write` writes.
        """
        for word in (*self.key, self.family, self.wrong, self.missing):
            if not isinstance(word, str):
                raise TypeError(f"{word!r} is no text")
        if self.quartiles is not None:
            lower, upper = self.quartiles
            self.quartiles = (float(lower), float(upper))
        if self.seconds is not None and not 0 < float(self.seconds) < math.inf:
            raise ValueError(f"seconds={self.seconds!r}")
        for visit in self.times or ():
            if not visit or not all(0 < float(time) < math.inf for time in visit):
                raise ValueError(f"times of a visit: {visit!r}")

    def take(self, result: Mapping[str, Any]) -> None:
        """Fill in what :func:`gan_fast.bench.measure` found."""
        lower, upper = result["quartiles"]
        self.seconds, self.quartiles = result["seconds"], (lower, upper)
        self.rounds, self.trusted, self.peak = result["rounds"], result["trusted"], result["peak"]
        self.times = [[float(f"{time:.4g}") for time in visit] for visit in result["times"]]


def commit() -> str:
    """The commit's short hash, with "-dirty" if tracked files differ from it; "unknown" outside a clone."""
    if not (_HOME / ".git").exists():
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        found = subprocess.run(command, cwd=_HOME, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def describe(device: str = "cpu") -> dict[str, Any]:
    """Everything that a figure means nothing without: processor, threads, level, versions, commit."""
    module = backends.extension()
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "caches": caches(),
        "level": module.isa() if module is not None else None,
        "build": dict(module.build_info()) if module is not None else None,
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "torch": str(torch.__version__),
        "gan_fast": gan_fast.__version__,
        "commit": commit(),
    }


def slug() -> str:
    """A folder name for this machine: processor, instruction level and number of cores (virtual machines of unlike
    processors may all be called "AMD EPYC")."""
    module = backends.extension()
    level = module.isa() if module is not None else "pure"
    return f"{re.sub(r'[^a-z0-9]+', '-', cpu_model().lower()).strip('-')}-{level}-{os.cpu_count()}cores"


def write(
    path: Path, rows: Iterable[Row], machine: Mapping[str, Any], findings: Mapping[str, Any] | None = None,
    **settings: Any,
) -> None:  # fmt: skip
    """A result file: format, machine, settings, findings (what the rows come to, for other readers), rows."""
    content: dict[str, Any] = {"format": FORMAT, "machine": dict(machine), "settings": settings}
    if findings:
        content["findings"] = dict(findings)
    # A row is a line: with every turn's time in a line of its own nobody could read the rest.
    lines = ",\n".join(f"  {json.dumps(dataclasses.asdict(row))}" for row in rows)
    text = f'{json.dumps(content, indent=1)[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    atomic_write(path, save)


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """(machine, rows) of a file that `write` made.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        rows = [Row(**row) for row in content["rows"]]
        for row in rows:
            row.check()
        keys = [row.key for row in rows]
        if len(set(keys)) < len(keys):
            raise ValueError("a row is there twice")
        return dict(content["machine"]), rows
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no result file of gan-fast bench ({error}); expected format {FORMAT!r}") from None


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm."""
    return math.exp(sum(math.log(value) for value in values) / len(values))


def fastest_peers(rows: Iterable[Row]) -> dict[tuple[str, ...], Row]:
    """The fastest row of a program that is not gan_fast's for each piece of work, over the memory formats."""
    return _fastest(row for row in rows if row.program != AGAIN and not row.program.startswith("gan_fast"))


def _fastest(rows: Iterable[Row]) -> dict[tuple[str, ...], Row]:
    """Of the rows with times, by piece of work. Each is compared with the first one by their turns, as ratios are: the
    medians of two programs may be of different moods of the machine."""
    pieces: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row.seconds is not None:
            pieces[row.piece].append(row)
    return {piece: max(found, key=functools.partial(_value, found[0])) for piece, found in pieces.items()}


def _value(theirs: Row, ours: Row) -> float:
    """How many times as fast `ours` is, of two rows with times."""
    if theirs.times and ours.times:
        return paired.value(theirs.times, ours.times)
    return (theirs.seconds or math.nan) / (ours.seconds or math.nan)


def ratio(theirs: Row, ours: Row) -> paired.Ratio:
    """How many times as fast `ours` is, of two rows with times: by the turns that both took, or from the medians where
    a file does not have them."""
    if theirs.times and ours.times:
        return paired.ratio(theirs.times, ours.times)
    value = _value(theirs, ours)
    doubt = value * math.hypot(theirs.uncertainty, ours.uncertainty)
    return paired.Ratio(value, (max(0.0, value - doubt), value + doubt))


def ratios(rows: Sequence[Row]) -> list[tuple[Row, paired.Ratio]]:
    """gan_fast's fastest row of each piece of work, and how many times as fast as PyTorch's fastest it is."""
    best, ours = fastest_peers(rows), _fastest(row for row in rows if row.program.startswith("gan_fast"))
    return [(row, ratio(best[piece], row)) for piece, row in ours.items() if piece in best]


def findings(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """:func:`ratios` for other readers of a result file."""
    best = fastest_peers(rows)
    names = ("kind", "name", "pass_", "dtype")
    return [
        {
            **dict(zip(names, row.piece, strict=True)), "program": f"{row.program} {row.format}".strip(),
            "against": f"{best[row.piece].program} {best[row.piece].format}".strip(), **dataclasses.asdict(found),
        }
        for row, found in ratios(rows)
        if math.isfinite(found.uncertainty)
    ]  # fmt: skip


def suspects(rows: Sequence[Row]) -> list[Row]:
    """The layers' rows of :func:`ratios` whose 95 % interval lies below 1 - SMALLEST_CHANGE."""
    found = ratios(rows)
    return [row for row, ratio in found if row.kind == "layer" and ratio.interval[1] < 1 - SMALLEST_CHANGE]


def percent(uncertainty: float) -> str:
    """+-3%, or nothing if it is not known."""
    return f"+-{100 * uncertainty:.0f}%" if math.isfinite(uncertainty) else ""


def _no_time(row: Row) -> str:
    if row.missing:
        return f"missing: {row.missing}"
    return f"no time: {row.wrong or 'another result of this layer is wrong'}"


def table(rows: Sequence[Row]) -> str:
    """The rows as text; "x best" is how many times as fast as PyTorch's fastest program, over the memory
    formats, the row's is, by the turns that both took."""
    best = fastest_peers(rows)
    width = max((len(row.name) for row in rows), default=4)
    lines = []
    for row in rows:
        what = f"{row.name:{width}s} {row.pass_:11s} {row.format:13s} {row.program:30s}"
        if row.seconds is None:
            lines.append(f"{what} {_no_time(row)}")
            continue
        rate = f"{row.images:.0f} images, {row.images / row.seconds:7.0f}/s" if row.images else ""
        if row.gflop:
            rate += f"{row.gflop / row.seconds:7.0f} GF/s"
            rate += f" {100e9 * row.gflop / row.seconds / row.peak:4.0f}% of peak" if row.peak else ""
        times = ""
        if row.piece in best:
            found = ratio(best[row.piece], row)
            times = f"{found.value:6.2f} x best {percent(found.uncertainty) if best[row.piece] is not row else ''}"
        turns = f"{row.rounds} turns" + ("" if row.trusted else ", disturbed")
        spread = percent(row.uncertainty)
        lines.append(f"{what} {1e3 * row.seconds:9.3f} ms {spread:6s} {rate}  {times:18s} {turns}")
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """Geometric means of the layers' ratios by family, then over the families; slower cells; the steps' ratios."""
    families: dict[str, list[float]] = defaultdict(list)
    lines = []
    for row, ratio in ratios(rows):
        if row.kind == "layer":
            families[row.family if row.dtype == "float32" else f"{row.family} {row.dtype}"].append(ratio.value)
    for family, found in families.items():
        below = sum(value < 1 - SMALLEST_CHANGE for value in found)
        lines.append(
            f"{family:20s} x{geometric_mean(found):5.2f} of PyTorch's best, {below} of {len(found)} below 0.97"
        )
    if len(families) > 1:
        lines.append(f"{'over families':20s} x{geometric_mean([geometric_mean(v) for v in families.values()]):5.2f}")
    lines += verdict(rows)
    for row, ratio in ratios(rows):
        if row.kind == "step":
            said = f"x{ratio.value:5.2f} {percent(ratio.uncertainty)}".rstrip()
            lines.append(f"{row.name:20s} {said} of PyTorch's best, by {row.program}")
    wrong = sum(bool(row.wrong) for row in rows)
    if wrong:
        lines.append(f"{wrong} results are WRONG: they have no times")
    return "\n".join(lines)


def verdict(rows: Sequence[Row]) -> list[str]:
    """Of the layers: how many our kernels serve, which are slower by the rule, and what equal programs look like."""
    lines = []
    layers = [(row, ratio) for row, ratio in ratios(rows) if row.kind == "layer"]
    known = [row for row, _ in layers if row.served is not None]
    if known:
        ours = sum(bool(row.served) for row in known)
        lines.append(f"our kernels serve {ours} of {len(known)} layer passes, PyTorch the others")
    checked = [row for row, _ in layers if row.slower_in is not None]
    slower = [(row, ratio) for row, ratio in layers if row.slower_in == PROCESSES]
    if checked or known:
        said = f"95 % interval below 0.97 in {PROCESSES} processes"
        lines.append(f"slower ({said}): {len(slower)} of {len(layers)}; {len(checked)} looked so in the first process")
    lines += [f"  {row.name} {row.pass_} {row.format}: x{ratio.value:.2f} of PyTorch's best" for row, ratio in slower]
    first = {row.work: row for row in rows if row.program == "torch" and row.seconds}
    again = [ratio(first[row.work], row).value for row in rows if row.program == AGAIN and row.seconds]
    if again:
        below = sum(value < 1 - SMALLEST_CHANGE for value in again)
        lines.append(
            f"PyTorch against itself: x{geometric_mean(again):.3f}, {below} of {len(again)} below 0.97, "
            f"{sum(value > 1 + SMALLEST_CHANGE for value in again)} above 1.03"
        )
    return lines
