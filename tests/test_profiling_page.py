"""The page of a profile: the timeline adds up, every table sorts, and a browser shows it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import browser
import pytest

from gan_fast.pages import plots
from gan_fast.profiling import LayerRow, OperatorRow, PhaseRow, Report, Stretch, page

pytest.importorskip("matplotlib", reason="draws the plots")


def report() -> Report:
    phases = [PhaseRow("", "data", 0.002, 0.2), PhaseRow("discriminator", "backward", 0.008, 0.8)]
    timeline = [
        Stretch("data", "", 0.0, 0.001),
        Stretch("backward", "discriminator", 0.001, 0.008),
        Stretch("data", "", 0.009, 0.001),
    ]
    layers = [
        LayerRow("D.0", "Conv2d", 0.001, 0.005, 10**9, 10**7, 0.5, "cpu", "cpu+torch", "rule <1>"),
        LayerRow("D.2", "Linear", 0.001, 0.001, 10**8, 10**7, 0.4, "torch", "torch", ""),
        LayerRow("", "losses, optimisers, loop", 0.002, 0.0, 0, 0, None, "", "", ""),
    ]
    operators = [
        OperatorRow("gan_fast::conv", 3.0, 0.006, 10**9, 10**7, 0.5, {"cpu": "rule"}),
        OperatorRow("aten::mm", 1.0, 0.002, 10**8, 10**7, None, {}),
    ]
    return Report(
        {"on": "a <machine>", "threads": 2}, {"timed": 3, "bare": 3}, 0.01, 0.01, phases, layers, operators, timeline,
        flops=11 * 10**8, bytes=2 * 10**7, roof={"flops": 3e11, "bandwidth": 1e10, "share": 0.5},
        memory={"peak": 1 << 20, "of": "the process"}, overhead={"timing the phases": 0.01}, spread=0.02,
        verdict=["compute-bound: 80% <of it>"], notes=["nothing else"],
    )  # fmt: skip


def test_the_page_has_everything_and_names_no_address() -> None:
    text = page.page(report(), {"model": "<own>"})
    browser.require_whole(text)
    assert text.count("<svg") == 3 and text.count("<table class=sorts>") == 3 and plots.TEXT not in text
    for words in ("10.00 ms a step", "80% &lt;of it&gt;", "&lt;own&gt;", "a &lt;machine&gt;", "rule &lt;1&gt;"):
        assert words in text
    layers = re.findall(r"<tr( class=ours)?><td>(D\.\d|\(outside\))<", text)
    assert layers == [(" class=ours", "D.0"), ("", "D.2"), ("", "(outside)")]


def test_what_was_not_measured_has_no_part() -> None:
    text = page.page(Report({}, {}, 0.0, 0.0, notes=["no phases: too few steps"]), {})
    browser.require_whole(text)
    assert "<svg" not in text and "class=sorts>" not in text and "Note: no phases" in text
    text = page.page(dataclasses.replace(report(), kernels={"gemm": 0.001}, roof={}), {})
    assert text.count("<svg") == 2 and "<td>gemm</td>" in text


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium here")
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1200, False)])
def test_a_browser_shows_it_sorts_and_complains_of_nothing(width: int, dark: bool, tmp_path: Path) -> None:
    assert browser.look(page.page(report(), {}), tmp_path, width, dark) == {"plots": 3, "tables": 3}
