"""Rows of measurements: files, the machine that they belong to, tables, and what changed between two files."""

from __future__ import annotations

import dataclasses
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
from gan_fast.cache import atomic_write
from gan_fast.machine import caches, cpu_model

__all__ = [
    "AGAIN",
    "PROCESSES",
    "Row",
    "best_peer",
    "compare",
    "describe",
    "geometric_mean",
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
#: Ratios of the same programs in two runs differ by this much on a shared machine.
BAND = 0.10
#: What must agree for two files' times to be comparable.
SAME_MACHINE = ("cpu", "cores", "threads", "level", "device")
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

    def take(self, result: Mapping[str, Any]) -> None:
        """Fill in what :func:`gan_fast.bench.measure` found."""
        lower, upper = result["quartiles"]
        self.seconds, self.quartiles = result["seconds"], (lower, upper)
        self.rounds, self.trusted, self.peak = result["rounds"], result["trusted"], result["peak"]


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
    content["rows"] = [dataclasses.asdict(row) for row in rows]
    text = json.dumps(content, indent=1) + "\n"
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


def _piece(row: Row) -> tuple[str, ...]:
    """What a row computes, whatever the memory format."""
    return (row.kind, row.name, row.pass_, row.dtype)


def _fastest_peer(rows: Iterable[Row]) -> dict[tuple[str, ...], Row]:
    best: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if row.seconds is not None and row.program != AGAIN and not row.program.startswith("gan_fast"):
            found = best.get(_piece(row))
            if found is None or row.seconds < (found.seconds or math.inf):
                best[_piece(row)] = row
    return best


def best_peer(rows: Iterable[Row]) -> dict[tuple[str, ...], float]:
    """The fastest time of a program that is not gan_fast's for each piece of work, over the memory formats."""
    return {piece: row.seconds or math.inf for piece, row in _fastest_peer(rows).items()}


def ratios(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """gan_fast's fastest row of each piece of work, and how many times faster than PyTorch's fastest it is."""
    best = best_peer(rows)
    fastest: dict[tuple[str, ...], Row] = {}
    for row in rows:
        work = _piece(row)
        if row.program.startswith("gan_fast") and row.seconds is not None and work in best:
            if work not in fastest or row.seconds < (fastest[work].seconds or math.inf):
                fastest[work] = row
    return [(row, best[work] / (row.seconds or math.inf)) for work, row in fastest.items()]


def suspects(rows: Sequence[Row]) -> list[Row]:
    """The layers' rows of :func:`ratios` whose 95 % interval lies below 1 - SMALLEST_CHANGE."""
    best = _fastest_peer(rows)
    found = []
    for row, ratio in ratios(rows):
        doubt = math.hypot(row.uncertainty, best[_piece(row)].uncertainty)
        if row.kind == "layer" and ratio * (1 + doubt) < 1 - SMALLEST_CHANGE:
            found.append(row)
    return found


def _no_time(row: Row) -> str:
    if row.missing:
        return f"missing: {row.missing}"
    return f"no time: {row.wrong or 'another result of this layer is wrong'}"


def table(rows: Sequence[Row]) -> str:
    """The rows as text; "x best" is PyTorch's fastest time, over the memory formats, by the row's."""
    best = best_peer(rows)
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
        times = best.get(_piece(row))
        ratio = f"{times / row.seconds:6.2f} x best" if times else ""
        spread = f"+-{100 * row.uncertainty:.0f}%" if math.isfinite(row.uncertainty) else ""
        doubt = "" if row.trusted else "  disturbed"
        lines.append(f"{what} {1e3 * row.seconds:9.3f} ms {spread:6s} {rate}  {ratio}{doubt}")
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """Geometric means of the layers' ratios by family, then over the families; slower cells; the steps' ratios."""
    families: dict[str, list[float]] = defaultdict(list)
    lines = []
    for row, ratio in ratios(rows):
        if row.kind == "layer":
            families[row.family if row.dtype == "float32" else f"{row.family} {row.dtype}"].append(ratio)
    for family, found in families.items():
        below = sum(ratio < 1 - SMALLEST_CHANGE for ratio in found)
        lines.append(
            f"{family:20s} x{geometric_mean(found):5.2f} of PyTorch's best, {below} of {len(found)} below 0.97"
        )
    if len(families) > 1:
        lines.append(f"{'over families':20s} x{geometric_mean([geometric_mean(v) for v in families.values()]):5.2f}")
    lines += verdict(rows)
    for row, ratio in ratios(rows):
        if row.kind == "step":
            lines.append(f"{row.name:20s} x{ratio:5.2f} of PyTorch's best, by {row.program}")
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
    lines += [f"  {row.name} {row.pass_} {row.format}: x{ratio:.2f} of PyTorch's best" for row, ratio in slower]
    first = {row.work: row.seconds for row in rows if row.program == "torch"}
    again = [(first.get(row.work) or math.nan) / row.seconds for row in rows if row.program == AGAIN and row.seconds]
    if again:
        below = sum(ratio < 1 - SMALLEST_CHANGE for ratio in again)
        lines.append(
            f"PyTorch against itself: x{geometric_mean(again):.3f}, {below} of {len(again)} below 0.97, "
            f"{sum(ratio > 1 + SMALLEST_CHANGE for ratio in again)} above 1.03"
        )
    return lines


def compare(before: Path, after: Path, *, any_machine: bool = False, band: float = BAND) -> tuple[str, int]:
    """What changed for gan_fast from one result file to another.

    A shared machine is faster at one time than at another, and so are all programs on it. So what is compared is each
    row's ratio to PyTorch's fastest program on the same work in the same file. It has changed if the two ratios differ
    by more than `band`, and by more than the four medians' uncertainties together. Rows from a disturbed machine are
    shown and not judged.

    Args:
        before, after: the files.
        any_machine: compare files of different machines too.
        band: relative change that counts as none, for what differs between two runs of the same programs.

    Returns:
        The table, and the number of gan_fast's rows that became slower or wrong.

    Raises:
        ValueError: no result files, of different machines, or without a row of gan_fast in common.
    """
    (old_machine, old_rows), (new_machine, new_rows) = read(before), read(after)
    lines = [
        f"{name}: gan_fast at {machine.get('commit')}, torch {machine.get('torch')}, {len(rows)} rows"
        for name, machine, rows in ((before, old_machine, old_rows), (after, new_machine, new_rows))
    ]
    different = [key for key in SAME_MACHINE if old_machine.get(key) != new_machine.get(key)]
    if different and not any_machine:
        said = "; ".join(f"{key} {old_machine.get(key)!r} and {new_machine.get(key)!r}" for key in different)
        raise ValueError(f"{before} and {after} are of different machines: {said}; expected files of one")
    old = {row.key: row for row in old_rows}
    both = [(old[row.key], row) for row in new_rows if row.key in old and row.program.startswith("gan_fast")]
    if not both:
        raise ValueError(
            f"{before} and {after} have no row of gan_fast in common: expected the same layers, steps and programs"
        )
    was_best, now_best = _fastest_peer(old_rows), _fastest_peer(new_rows)
    worse, better = 0, 0
    width = max(len(row.name) for _, row in both)
    for was, now in both:
        what = f"{now.name:{width}s} {now.pass_:11s} {now.format:13s} {now.program:30s}"
        if now.wrong and not was.wrong:
            worse += 1
            lines.append(f"{what} became wrong: {now.wrong}")
        was_peer, now_peer = was_best.get(_piece(was)), now_best.get(_piece(now))
        if was.seconds is None or now.seconds is None or was_peer is None or now_peer is None:
            continue
        first = (was_peer.seconds or math.nan) / was.seconds
        second = (now_peer.seconds or math.nan) / now.seconds
        rows = (was, now, was_peer, now_peer)
        allowed = max(band, math.hypot(*(row.uncertainty for row in rows)))
        change = second / first - 1
        verdict = "no change"
        if not all(row.trusted for row in rows):
            verdict = "disturbed, not judged"
        elif abs(change) > allowed:
            verdict = "SLOWER" if change < 0 else "faster"
            worse, better = worse + (change < 0), better + (change > 0)
        lines.append(
            f"{what} {first:6.2f} -> {second:6.2f} x best {100 * change:+6.1f}% (band {100 * allowed:.0f}%)  {verdict}"
        )
    lost, new = len(old) - len(set(old) & {row.key for row in new_rows}), len({row.key for row in new_rows} - set(old))
    lines.append(f"{len(both)} rows of gan_fast in common; of all rows, {lost} only in {before}, {new} only in {after}")
    lines.append(f"{worse} slower or wrong, {better} faster")
    return "\n".join(lines), worse
