"""gan_fast.suite.report: one page that needs nothing else, looked at by a browser where there is one."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gan_fast.cli import main
from gan_fast.suite import report, results
from gan_fast.suite.results import Row

pytest.importorskip("matplotlib", reason="draws the plots")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "link", "br"}


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


class Balanced(HTMLParser):
    """Every element is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for key, value in attrs if key == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def test_the_page_is_whole_and_names_no_address() -> None:
    text = page()
    parser = Balanced()
    parser.feed(text)
    assert parser.open == [] and len(parser.ids) == len(set(parser.ids))
    assert set(re.findall(r'(?:href|src)="([^"]*)"', text)) <= {"data:,", *(f"#{name}" for name in parser.ids)}
    assert not re.search(r"https?://(?!www\.w3\.org)", text), "an address"
    assert text.count("<svg") == 4 and "currentColor" in text and report.TEXT not in text
    assert "&lt;quick&gt;" in text and "<b>article b8</b>: 3.00 times" in text
    assert "<b>12 layer passes</b>" in text


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


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_it_sorts_and_complains_of_nothing(tmp_path: Path) -> None:
    driver = """
    const told = [];
    const column = head => [...head.closest("table").tBodies[0].rows].map(row => row.cells[head.cellIndex].dataset.v);
    const head = [...document.querySelectorAll("th")].find(th => th.textContent === "ms");
    for (const sign of [1, -1]) {
      head.click();
      const values = column(head).map(Number);
      told.push(values.every((v, i) => i === 0 || sign * (v - values[i - 1]) >= 0) && values.length > 1);
    }
    told.push([...document.querySelectorAll("svg")].every(svg => svg.getBoundingClientRect().height > 50));
    told.push(document.documentElement.scrollWidth <= innerWidth);
    document.title = told.join(" ");
    """
    path = tmp_path / "page.html"
    path.write_text(page().replace("</script></body>", f"</script><script>{driver}</script></body>"), encoding="utf-8")
    for width in (390, 1200):
        command = [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
            f"--user-data-dir={tmp_path / str(width)}", f"--window-size={width},900", "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert "<title>true true true true</title>" in done.stdout, (width, done.stdout[:300])
        assert "CONSOLE" not in done.stderr, done.stderr
