"""tools/figures.py: what README shows is made from result files, and made again from those that it names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import browser
import pytest
from test_suite_report import rows, scaling_rows

from gan_fast.suite import results

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

import bench_figures  # noqa: E402  # a script of tools/, found by the line above
import figures  # noqa: E402  # the same

pytest.importorskip("matplotlib", reason="draws the plots")
PLACE = figures.LAYERS["avx2"]
README = f"head\n{PLACE[0]}\n{PLACE[1]}\ntail\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with result files and docs/."""
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(bench_figures, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    for name, found in (("layers", rows()), ("scaling", scaling_rows())):
        results.write(tmp_path / "benchmarks" / "results" / f"{name}.json", found, results.describe(), what=name)
    return tmp_path


def test_layers_by_family_with_quartiles(folder: Path) -> None:
    text = bench_figures.layers(folder / "benchmarks/results/layers.json", folder / "docs")
    # 2 ms a batch against 1 ms a batch and 1: 1x, 1.88x and 1.97x, in two passes each.
    assert "| article_g | 6 | 1.55x | 1.00 to 1.97 | 0 |" in text and "| over families | 12 | 1.55x | | 0 |" in text
    assert "(benchmarks/results/layers.json)" in text
    picture = folder / f"docs/layers_{bench_figures.level(folder / 'benchmarks/results/layers.json')}.png"
    assert picture.stat().st_size > 1000 and f"(docs/{picture.name})" in text
    with pytest.raises(ValueError, match="expected layers in float32"):
        bench_figures.layers(folder / "benchmarks/results/scaling.json", folder / "docs")


def test_scaling_with_its_exponents_and_bends(folder: Path) -> None:
    text = bench_figures.scaling(folder / "benchmarks/results/scaling.json", folder / "docs")
    assert "| batch | 1, 256 | textbook NCHW | +0.00 ± 0.00 | +0.00, +0.00, +0.00, +0.00 |" in text
    assert "* batch, gan_fast.Trainer: bends at" in text and 'src="docs/scaling_batch.png"' in text
    assert [path.name for path in (folder / "docs").iterdir()] == ["scaling_batch.png"]
    with pytest.raises(ValueError, match="expected the cells that `gan-fast bench scaling` measures"):
        bench_figures.scaling(folder / "benchmarks/results/layers.json", folder / "docs")


def test_what_is_not_given_is_made_again_from_the_file_that_is_named(folder: Path) -> None:
    made = []

    def make(path: Path, docs: Path) -> str:
        made.append(path)
        return f"made {len(made)}, [{path.name}]({path.relative_to(folder)})"

    docs, given = folder / "docs", folder / "benchmarks/results/layers.json"
    assert figures.again(README, PLACE, None, make, docs) == README and made == []
    first = figures.again(README, PLACE, given, make, docs)
    assert first == README.replace("\n<!-- end", "\nmade 1, [layers.json](benchmarks/results/layers.json)\n<!-- end", 1)
    assert figures.again(first, PLACE, None, make, docs) == first.replace("made 1", "made 2")
    assert made == [given, given]
    with pytest.raises(ValueError, match=r"README\.md: expected '<!-- scaling"):
        figures.again(README, figures.SCALING, None, make, docs)


def test_readme_has_every_place_and_names_files_that_make_it(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for markers in (figures.SPEED, *figures.LAYERS.values(), figures.SCALING, figures.SHOTS, figures.QUALITY):
        figures.split(text, markers)
    for markers, make in (
        (figures.SPEED, figures.speed_table),
        *((markers, bench_figures.layers) for markers in figures.LAYERS.values()),
        (figures.SCALING, bench_figures.scaling),
    ):
        assert figures.again(text, markers, None, make, tmp_path) == text


@pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium here")
def test_the_report_is_photographed_light_dark_and_on_a_phone(folder: Path) -> None:
    from PIL import Image

    text = bench_figures.report_shots(folder / "benchmarks/results/layers.json", folder / "docs")
    corners = {}
    for name, (width, height, _) in bench_figures.SHOTS.items():
        assert f"docs/report_{name}.png" in text
        with Image.open(folder / "docs" / f"report_{name}.png") as picture:
            assert picture.size == (width, height) and len(picture.getcolors()) > 20
            corners[name] = sum(picture.convert("RGB").getpixel((2, 2)))
    assert corners["light"] > 700 and corners["dark"] < 150 and corners["phone"] < 150


def test_no_browser_no_photographs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_figures, "BROWSERS", ("no-such-browser",))
    with pytest.raises(RuntimeError, match="--report-shots needs a browser: expected one of no-such-browser"):
        bench_figures.report_shots(folder / "benchmarks/results/layers.json", folder / "docs")
    (folder / "bad.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="no result file of gan-fast bench"):
        bench_figures.report_shots(folder / "bad.json", folder / "docs")
