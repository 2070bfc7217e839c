"""The benchmarks of data, steps and scaling check their results, and run; nothing is timed here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import bench_data  # noqa: E402  # a script of benchmarks/, found by the line above
import builds  # noqa: E402  # found by the same line
import frame  # noqa: E402  # found by the same line
import kernel_table  # noqa: E402  # found by the same line
import profile_loop  # noqa: E402  # found by the same line

from gan_fast import tuning  # noqa: E402  # after them, in its order
from gan_fast.suite import layers, shapes, steps  # noqa: E402  # the same


def test_a_few_of_each_run() -> None:
    """In a process of their own, since benchmarks import their folder's modules by name."""
    files = [str(BENCHMARKS / f"bench_{name}.py") for name in ("data", "scaling", "train_step")]
    few = "idx or folder or loader or (scaling and width16) or (article and 1-) or (dcgan28 and 1- and frozen)"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        "--benchmark-disable",
        "-k",
        few,
        *files,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "GAN_FAST_BENCH"}
    done = subprocess.run(
        command, cwd=BENCHMARKS.parent, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "17 passed" in done.stdout, done.stdout[-500:]


def never(*_: Any) -> None:
    pytest.fail("a wrong result was timed")


def test_a_wrong_step_is_not_timed() -> None:
    def program(g_loss: float) -> Any:
        return lambda: lambda: (torch.tensor(1.0), torch.tensor(g_loss))

    recipes = {steps.BASELINE: program(2.0), "fast": program(2.01)}
    with pytest.raises(AssertionError, match=r"\[1\.0, 2\.0\d*\] differ from textbook NCHW's"):
        frame.measure_step(never, "group", "fast", recipes, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch, "not shuffled"),
        (lambda batch: batch.flip(0).half(), "torch.float16"),
        (lambda batch: batch.flip(0) * 0.99, "other images than were written"),
    ],
)
def test_wrong_batches_are_not_timed(change: Any, message: str) -> None:
    images = bench_data.random_images(bench_data.BATCH, 1, 4, 4)
    floats = images.float().div(127.5).sub(1.0)
    with pytest.raises(AssertionError, match=message):
        bench_data.measure(never, "group", "torch", lambda: iter([change(floats)]), images)


def test_a_profile_is_held_against_the_loop_s_own_clock() -> None:
    """What is compared is there; how near the two are is for a quiet machine to tell."""
    found = profile_loop.profiled(batch=2, turns=2, width=4, accelerate=True)
    assert found["turns"] == 2 and set(found["overhead"]) == {"timing the phases", "layers and operators"}
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert "backward for generator" in found["shares"] and "data" in found["shares"]
    assert found["phases"] == pytest.approx(found["wall"] * (1 + found["apart"]))
    text = profile_loop.told("accelerated", found)
    assert text.startswith("accelerated: 2 turns of ") and "by the loop's clock" in text and "100.0%" not in text


@pytest.mark.parametrize(("precision", "most"), [("fp32", 2e-6), ("bf16", 1e-2)])
def test_the_table_of_kernels_tells_errors_and_who_served(precision: str, most: float) -> None:
    shape = shapes.LayerShape("article", "conv", 16, 1, (7, 7), 1, 3, 0, (6, 6), 4)
    dtype = kernel_table.DTYPES[precision]
    calibration = tuning.calibration()
    cells = [kernel_table.cell(shape, which, dtype, 1, calibration) for which in layers.PASSES]
    for cell in cells:
        assert 0 < cell["error"] < most, cell
        assert 0 < cell["torch_error"] < most, cell
        assert cell["rate"] == 2 * shape.macs / cell["seconds"]
    text = kernel_table.table("tiny", cells)
    assert [line.split()[0] for line in text.splitlines()[1:]] == list(layers.PASSES)
    assert ("(PyTorch's)" in text) == (not all(cell["served"] for cell in cells))


def test_other_widths_have_about_as_many_pixels() -> None:
    shape = kernel_table.LAYERS["convT 128->128 k5 s2"]
    for width in kernel_table.WIDTHS:
        other = kernel_table.at_width(shape, width)
        assert other.size == (width, width)
        assert other.batch * width**2 == pytest.approx(shape.batch * shape.size[0] ** 2, rel=0.25)


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = shapes.LayerShape("article", "conv", 16, 1, (7, 7), 1, 3, 0, (6, 6), 4)
    monkeypatch.setattr(kernel_table, "error", lambda *_: float("nan"))
    monkeypatch.setattr(kernel_table.interleaved, "measure", never)
    with pytest.raises(SystemExit, match="an error of nan"):
        kernel_table.cell(shape, "forward", torch.float32, 1, tuning.calibration())


def test_two_builds_take_turns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(BENCHMARKS.parent)
    arguments = [root, "--match", "article_d/conv-1to128-k3x3s2p1-28x28-b1", "--pass", "forward", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["builds.py", *arguments, "--step", "pytorch_gan_dcgan:2:gan_fast.Trainer"])
    builds.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("ms  ")[-1] for line in lines[:-1]] == [
        "pytorch_gan_dcgan:2:gan_fast.Trainer",
        "article_d/conv-1to128-k3x3s2p1-28x28-b1 forward",
        "article_d/conv-1to128-k3x3s2p1-28x28-b16 forward",
        "article_d/conv-1to128-k3x3s2p1-28x28-b128 forward",
    ]
    assert lines[-1].endswith("in the mean of 4")
    with pytest.raises(SystemExit, match="no layer has such a name"):
        monkeypatch.setattr(sys, "argv", ["builds.py", root, "--match", "none such"])
        builds.main()


def test_builds_with_different_results_get_no_times() -> None:
    class Other:
        def __init__(self, norm: float) -> None:
            self.norm = norm

        def ask(self, do: str, **_: Any) -> Any:
            assert do == "make"
            return {"norms": [1.0, self.norm], "seconds": 1.0}

    for norm in (2.1, float("nan")):
        with pytest.raises(SystemExit, match="no times"):
            builds.compare((Other(2.0), Other(norm)), "case", {}, 3)  # type: ignore[arg-type]  # stands for a process
