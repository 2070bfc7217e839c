"""How the cost of an image grows along an axis: exponents, where they change, and which measured fact says why.

A line is one program along one axis. Its exponent e (cost ~ x^e) is fitted by least squares in logarithms; between
neighbours there is a local one. The line bends where two local exponents in a row differ by more than
:data:`SMALLEST_BEND` and by more than twice their uncertainty; where no two do, two powers are fitted, and may.
Reasons are looked for among what was measured: the fixed cost of a step's calls, the largest layer's tensors against
the caches, the work of an image, and the share of the machine's peak.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gan_fast.suite.results import Row

__all__ = ["FIXED", "Bend", "Line", "Local", "fit", "lines", "text"]

#: The axis whose one row is a step with next to no arithmetic.
FIXED = "fixed cost"
#: Smaller changes of the exponent are none.
SMALLEST_BEND = 0.2
#: A fixed cost below this share of a step explains nothing.
NOTABLE = 0.10
#: A smaller change of the work's own exponent explains nothing.
SMALLEST_WORK = 0.1
#: Shares of the peak that differ by less than this factor are the same.
SAME_RATE = 1.15


@dataclasses.dataclass(frozen=True)
class Local:
    """The exponent between two neighbours; `error` comes from the uncertainty of both medians."""

    start: float
    end: float
    exponent: float
    error: float


@dataclasses.dataclass(frozen=True)
class Bend:
    """Where the exponent changes, from one neighbour to the next; or `gradual`: nowhere at once, and the exponents are
    those of two powers fitted up to here and from here on."""

    at: float
    before: float
    after: float
    gradual: bool
    why: str


@dataclasses.dataclass(frozen=True)
class Line:
    """One program along one axis; `error` is the fit's standard error, None of two points."""

    axis: str
    program: str
    start: float
    end: float
    exponent: float
    error: float | None
    local: tuple[Local, ...]
    bends: tuple[Bend, ...]

    @property
    def said(self) -> str:
        """The exponent with its error."""
        return f"{self.exponent:+.2f}" + ("" if self.error is None else f" ± {self.error:.2f}")


