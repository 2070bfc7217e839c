"""tools/figures.py: what README shows is made from result files, and made again from those that it names."""

from __future__ import annotations

import dataclasses
import functools
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
import quality_time  # noqa: E402  # of benchmarks/, which figures put on the path

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
    with pytest.raises(ValueError, match="expected layers in bfloat16"):
        bench_figures.layers(folder / "benchmarks/results/layers.json", folder / "docs", "bfloat16")


def test_layers_in_bfloat16_have_a_picture_of_their_own(folder: Path) -> None:
    path = folder / "benchmarks/results/half.json"
    halves = [dataclasses.replace(row, dtype="bfloat16") for row in rows()]
    results.write(path, [*rows(), *halves], results.describe(), what="layers")
    text = bench_figures.layers(path, folder / "docs", "bfloat16")
    assert "| over families | 12 | 1.55x | | 0 |" in text and "in bfloat16 against PyTorch's fastest" in text
    assert (folder / f"docs/layers_{bench_figures.level(path)}_bfloat16.png").stat().st_size > 1000


def curve(seconds: float, distances: list[float]) -> list[dict[str, float]]:
    """A point every so many seconds."""
    return [
        {"step": 10 * (i + 1), "seconds": seconds * (i + 1), "frechet_distance": distance}
        for i, distance in enumerate(distances)
    ]


def test_time_to_a_distance_and_its_picture(folder: Path) -> None:
    slow = curve(10.0, [500.0, 300.0, 320.0, 140.0])
    assert quality_time.time_to(slow, 600.0) == 10.0 and quality_time.time_to(slow, 100.0) is None
    assert quality_time.time_to(slow, 400.0) == pytest.approx(15.0)
    assert quality_time.time_to(slow, 150.0) == pytest.approx(30.0 + 10.0 * 170.0 / 180.0)
    fast = curve(2.0, [500.0, 300.0, 320.0, 140.0])
    run = {name: fast if name.endswith("bf16") else slow for name in quality_time.PROGRAMS}
    found = dict(quality_time.times([run, run]))
    assert list(found) == [450.0, 400.0, 350.0, 300.0, 250.0, 200.0, 175.0, 150.0]
    assert found[400.0][quality_time.BASELINE] == pytest.approx([15.0, 15.0])
    assert found[400.0]["gan_fast.Trainer bf16"] == pytest.approx([3.0, 3.0])
    assert f"distance 400: {'gan_fast.Trainer bf16':28s}     3.0 s   5.00x" in quality_time.summary([run, run])

    path = folder / "benchmarks/results/time.json"
    settings = {"epochs": 1, "data": "mnist", "batch_size": 128, "n": 100, "model": "dcgan28"}
    path.write_text(json.dumps({"machine": results.describe(), "settings": settings, "runs": [run, run]}))
    text = figures.quality_over_time(path, folder / "docs")
    row = next(line for line in text.splitlines() if line.startswith("| gan_fast.Trainer bf16 |"))
    assert row.split(" | ")[2] == "3 s (5.0x)" and "(benchmarks/results/time.json)" in text
    assert (folder / "docs/quality_time.png").stat().st_size > 1000


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
    layers = (*figures.LAYERS.values(), *figures.LAYERS_BFLOAT16.values())
    for markers in (*layers, figures.SPEED, figures.SCALING, figures.SHOTS, figures.QUALITY, figures.QUALITY_TIME):
        figures.split(text, markers)
    for markers, make in (
        (figures.SPEED, figures.speed_table),
        *((markers, bench_figures.layers) for markers in figures.LAYERS.values()),
        *(
            (markers, functools.partial(bench_figures.layers, dtype="bfloat16"))
            for markers in figures.LAYERS_BFLOAT16.values()
        ),
        (figures.SCALING, bench_figures.scaling),
        (figures.QUALITY_TIME, figures.quality_over_time),
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
