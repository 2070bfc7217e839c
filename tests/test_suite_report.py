"""gan_fast.suite.report: one page that needs nothing else, looked at by a browser where there is one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import browser
import pytest

from gan_fast.cli import main
from gan_fast.pages import plots
from gan_fast.suite import exponents, report, results
from gan_fast.suite.results import Row

pytest.importorskip("matplotlib", reason="draws the plots")


def rows() -> list[Row]:
    found = []
    for batch in (1, 16, 64):
        for family, layer in (("article_g", "conv-128to1-k7"), ("dcgan64", "convt-64to3-k4")):
            for which in ("forward", "weight_grad"):
                for program, seconds in (("torch", 2e-3 * batch), ("gan_fast", 1e-3 * batch + 1e-3)):
                    row = Row("layer", f"{family}/{layer}-b{batch}", program, which, "NCHW", family=family)
                    row.gflop, row.gbyte, row.peak = 0.1 * batch, 0.001 * batch, 3e11
                    row.seconds, row.quartiles, row.rounds = seconds, (0.95 * seconds, 1.1 * seconds), 9
                    found.append(row)
    for program, seconds in (("textbook NCHW", 0.3), ("gan_fast.Trainer", 0.1)):
        found.append(Row("step", "article b8", program, seconds=seconds, quartiles=(0.9 * seconds, seconds), images=8))
    return found


def page(**machine: object) -> str:
    return report.page({**results.describe(), "bandwidth": 1e10, **machine}, rows(), {"preset": "<quick>"})


def scaling_rows() -> list[Row]:
    """A program whose step has a fixed cost of 1 ms, and one that has none."""
    found = [Row("scaling", "fixed cost", "gan_fast.Trainer", family=exponents.FIXED, seconds=1e-3, images=1, at=1.0)]
    for batch in (1, 4, 16, 64, 256):
        for program, fixed in (("textbook NCHW", 0.0), ("gan_fast.Trainer", 1e-3)):
            seconds = fixed + 1e-4 * batch
            row = Row("scaling", f"batch {batch}", program, family="batch", seconds=seconds, images=batch, at=batch)
            row.quartiles, row.rounds = (seconds, 1.001 * seconds), 9
            found.append(row)
    return found


def test_the_page_is_whole_and_names_no_address() -> None:
    text = page()
    browser.require_whole(text)
    assert text.count("<svg") == 4 and "currentColor" in text and plots.TEXT not in text
    assert "&lt;quick&gt;" in text and "<b>article b8</b>: 3.00 times" in text
    assert "<b>12 layer passes</b>" in text


def test_scaling_has_curves_exponents_and_its_own_table() -> None:
    text = report.page({"threads": 2}, scaling_rows(), {})
    browser.require_whole(text)
    assert text.count("<svg") == 1 and "<b>5 cells of scaling</b>" in text and "All steps along the axes" in text
    assert "the fixed cost of a step&#x27;s calls (1.00 ms)" in text and ">nowhere<" in text
    curves = report.scaling_curves(scaling_rows(), exponents.lines(scaling_rows(), {}))["batch"]
    assert [curve.label.partition(",")[0] for curve in curves] == ["textbook NCHW", "gan_fast.Trainer"]
    assert curves[0].points[4] == pytest.approx((0.1, 0.1, 0.1001)) and curves[1].colour == plots.OURS


def test_what_was_not_measured_has_no_picture() -> None:
    few = [dataclasses.replace(row, gbyte=None) for row in rows() if row.name.endswith("-b16")]
    few[0].seconds, few[0].quartiles, few[0].wrong = None, None, "differs <a lot>"
    text = report.page({"cpu": "x"}, few, {})
    assert text.count("<svg") == 1 and "WRONG" in text and "differs &lt;a lot&gt;" in text


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "a.json", tmp_path / "deep" / "a.html"
    results.write(source, rows(), results.describe())
    assert main(["bench", "--from", str(source), "--report", str(target)]) == 0
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert main(["bench", "--from", str(source)]) == 2
    assert "expected --report FILE.html too" in capsys.readouterr().err


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium here")
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1200, False)])
def test_a_browser_shows_it_sorts_and_complains_of_nothing(width: int, dark: bool, tmp_path: Path) -> None:
    text = report.page({**results.describe(), "bandwidth": 1e10}, [*rows(), *scaling_rows()], {})
    assert browser.look(text, tmp_path, width, dark) == {"plots": 5, "tables": 4}