def fit(points: Sequence[tuple[float, float]]) -> tuple[float, float | None]:
    """(exponent, its standard error) of y ~ x^exponent, by least squares in logarithms; the error of two points is
    None.

    Raises:
        ValueError: fewer than two different x.
    """
    if len({x for x, _ in points}) < 2:
        raise ValueError(f"points: got {list(points)}, expected at least two different x")
    xs, ys = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    slope, intercept = statistics.linear_regression(xs, ys)
    if len(points) == 2:
        return slope, None
    rest = sum((y - intercept - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    return slope, math.sqrt(rest / (len(points) - 2) / _spread(points))


def lines(rows: Sequence[Row], machine: Mapping[str, Any]) -> list[Line]:
    """The lines of all axes and programs that were measured at two places or more.

    Args:
        rows: of :func:`gan_fast.suite.scaling.measure`; others are passed over.
        machine: as :func:`gan_fast.suite.results.describe` gives it: its caches and threads.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    fixed: dict[str, float] = {}
    for row in rows:
        if row.kind != "scaling" or row.seconds is None or row.at is None or not row.images:
            continue
        if row.family == FIXED:
            fixed[row.program] = row.seconds
        else:
            found.setdefault((row.family, row.program), []).append(row)
    made = []
    for (axis, program), measured in found.items():
        measured.sort(key=lambda row: row.at or 0)
        if len(measured) < 2:
            continue
        exponent, error = fit([(row.at or 0, _cost(row)) for row in measured])
        local = tuple(_local(one, other) for one, other in itertools.pairwise(measured))
        # What calls cost was measured at one number of threads.
        calls = None if axis == "threads" else fixed.get(program)
        bends = tuple(_bends(measured, local, calls, _caches(machine)))
        made.append(Line(axis, program, local[0].start, local[-1].end, exponent, error, local, bends))
    return made


def text(found: Sequence[Line]) -> str:
    """The lines as text."""
    said = []
    for line in found:
        where = f"{line.start:g} to {line.end:g}"
        said.append(f"cost of an image ~ {line.axis}^e, {where}, {line.program}: e = {line.said}")
        local = ", ".join(f"{part.start:g}-{part.end:g} {part.exponent:+.2f}" for part in line.local)
        said.append(f"  between neighbours: {local}")
        said += [f"  {sentence(bend)}" for bend in line.bends]
    return "\n".join(said)


def sentence(bend: Bend) -> str:
    """A bend in words."""
    how = "bends gradually around" if bend.gradual else "bends at"
    return f"{how} {bend.at:g} ({bend.before:+.2f} before, {bend.after:+.2f} after): {bend.why}"


def _cost(row: Row) -> float:
    return (row.seconds or math.nan) / (row.images or math.nan)


def _work(row: Row) -> float:
    return (row.gflop or math.nan) / (row.images or math.nan)


def _local(one: Row, other: Row) -> Local:
    start, end = one.at or math.nan, other.at or math.nan
    error = math.hypot(one.uncertainty, other.uncertainty) / math.log(end / start)
    return Local(start, end, _exponent(one, other, _cost), error)


def _exponent(one: Row, other: Row, of: Callable[[Row], float]) -> float:
    return math.log(of(other) / of(one)) / math.log((other.at or math.nan) / (one.at or math.nan))


def _bends(rows: Sequence[Row], local: Sequence[Local], calls: float | None, caches: Mapping[str, int]) -> list[Bend]:
    found = []
    for middle, (before, after) in enumerate(itertools.pairwise(local), 1):
        if _differ(before, after):
            around = (rows[middle - 1], rows[middle], rows[middle + 1])
            why = _why(around, after.exponent > before.exponent, calls, caches)
            found.append(Bend(before.end, before.exponent, after.exponent, False, why))
    if not found and len(rows) > 3:
        middle, before, after = _two_pieces(rows, local)
        if _differ(before, after):
            around = (rows[middle // 2], rows[middle], rows[(middle + len(rows)) // 2])  # the middles of both pieces
            why = _why(around, after.exponent > before.exponent, calls, caches)
            found.append(Bend(before.end, before.exponent, after.exponent, True, why))
    return found


def _differ(one: Local, other: Local) -> bool:
    change = abs(other.exponent - one.exponent)
    return change >= SMALLEST_BEND and change > 2 * math.hypot(one.error, other.error)


def _two_pieces(rows: Sequence[Row], local: Sequence[Local]) -> tuple[int, Local, Local]:
    """The place at which two powers, one up to it and one from it on, fit the line best; and the two."""
    best: tuple[float, int, Local, Local] | None = None
    for middle in range(1, len(rows) - 1):
        pieces, rest = [], 0.0
        for part, of in ((rows[: middle + 1], local[:middle]), (rows[middle:], local[middle:])):
            points = [(row.at or 0, _cost(row)) for row in part]
            exponent, error = fit(points)
            rest += (len(points) - 2) * (error or 0.0) ** 2 * _spread(points)
            pieces.append(Local(points[0][0], points[-1][0], exponent, of[0].error if error is None else error))
        if best is None or rest < best[0]:
            best = (rest, middle, pieces[0], pieces[1])
    assert best is not None, "three rows or more"
    return best[1:]


def _spread(points: Sequence[tuple[float, float]]) -> float:
    xs = [math.log(x) for x, _ in points]
    mean = statistics.fmean(xs)
    return sum((x - mean) ** 2 for x in xs)


def _why(rows: tuple[Row, Row, Row], steeper: bool, calls: float | None, caches: Mapping[str, int]) -> str:
    """What changed from one side of a bend to the other that can be its cause; `rows`: before it, at it, after it."""
    low, middle, high = rows
    reasons = []
    if steeper and calls is not None:
        shares = [min(1.0, calls / (row.seconds or math.nan)) for row in (low, high)]
        if shares[0] >= NOTABLE and shares[0] - shares[1] >= NOTABLE:
            reasons.append(
                f"the fixed cost of a step's calls ({1e3 * calls:.2f} ms) is {shares[0]:.0%} of the step at {low.at:g} "
                f"and {shares[1]:.0%} at {high.at:g}"
            )
    rates = [_share(row) for row in rows]
    sets = low.working_set, high.working_set
    # A cache that is outgrown while the rate goes on rising is no cause.
    if steeper and sets[0] and sets[1] and not (all(rates) and rates[2] > SAME_RATE * rates[1]):
        for name, size in caches.items():
            if sets[0] <= size < sets[1]:
                reasons.append(
                    f"the largest layer's tensors outgrow {name} ({_mib(size)}): {_mib(sets[0])} at {low.at:g}, "
                    f"{_mib(sets[1])} at {high.at:g}"
                )
    if low.gflop and middle.gflop and high.gflop:
        grows = [_exponent(low, middle, _work), _exponent(middle, high, _work)]
        change = grows[1] - grows[0]
        if abs(change) >= SMALLEST_WORK and (change > 0) is steeper:
            reasons.append(f"an image's work itself grows by {grows[0]:+.2f} before and {grows[1]:+.2f} after")
    if all(rates):
        cause = _rate(rates[1] / rates[0], rates[2] / rates[1], steeper)
        told = ", ".join(f"{rate:.0%} of the peak at {row.at:g}" for rate, row in zip(rates, rows, strict=True))
        if not cause and not reasons:
            return f"no measured fact tells why ({told})"
        reasons.append(f"{cause}: {told}" if cause else told)
    return "; ".join(reasons) or "no measured fact tells why"


def _rate(first: float, second: float, steeper: bool) -> str:
    """What the rate does that makes a line bend, from its growth before and after."""
    if steeper and second < 1 / SAME_RATE:
        return "the rate falls"
    if steeper and first > SAME_RATE:
        return "the rate rises no further" if second < SAME_RATE else "the rate rises more slowly"
    return "the rate rises" if not steeper and second > SAME_RATE else ""


def _share(row: Row) -> float:
    """Of the machine's peak at this number of threads."""
    return 1e9 * row.gflop / row.seconds / row.peak if row.gflop and row.seconds and row.peak else 0.0


def _caches(machine: Mapping[str, Any]) -> dict[str, int]:
    """What the threads' own second-level caches hold together, and the shared third level."""
    caches, threads = machine.get("caches") or {}, int(machine.get("threads") or 1)
    found = {}
    if "L2" in caches:
        found[f"the L2 caches of {threads} threads" if threads > 1 else "the L2 cache"] = threads * caches["L2"]
    if "L3" in caches:
        found["the L3 cache"] = caches["L3"]
    return found


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
