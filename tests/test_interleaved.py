"""gan_fast.bench: turns in a disturbed machine, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from native import kernels

from gan_fast import tuning
from gan_fast.bench import Calibration, interleaved, matrix_product, measure, paired


class Machine:
    """A clock, programs that move it on, and disturbances: times in which everything takes `slowdown` times as long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slowdown: float = 2.0) -> None:
        self.now = 0.0
        self.slowdown = slowdown
        self.disturbances: list[tuple[float, float]] = []
        self.work_done = 0
        monkeypatch.setattr(interleaved.time, "perf_counter", lambda: self.now)

    def spend(self, seconds: float) -> None:
        slow = any(begin <= self.now < end for begin, end in self.disturbances)
        self.now += seconds * (self.slowdown if slow else 1)

    def program(self, seconds: float) -> Callable[[], None]:
        return lambda: self.spend(seconds)

    def work(self, rounds: int) -> float:
        """1e-4 s and 5e6 operations a round: a peak of 50 GF/s."""
        self.work_done += rounds
        self.spend(1e-4 * rounds)
        return 5e6 * rounds


def test_the_fixed_work_is_long_enough_and_knows_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    calibration = Calibration(machine.work)
    assert calibration.rounds == 16  # the first power of two at or above 1 ms
    assert calibration.best == pytest.approx(1.6e-3)
    assert calibration.peak == pytest.approx(50e9)
    assert not calibration.disturbed(1.09 * calibration.best)
    assert calibration.disturbed(1.11 * calibration.best)
    assert not calibration.disturbed(1e-3) and calibration.best == 1e-3  # a new best
    assert calibration.peak == pytest.approx(80e9)


def test_disturbed_turns_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    calibration = Calibration(machine.work)
    begin = machine.now
    machine.disturbances = [(begin + 0.1, begin + 0.5), (begin + 1.0, begin + 1.2)]
    results = measure({"one": machine.program(0.01), "two": machine.program(0.02)}, 20, calibration=calibration)
    for name, seconds in (("one", 0.01), ("two", 0.02)):
        result = results[name]
        assert result["seconds"] == pytest.approx(seconds) and result["quartiles"] == pytest.approx([seconds] * 2)
        assert result["rounds"] >= 20 and result["disturbed"] > 0 and result["trusted"] is True
        assert result["peak"] == pytest.approx(50e9)


@pytest.mark.parametrize("slowdown", [1.05, 1.15])
def test_the_bound_is_ten_per_cent(monkeypatch: pytest.MonkeyPatch, slowdown: float) -> None:
    machine = Machine(monkeypatch, slowdown)
    calibration = Calibration(machine.work)
    machine.disturbances = [(machine.now, machine.now + 0.3)]
    result = measure({"one": machine.program(0.01)}, 30, calibration=calibration)["one"]
    assert (result["disturbed"] > 0) == (slowdown > 1.1)


def test_a_machine_that_is_never_quiet_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calibration saw better times: every turn is disturbed, all count, and the result says that it is not sure."""
    machine = Machine(monkeypatch)
    calibration = Calibration(machine.work)
    machine.disturbances = [(machine.now, float("inf"))]
    result = measure({"one": machine.program(0.01)}, 5, calibration=calibration)["one"]
    assert result["trusted"] is False
    assert (result["rounds"], result["disturbed"]) == (15, 15)
    assert result["seconds"] == pytest.approx(0.02)


def test_a_disturbance_within_the_turn_alone_is_seen_by_the_work_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    calibration = Calibration(machine.work)
    turns = 0

    def program() -> None:
        nonlocal turns
        turns += 1
        if turns == 4:  # begins in the middle of a run and lasts a little longer than it
            machine.disturbances = [(machine.now, machine.now + 0.021)]
        machine.spend(0.01)

    result = measure({"one": program}, 6, warmup=0, calibration=calibration)["one"]
    assert result["disturbed"] == 1 and result["quartiles"] == pytest.approx([0.01, 0.01])


def test_one_round_is_enough_where_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    results = measure({"one": machine.program(0.01)}, 1, repeats=3, calibration=Calibration(machine.work))
    assert results["one"]["rounds"] == 1 and results["one"]["trusted"] is True
    assert results["one"]["seconds"] == pytest.approx(0.01)


def test_the_matrix_product_counts_its_operations() -> None:
    assert matrix_product(8)(3) == 2 * 8**3 * 3
    assert Calibration().peak > 0


def test_multiply_adds_on_every_level_and_any_number_of_threads() -> None:
    module = kernels()
    before = module.isa()
    try:
        for level in module.isa_levels():
            module.set_isa(level)
            one = module.fma_peak(3, 1)
            lanes = {"avx2": 8, "portable": 4}.get(level, 16)
            assert one == 3 * 2 * 12 * 8 * lanes
            assert module.fma_peak(3, 5) == 5 * one
    finally:
        module.set_isa(before)
    for wrong in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="must be positive"):
            module.fma_peak(*wrong)
    assert tuning.calibration().peak > 0


def test_without_the_module_the_calibration_is_pytorch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning.backends, "extension", lambda: None)
    assert tuning.calibration().peak > 0 and torch.get_num_threads() > 0


def test_every_second_turn_is_in_the_opposite_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a machine that gets slower steadily meets both alike."""
    machine, order = Machine(monkeypatch), []

    def program(name: str) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            machine.spend(0.01)

        return run

    turns = interleaved.Turns("ab", Calibration(machine.work))
    turns.visit({name: program(name) for name in "ab"}, 3)
    assert "".join(order) == "abbaab"


def test_visits_are_kept_apart_and_disturbed_turns_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    turns = interleaved.Turns(["one", "two"], Calibration(machine.work))
    one, two = machine.program(0.01), machine.program(0.02)
    turns.visit({"one": one, "two": two}, 2)
    machine.disturbances = [(machine.now, machine.now + 0.13)]
    turns.visit({"one": one, "two": two}, 2)
    turns.visit({"one": one}, 4, repeats=3)
    found = turns.results()
    shapes = {name: [len(visit) for visit in result["times"]] for name, result in found.items()}
    assert shapes == {"one": [2, 2, 4], "two": [2, 2]}
    assert found["one"]["times"][1] == pytest.approx([0.02, 0.02]) and found["one"]["disturbed"] == 2
    assert found["one"]["seconds"] == pytest.approx(0.01) and found["one"]["rounds"] == 6 and found["one"]["trusted"]
    assert not found["two"]["trusted"], "two undisturbed turns of four are too few"
    assert paired.ratio(found["two"]["times"], found["one"]["times"]).value == pytest.approx(2.0)
