"""gan_fast.suite.sweeps: who is visited how often, on a clock that the programs move."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from gan_fast.bench import interleaved
from gan_fast.suite import results, sweeps
from gan_fast.suite.results import Row


class Clock(interleaved.Calibration):
    """The time; a calibration that takes none of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.best, self._operations = 1.0, 1e12
        monkeypatch.setattr(interleaved.time, "perf_counter", lambda: self.now)

    def __call__(self) -> float:
        return self.best

    def program(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds

        return run


def rows(*programs: str) -> dict[str, Row]:
    return {name: Row("step", "a b8", name) for name in programs}


def test_turns_are_made_up_of_visits_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = Clock(monkeypatch), []

    def piece(name: str, turns: int) -> sweeps.Piece:
        def program(who: str) -> Callable[[], None]:
            def run() -> None:
                order.append(name + who)
                clock.now += 1.0

            return run

        return sweeps.Piece(
            rows("torch", "gan_fast"), lambda: {"torch": program("t"), "gan_fast": program("g")}, turns=turns
        )

    pieces, said = [piece("x", 2), piece("y", 3)], []
    sweeps.sweep(pieces, 3, clock, report=said.append)
    # Each begins with a run that is not a turn; every second turn is in the opposite order.
    assert order == "xt xg xt xg xg xt  yt yg yt yg yg yt yt yg  xt xg xg xt".split()
    assert [[len(visit) for visit in row.times or ()] for row in pieces[0].rows] == [[2, 2]] * 2
    assert [row.rounds for row in pieces[1].rows] == [3, 3] and pieces[1].visits == 1
    assert len(said) == 2 and said[0].endswith("visited 2 of 2") and said[1].endswith("visited 1 of 2")


def test_a_program_that_takes_long_has_one_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    seconds = {"textbook": 1.0, "JAX": 4.1, "TensorFlow": 3.9, "gan_fast.Trainer": 0.5}
    made = {name: clock.program(time) for name, time in seconds.items()}
    piece = sweeps.Piece(rows(*made), lambda: made, turns=2, sparing=True)
    sweeps.sweep([piece], 6, clock)
    assert {row.program: row.rounds for row in piece.rows} == {
        "textbook": 6, "JAX": 2, "TensorFlow": 6, "gan_fast.Trainer": 6,
    }  # fmt: skip
    jax, ours = piece.rows[1], piece.rows[3]
    found = results.ratio(jax, ours)
    assert found.pairs == 2 and found.value == pytest.approx(8.2)
    assert "2 turns" in results.table([jax])
    every = sweeps.Piece(rows(*made), lambda: made, turns=2)
    sweeps.sweep([every], 4, clock)
    assert [row.rounds for row in every.rows] == [4] * 4


def test_short_programs_are_repeated_and_new_ones_are_made_for_each_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made, runs = Clock(monkeypatch), 0, 0

    def make() -> dict[str, Callable[[], None]]:
        nonlocal made
        made += 1

        def run() -> None:
            nonlocal runs
            runs += 1
            clock.now += 1e-3

        return {"torch": run}

    piece = sweeps.Piece(rows("torch"), make, make, turns=2, shortest=4.5e-3)
    sweeps.sweep([piece], 6, clock)
    assert made == 3 and runs == 3 * (1 + 2 * 5)
    assert piece.rows[0].seconds == pytest.approx(1e-3) and piece.rows[0].rounds == 6


def test_a_wrong_result_ends_the_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = rows("torch", "gan_fast")

    def wrong() -> dict[str, Callable[[], None]]:
        found["gan_fast"].wrong = "differs"
        return {}

    piece = sweeps.Piece(found, wrong, lambda: pytest.fail("made again"), turns=2)
    sweeps.sweep([piece], 4, clock, within=0.01, until=math.inf)
    assert [row.seconds for row in piece.rows] == [None, None] and piece.known(0.01)


def test_time_goes_to_the_ratios_that_are_not_known_and_to_who_they_are_about(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    draw = random.Random(0)

    def moody() -> None:
        clock.now += draw.uniform(0.8, 1.2)

    calm = sweeps.Piece(
        rows("torch", "gan_fast"), lambda: {"torch": clock.program(2.0), "gan_fast": clock.program(1.0)}, turns=2
    )
    three = {"slow": clock.program(9.0), "torch": clock.program(1.5), "gan_fast": moody}
    shaken = sweeps.Piece(rows(*three), lambda: three, turns=2)
    said: list[str] = []
    sweeps.sweep([calm, shaken], 4, clock, within=0.01, until=400.0, report=said.append)
    assert calm.visits == sweeps.SURE_VISITS, "fewer are not believed, however well they agree"
    assert shaken.visits > 2 * sweeps.SURE_VISITS and 400.0 <= clock.now < 410.0
    turns = {row.program: row.rounds for row in shaken.rows}
    assert turns["slow"] == 4 and turns["torch"] == turns["gan_fast"] == 2 * shaken.visits
    assert "; 0 of 2 ratios known to within 1 %" in said[0] and "visited 1 of 2; 1 of 2 ratios known" in said[-1]
    late = sweeps.Piece(rows(*three), lambda: three, turns=2)
    sweeps.sweep([late], 2, clock, within=0.01, until=clock.now)
    assert late.visits == 1, "what is due is done, whatever the time"


def test_pytorch_measured_twice_is_no_slower_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    made = {name: clock.program(time) for name, time in (("torch", 1.0), (results.AGAIN, 1.1), ("gan_fast", 2.0))}
    piece = sweeps.Piece(rows(*made), lambda: made, turns=4)
    piece.visit(clock)
    piece.narrow()
    piece.visit(clock)
    assert [row.rounds for row in piece.rows] == [8, 8, 8]
