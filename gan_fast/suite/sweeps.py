"""The pieces of work of a suite, visited over and over: a few turns of each, then of the next.

A machine that others use too has moods of some seconds, and a process has its luck with where its tensors lie. All
turns of one visit share both, so many visits with few turns tell more than one with many. A suite makes a fixed number
of visits; then, while its time lasts, it goes on with the pieces whose ratio is not known closely enough, without the
programs that this ratio is surely not about.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gan_fast.bench import interleaved
from gan_fast.suite import results
from gan_fast.suite.results import Row

__all__ = ["Piece", "sweep"]

#: A program that takes more than this many times as long as the first one has the turns of one visit only.
SLOW = 4.0
#: No ratio is sure enough before this many visits: a few may agree by chance.
SURE_VISITS = 8
#: Seconds between two lines of a report, where sweeps get short.
QUIET = 10.0

Programs = Mapping[str, Callable[[], Any]]


class Piece:
    """A piece of work and the programs that do it.

    Args:
        rows: the program's name -> its row; `begin` may fill in why it has no time.
        begin: makes the programs and checks their results; returns those to time, none if a result is wrong.
        again: makes the programs anew for a later visit, so that their tensors lie elsewhere; None keeps the first.
        turns: of each program in a visit.
        shortest: seconds that a turn lasts at least, by repeating what is shorter.
        sparing: let a slow program have the turns of one visit only.
    """

    def __init__(
        self,
        rows: Mapping[str, Row],
        begin: Callable[[], Programs],
        again: Callable[[], Programs] | None = None,
        *,
        turns: int,
        shortest: float = 0.0,
        sparing: bool = False,
    ) -> None:
        self.rows = list(rows.values())
        self.turns = turns
        self.visits = 0
        self._named = rows
        self._begin, self._again = begin, again
        self._shortest, self._sparing = shortest, sparing
        self._repeats = 1
        self._lasting: Programs = {}  # for later visits, without those that `again` makes
        self._names: set[str] = set()  # of who takes part in later visits
        self._measured: interleaved.Turns | None = None

    def visit(self, calibration: interleaved.Calibration) -> None:
        """A few turns more of each program, and the rows brought up to date."""
        self.visits += 1
        if self._measured is None:
            programs = self._begin()
            self._measured = interleaved.Turns(programs, calibration)
            self._settle(programs)
        else:
            programs = self._later()
        self._measured.visit(programs, self.turns, repeats=self._repeats)
        for name, found in self._measured.results().items():
            self._named[name].take(found)

    def _settle(self, programs: Programs) -> None:
        """A run of each program tells how often it is repeated in a turn, and whether one visit must do."""
        seconds = {}
        for name, run in programs.items():
            start = time.perf_counter()
            run()
            seconds[name] = time.perf_counter() - start
        if programs:
            self._repeats = max(1, math.ceil(self._shortest / min(seconds.values())))
            longest = SLOW * next(iter(seconds.values())) if self._sparing else math.inf
            self._names = {name for name in programs if seconds[name] <= longest}
            self._lasting = programs if self._again is None else {}

    def _later(self) -> Programs:
        if self._again is None or not self._names:
            return {name: run for name, run in self._lasting.items() if name in self._names}
        programs = {name: run for name, run in self._again().items() if name in self._names}
        for run in programs.values():
            run()  # the first run of new tensors is another program
        return programs

    def narrow(self) -> None:
        """Leave out of later visits PyTorch's programs that are surely slower than its fastest: nothing is compared
        with them, and the time is worth more to the others."""
        best = results.fastest_peers(self.rows)
        for name, row in self._named.items():
            fastest = best.get(row.piece)
            if row.seconds is None or fastest is None or row.program.startswith("gan_fast"):
                continue
            if row.program != results.AGAIN and results.ratio(fastest, row).interval[1] < 1:
                self._names.discard(name)

    def known(self, within: float) -> bool:
        """Whether the ratio that is told of this piece is sure enough; there may be none."""
        found = [ratio.uncertainty for _, ratio in results.ratios(self.rows)]
        return not found or (self.visits >= SURE_VISITS and max(found) <= within)


def sweep(
    pieces: Sequence[Piece],
    rounds: int,
    calibration: interleaved.Calibration,
    *,
    within: float = 0.0,
    until: float = 0.0,
    report: Callable[[str], None] | None = None,
) -> None:
    """Visit every piece until each of its programs has had its turns, then those whose ratio is not sure enough.

    Args:
        pieces: changed in place.
        rounds: turns of each program at least.
        calibration: of earlier measurements.
        within: the uncertainty of a ratio that is small enough, relative; 0: nothing is done for it.
        until: the time.perf_counter() after which no visit begins that is not due.
        report: gets a line for each sweep, later for some.
    """
    start = said = time.perf_counter()

    def say(visited: int) -> None:
        nonlocal said
        said = time.perf_counter()
        if report is not None:
            known = sum(piece.known(within) for piece in pieces)
            told = f"; {known} of {len(pieces)} ratios known to within {100 * within:g} %" if within else ""
            report(f"{said - start:.0f} s: visited {visited} of {len(pieces)}{told}")

    while due := [piece for piece in pieces if piece.visits * piece.turns < rounds]:
        for piece in due:
            piece.visit(calibration)
        say(len(due))
    while within and time.perf_counter() < until:
        wide = [piece for piece in pieces if not piece.known(within)]
        if not wide:
            break
        for piece in wide:
            if time.perf_counter() < until:
                piece.narrow()
                piece.visit(calibration)
        if time.perf_counter() - said > QUIET:
            say(len(wide))
