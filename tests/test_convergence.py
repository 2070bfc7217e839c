"""The stop rule: when it fires, what it says, and that a resume does not change it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gan import images, networks, trainer

from gan_fast.training import Convergence, Trainer
from gan_fast.training.convergence import ConvergenceWatch


def watch(rule: Convergence, d_losses: list[float], g_losses: list[float] | None = None, every: int = 1) -> int | None:
    """Feed losses in portions of ``every``; returns the step at which the rule fired."""
    watching = ConvergenceWatch(rule)
    g_losses = d_losses if g_losses is None else g_losses
    for step in range(every, len(d_losses) + 1, every):
        if watching.update(step, d_losses[step - every : step], g_losses[step - every : step]):
            return step
    return None


def test_constant_losses_fire_as_soon_as_there_are_enough() -> None:
    assert watch(Convergence(window=5, tolerance=0.0, patience=1), [1.0] * 20) == 9
    assert watch(Convergence(window=5, tolerance=0.0, patience=3), [1.0] * 20) == 11
    assert watch(Convergence(window=5, tolerance=0.0, patience=1, min_steps=15), [1.0] * 20) == 15
    assert watch(Convergence(window=5, tolerance=0.0, patience=2), [1.0] * 40, every=4) == 16


def test_both_losses_must_be_flat() -> None:
    flat, falling = [1.0] * 40, [float(-step) for step in range(40)]
    rule = Convergence(window=5, tolerance=0.1, patience=1)
    assert watch(rule, flat, falling) is None
    assert watch(rule, falling, flat) is None
    falling[15:] = [falling[14]] * 25
    assert watch(rule, flat, falling) == 14 + 9


def test_patience_counts_looks_in_a_row() -> None:
    losses = [1.0] * 9 + [9.0] + [1.0] * 30
    # Step 9 is the first flat look; the spike at 10 begins the count anew once it has left both windows.
    assert watch(Convergence(window=5, tolerance=0.1, patience=2), losses) == 10 + 9 + 1


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    losses=st.lists(st.floats(-3, 3), min_size=1, max_size=60),
    window=st.integers(2, 9),
    tolerance=st.floats(0.01, 3),
)
def test_the_rule_is_the_one_in_its_docstring(losses: list[float], window: int, tolerance: float) -> None:
    fired = None
    for step in range(2 * window - 1, len(losses) + 1):
        means = [np.mean(losses[end - window : end]) for end in range(step - window + 1, step + 1)]
        spread = max(means) - min(means)
        if math.isclose(spread, tolerance, rel_tol=1e-9, abs_tol=1e-9):
            return  # rounding decides
        if spread <= tolerance:
            fired = step
            break
    assert watch(Convergence(window=window, tolerance=tolerance, patience=1), losses) == fired


def test_a_discriminator_that_has_won_is_mentioned() -> None:
    watching = ConvergenceWatch(Convergence(window=3, tolerance=1.0, patience=1))
    reason = watching.update(9, [1e-4] * 9, [8.0] * 9)
    assert reason is not None and "converged at step 9" in reason and "discriminator has won" in reason


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (False, None),
        (True, Convergence()),
        ({"window": 7}, Convergence(window=7)),
        (Convergence(patience=2), Convergence(patience=2)),
    ],
)
def test_make(given: Any, expected: Convergence | None) -> None:
    assert Convergence.make(given) == expected


@pytest.mark.parametrize(
    ("settings_", "text"),
    [
        ({"window": 1}, "window must be an integer of at least 2, got 1"),
        ({"window": 2.5}, "window must be an integer"),
        ({"tolerance": -0.1}, "tolerance must be a finite number of at least 0, got -0.1"),
        ({"tolerance": math.nan}, "tolerance must be"),
        ({"patience": 0}, "patience must be"),
        ({"min_steps": True}, "min_steps must be"),
    ],
)
def test_wrong_rules(settings_: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Convergence.make(settings_)


def test_a_rule_of_a_wrong_type() -> None:
    with pytest.raises(TypeError, match="until must be None, True, a dict"):
        Convergence.make(3)  # type: ignore[arg-type]  # that is the test


def test_parse() -> None:
    assert Convergence.parse("converged") == Convergence()
    assert Convergence.parse("window=7, tolerance=0.5,patience=1") == Convergence(7, 0.5, 1)
    for text, expected in (("soon", "expected 'converged'"), ("windw=3", "unknown"), ("window=x", "not a number")):
        with pytest.raises(ValueError, match=expected):
            Convergence.parse(text)


# ------------------------------------------------------------------------------------------------------ in the Trainer

RULE = {"window": 4, "tolerance": 5.0, "patience": 2}  # so wide that any training is flat after 2 * 4 - 1 steps


def test_fit_stops_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    subject = trainer(outdir=tmp_path, name="x", log_every=3)
    with caplog.at_level("INFO", logger="gan_fast"):
        result = subject.fit(images(), until=RULE)
    # Looks at steps 3, 6, 9, 12: the first with 7 losses is the one at 9.
    assert result.converged and result.step == 12
    assert result.reason.startswith("converged at step 12: the 4-step means of d_loss (")
    assert f"training stopped: {result.reason}" in caplog.text
    assert json.loads((tmp_path / "00000-x" / "config.json").read_text())["goal"] == {
        "step": None,
        "until": {**RULE, "min_steps": 0},
    }


def test_the_first_of_two_ends_wins() -> None:
    assert trainer(log_every=3).fit(images(), steps=5, until=RULE).reason == "reached step 5"
    assert trainer(log_every=3).fit(images(), steps=50, until=RULE).step == 12


def test_a_resume_does_not_move_the_stop(tmp_path: Path) -> None:
    subject = trainer(outdir=tmp_path, name="x", log_every=3)
    subject.fit(images(), steps=10, until=RULE)
    loaded = Trainer.load(tmp_path / "00000-x", *networks())
    result = loaded.fit(images(), steps=50, until=RULE)
    assert result.converged and result.step == 12


def test_a_converged_run_stays_converged(tmp_path: Path) -> None:
    def script() -> Any:
        return trainer(outdir=tmp_path, name="x", log_every=3).fit(images(), until=RULE, resume="auto")

    script()
    result = script()
    assert result.steps == 0 and result.converged and result.reason.startswith("already converged at step 12")


def test_another_rule_starts_afresh(tmp_path: Path) -> None:
    trainer(outdir=tmp_path, name="x", log_every=3).fit(images(), until=RULE)
    loaded = Trainer.load(tmp_path / "00000-x", *networks())
    result = loaded.fit(images(), steps=9, until={**RULE, "patience": 1})
    assert result.converged and result.step == 21
