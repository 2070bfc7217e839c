"""gan_fast.suite.confirm: what looks slower is measured again in other processes; how a summary says it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gan_fast.suite import confirm, results, shapes
from gan_fast.suite.results import Row

LAYERS = [shape for shape in shapes.SHAPES if shape.family == "article_d" and shape.batch == 1]


def rows(*ratios: float, spread: float = 0.01, name: str | None = None) -> list[Row]:
    """PyTorch and gan_fast on the forward passes of LAYERS, with these ratios of times."""
    made = []
    for shape, ratio in zip(LAYERS, ratios, strict=False):
        for program, seconds in (("torch", 1e-3), ("gan_fast", 1e-3 / ratio), (results.AGAIN, 1.01e-3)):
            row = Row("layer", name or shape.name, program, "forward", "channels_last", family=shape.family)
            row.seconds, row.rounds = seconds, 9
            row.quartiles = (seconds * (1 - spread), seconds * (1 + spread))
            row.served = program == "gan_fast" if program != results.AGAIN else None
            made.append(row)
    return made


def test_only_what_is_surely_slower_is_suspected() -> None:
    assert [row.name for row in results.suspects(rows(0.9, 1.0))] == [LAYERS[0].name]
    assert results.suspects(rows(0.9, spread=0.2)) == [], "the interval reaches over 0.97"
    assert results.suspects(rows(0.98, 1.5)) == []


@pytest.mark.parametrize(("later", "expected"), [((0.9, 0.9), 3), ((0.9, 1.0), 2), ((1.0, 0.9), 1)])
def test_all_processes_must_agree(later: tuple[float, float], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [rows(ratio) for ratio in later]
    asked = []

    def elsewhere(cells: list[tuple[str, str]], provider: str, rounds: int, dtype: str) -> list[Row]:
        asked.append((list(cells), provider, rounds, dtype))
        return answers[len(asked) - 1]

    monkeypatch.setattr(confirm, "_elsewhere", elsewhere)
    first = rows(0.9, 1.2)
    confirm.confirm(first, provider="auto", rounds=5)
    assert asked[0] == ([(LAYERS[0].name, "forward")], "auto", 5, "float32")
    assert len(asked) == (1 if later[0] == 1.0 else 2)
    verdict = {row.name: row.slower_in for row in first if row.program == "gan_fast"}
    assert verdict == {LAYERS[0].name: expected, LAYERS[1].name: None}
    text = results.summary(first)
    assert f"in 3 processes): {int(expected == 3)} of 2; 1 looked so" in text
    assert (f"  {LAYERS[0].name} forward channels_last: x0.90" in text) == (expected == 3)
    assert "our kernels serve 2 of 2" in text and "PyTorch against itself: x0.990, 0 of 2 below 0.97" in text


def test_layers_outside_the_list_cannot_be_named_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirm, "_elsewhere", lambda *_: pytest.fail("asked"))
    own = rows(0.5, name="own/conv-1to2")
    confirm.confirm(own, provider="auto", rounds=5)
    assert all(row.slower_in is None for row in own)


def test_the_other_process_measures_the_cells_that_it_is_given(tmp_path: Path) -> None:
    cells, out = tmp_path / "cells.json", tmp_path / "rows.json"
    cells.write_text(json.dumps([[LAYERS[0].name, "forward"], [LAYERS[0].name, "weight_grad"]]), encoding="utf-8")
    confirm.main([str(cells), str(out), "auto", "2", "float32", "1"])
    found = results.read(out)[1]
    assert {(row.name, row.pass_) for row in found} == {(LAYERS[0].name, "forward"), (LAYERS[0].name, "weight_grad")}
    assert all(row.seconds for row in found) and not any(row.program == results.AGAIN for row in found)
    assert all(row.served is not None for row in found if row.program == "gan_fast")


def test_a_process_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="failed with status"):
        confirm._elsewhere([(LAYERS[0].name, "forward")], "no such backend", 2, "float32")
