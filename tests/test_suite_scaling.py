"""gan_fast.suite.scaling and .exponents: what a step comes to, the fitted exponents, where lines bend and why."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gan_fast.cli import main
from gan_fast.machine import caches
from gan_fast.suite import exponents, peers, results, scaling, steps
from gan_fast.suite.results import Row

SMALL = {"batch": (1, 2), "side": (8, 12), "width": (2, 4), "threads": ()}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "AXES", SMALL)
    monkeypatch.setattr(scaling, "STANDING", dict.fromkeys(SMALL, (2, 8, 2)))


@pytest.mark.parametrize(("batch", "side", "width"), [(2, 28, 8), (3, 32, 30)])
def test_work_is_what_torch_counts_in_the_step_without_waste(batch: int, side: int, width: int) -> None:
    cell = scaling.Cell("batch", batch, batch, side, width, 1)
    step = peers.Frozen(*scaling.convolutional(width), apart=True)
    with FlopCounterMode(display=False) as counter:
        step.step(*scaling.inputs(cell))
    work = scaling.work(cell)
    assert work.flops == counter.get_total_flops()
    half, quarter = batch * (side // 2) ** 2 * width, batch * (side // 4) ** 2 * 2 * width
    last = half + batch * side**2 * 3 + 3 * width * 16
    assert work.largest == 4 * max(half + quarter + 2 * width * width * 16, last)


def test_an_axis_moves_alone() -> None:
    found = scaling.cells()
    most = torch.get_num_threads()
    assert found[0].axis == exponents.FIXED
    for axis, places in scaling.AXES.items():
        mine = [cell for cell in found if cell.axis == axis]
        assert [cell.at for cell in mine] == [getattr(cell, axis) for cell in mine]
        assert tuple(cell.at for cell in mine) == (places or tuple(cell.threads for cell in mine))
        others = {tuple(getattr(cell, name) for name in scaling.AXES if name != axis) for cell in mine}
        assert len(others) == 1 and len({cell.name for cell in mine}) == len(mine)
        assert max(cell.threads for cell in mine) == most
    assert scaling.AXES["batch"][0] == 1 and scaling.AXES["batch"][-1] == 512
    assert scaling.AXES["side"][0] == 28 and scaling.AXES["side"][-1] == 256
    assert scaling.AXES["width"][0] == 16 and scaling.AXES["width"][-1] == 256
    with pytest.raises(ValueError, match="axis 'depth': expected one of batch, side, width, threads"):
        scaling.cells(["depth"])


def test_every_cell_is_measured_written_and_told(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, file = torch.get_num_threads(), tmp_path / "a.json"
    assert main(["bench", "scaling", "--rounds", "2", "--json", str(file)]) == 0
    assert torch.get_num_threads() == before
    printed, logged = capsys.readouterr()
    assert "the discriminator in a step" not in logged
    machine, rows = results.read(file)
    assert {row.family for row in rows} == {exponents.FIXED, *SMALL} and all(row.seconds for row in rows)
    assert {row.program for row in rows} == set(scaling.PROGRAMS) and all(row.gflop and row.working_set for row in rows)
    assert {(row.family, row.at) for row in rows} >= {("batch", 1.0), ("side", 12.0), ("width", 4.0), ("threads", 1.0)}
    found = json.loads(file.read_text())["findings"]["scaling"]
    assert len(found) == 3 * len(scaling.PROGRAMS) + (3 if before > 1 else 0)
    line = exponents.lines(rows, machine)[0]
    assert found[0]["exponent"] == pytest.approx(line.exponent) and found[0]["local"][0]["start"] == 1.0
    assert f"cost of an image ~ batch^e, 1 to 2, {steps.BASELINE}: e = {line.said}" in printed


def test_a_wrong_step_gets_no_time(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = steps.first_losses

    def lying(programs: dict[str, object]) -> dict[str, list[float]]:
        losses = found(programs)  # type: ignore[arg-type]  # as it was called
        return {name: [value + ("Trainer" in name) for value in values] for name, values in losses.items()}

    monkeypatch.setattr(steps, "first_losses", lying)
    (rows,) = scaling.measure(scaling.cells([])[:1], rounds=2)
    assert [bool(row.wrong) for row in rows] == [False, False, True] and rows[2].seconds is None and rows[0].seconds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--axis", "batch"], "--axis batch: expected the preset scaling"),
        (["scaling", "--axis", "depth"], "axis 'depth': expected one of batch"),
        (["scaling", "--model", "dcgan28"], "--model: the preset scaling has its own networks"),
        (["scaling", "--precision", "bf16"], "--precision: the preset scaling has its own networks"),
    ],
)
def test_wrong_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options]) == 2
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ exponents


def line(costs: dict[float, float], noise: float = 0.0, **more: list[float]) -> list[Row]:
    """Rows of one program along "side": milliseconds of a step of one image by place."""
    rows = []
    for number, (at, cost) in enumerate(costs.items()):
        seconds = 1e-3 * cost
        row = Row("scaling", f"side {at:g}", "gan_fast.Trainer", family="side", seconds=seconds, images=1, at=at)
        row.quartiles, row.rounds, row.peak = ((1 - noise) * seconds, (1 + noise) * seconds), 9, 1e11
        for field, values in more.items():
            setattr(row, field, values[number])
        rows.append(row)
    return rows


def fixed(cost: float) -> Row:
    return Row(
        "scaling", "fixed cost", "gan_fast.Trainer", family=exponents.FIXED, seconds=1e-3 * cost, images=1, at=1.0
    )


def test_a_power_is_found_with_its_error() -> None:
    exponent, error = exponents.fit([(x, 3 * x**1.5) for x in (1, 2, 4, 8)])
    assert exponent == pytest.approx(1.5) and error == pytest.approx(0, abs=1e-9)
    # By hand: residuals (d, -2d, d) at x = -l, 0, l give slope 0 and s^2 = 6 d^2 / 1 over 2 l^2.
    exponent, error = exponents.fit([(1, math.exp(0.1)), (2, math.exp(-0.2)), (4, math.exp(0.1))])
    assert exponent == pytest.approx(0, abs=1e-12) and error == pytest.approx(math.sqrt(0.06 / 2) / math.log(2))
    assert exponents.fit([(1, 1.0), (2, 4.0)]) == (pytest.approx(2.0), None)
    with pytest.raises(ValueError, match="at least two different x"):
        exponents.fit([(1, 1.0), (1, 2.0)])


def test_a_straight_line_bends_nowhere_and_noise_is_no_bend() -> None:
    (found,) = exponents.lines(line({16: 1, 32: 4, 64: 16, 128: 64}), {})
    assert found.exponent == pytest.approx(2) and [part.exponent for part in found.local] == pytest.approx([2, 2, 2])
    assert found.bends == () and "e = +2.00 ± 0.00" in exponents.text([found])
    (found,) = exponents.lines(line({16: 1, 32: 5, 64: 16, 128: 64}, noise=0.3), {})
    assert found.bends == () and found.local[0].error > 0.1


def test_the_fixed_cost_of_calls_is_named() -> None:
    rows = line({1: 1.1, 4: 2.6, 64: 410.0}, gflop=[0.001, 0.016, 4.1])
    (bend,) = exponents.lines([fixed(1.0), *rows], {})[0].bends
    assert bend.at == 4 and not bend.gradual and bend.before < bend.after
    assert "the fixed cost of a step's calls (1.00 ms) is 91% of the step at 1 and 0% at 64" in bend.why
    assert "; the rate rises more slowly: 1% of the peak at 1, 6% of the peak at 4, 10% of the peak at 64" in bend.why


def test_a_cache_that_is_outgrown_is_named() -> None:
    sets = [2.0**20, 2.0**21, 2.0**23]
    rows = line({16: 1, 32: 4, 64: 32}, gflop=[0.05, 0.2, 0.8], working_set=sets)
    machine = {"caches": {"L1": 1 << 15, "L2": 5 << 18, "L3": 1 << 25}, "threads": 2}
    (bend,) = exponents.lines(rows, machine)[0].bends
    assert "outgrow the L2 caches of 2 threads (2.5 MiB): 1.0 MiB at 16, 8.0 MiB at 64" in bend.why
    assert "L3" not in bend.why
    assert "; the rate falls: 50% of the peak at 16, 50% of the peak at 32, 25% of the peak at 64" in bend.why
    rows = line({16: 1, 32: 4, 64: 32}, gflop=[0.01, 0.04, 0.4], working_set=sets)
    (bend,) = exponents.lines(rows, machine)[0].bends
    assert "outgrow" not in bend.why and "10% of the peak at 32, 12% of the peak at 64" in bend.why


def test_a_rate_that_rises_is_named_and_a_cause_is_not_made_up() -> None:
    rows = line({16: 1, 32: 4, 64: 8}, gflop=[0.01, 0.04, 0.16])
    (bend,) = exponents.lines(rows, {})[0].bends
    assert bend.why == "the rate rises: 10% of the peak at 16, 10% of the peak at 32, 20% of the peak at 64"
    rows = line({16: 1, 32: 2, 64: 8}, gflop=[0.01, 0.022, 0.092])
    (bend,) = exponents.lines(rows, {})[0].bends
    assert bend.why.startswith("an image's work itself grows by +1.14 before and +2.06 after; 10% of the peak at 16")
    rows = line({16: 1, 32: 2.25, 64: 6}, gflop=[0.01, 0.025, 0.0625])
    (bend,) = exponents.lines(rows, {})[0].bends
    assert bend.why.startswith("no measured fact tells why (10% of the peak at 16, 11% of the peak at 32")
    (bend,) = exponents.lines(line({16: 1, 32: 4, 64: 8}), {})[0].bends
    assert bend.why == "no measured fact tells why"


def test_a_line_that_bends_everywhere_a_little_bends_gradually() -> None:
    costs, cost = {1.0: 1.0}, 1.0
    for place, exponent in enumerate((-0.6, -0.45, -0.28, -0.15), 1):
        cost *= 2**exponent
        costs[2.0**place] = cost
    (bend,) = exponents.lines([fixed(0.5), *line(costs)], {})[0].bends
    assert bend.gradual and bend.at == 4 and (bend.before, bend.after) == pytest.approx((-0.525, -0.215))
    assert "bends gradually around 4 (-0.53 before, -0.21 after): no measured" in exponents.sentence(bend)


def test_caches_are_as_the_system_gives_them(tmp_path: Path) -> None:
    for number, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "1M"), ("3", "Unified", "odd")]
    ):
        folder = tmp_path / f"index{number}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    (tmp_path / "index9").mkdir()
    assert caches(tmp_path) == {"L1": 48 << 10, "L2": 1 << 20} and caches(tmp_path / "absent") == {}
