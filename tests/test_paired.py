"""gan_fast.bench.paired: ratios from turns that two programs took together, and how sure they are."""

from __future__ import annotations

import math
import random

import pytest

from gan_fast.bench import paired


def test_what_meets_both_programs_of_a_turn_is_no_matter() -> None:
    """The machine gets four times as slow; the medians of the times would say 4 / 2.5."""
    moods = [1.0, 1.0, 2.0, 4.0, 4.0]
    theirs, ours = [[2.0 * mood for mood in moods]], [[1.0 * mood for mood in moods]]
    found = paired.ratio(theirs, ours)
    assert found.value == pytest.approx(2.0) and found.pairs == 5
    assert found.quartiles == pytest.approx((2.0, 2.0)) and found.interval == pytest.approx((2.0, 2.0))
    assert found.uncertainty == pytest.approx(0.0)


def test_the_value_is_the_median_and_the_quartiles_are_of_single_turns() -> None:
    found = paired.ratio([[1.0, 2.0], [3.0, 4.0], [5.0]], [[1.0, 1.0], [1.0, 1.0], [1.0]])
    assert found.value == pytest.approx(3.0) and found.quartiles == pytest.approx((2.0, 4.0))


def test_turns_are_paired_by_their_place() -> None:
    """A slow program took part in the first visit only."""
    found = paired.ratio([[8.0, 16.0]], [[1.0, 2.0], [100.0, 100.0]])
    assert found.value == pytest.approx(8.0) and found.pairs == 2
    for theirs, ours in (([[]], [[1.0]]), ([], [])):
        with pytest.raises(ValueError, match="expected some that both took"):
            paired.ratio(theirs, ours)


def test_visits_that_disagree_are_worth_less_than_turns_that_do() -> None:
    apart, ones = (0.9, 1.1), [[1.0] * 4] * 6
    within = paired.ratio([[apart[turn % 2] for turn in range(4)]] * 6, ones)
    between = paired.ratio([[apart[visit % 2]] * 4 for visit in range(6)], ones)
    assert within.uncertainty < 0.01 < 0.05 < between.uncertainty


def test_one_wild_visit_moves_little() -> None:
    calm = [[1.0, 1.02, 0.98, 1.01] for _ in range(7)]
    ones = [[1.0] * 4] * 8
    found = paired.ratio([*calm, [2.0] * 4], ones)
    assert found.value == pytest.approx(1.0, abs=0.02) and found.uncertainty < 0.1


def test_a_single_turn_is_not_sure() -> None:
    found = paired.ratio([[2.0]], [[1.0]])
    assert found.value == pytest.approx(2.0) and found.quartiles == pytest.approx((2.0, 2.0))
    assert math.isinf(found.uncertainty) and found.interval == (0.0, math.inf)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_the_interval_holds_the_truth_as_often_as_it_says(count: int) -> None:
    """Visits with moods of their own where there are several; 200 suites, 95 % of which are 190."""
    draw = random.Random(1)
    held = 0
    for _ in range(200):
        visits = []
        for _ in range(count):
            mood = draw.gauss(0.0, 0.05) if count > 1 else 0.0
            visits.append([math.exp(math.log(1.5) + mood + draw.gauss(0.0, 0.05)) for _ in range(6)])
        found = paired.ratio(visits, [[1.0] * 6] * count)
        held += found.interval[0] <= 1.5 <= found.interval[1]
    assert held >= 180
    assert paired.ratio([[1.5] * 6] * count, [[1.0] * 6] * count).uncertainty < 1e-6


@pytest.mark.parametrize(("freedom", "factor"), [(2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042)])
def test_student_s_factors_are_those_of_the_tables(freedom: int, factor: float) -> None:
    assert paired._student(freedom) == pytest.approx(factor, rel=0.035)
