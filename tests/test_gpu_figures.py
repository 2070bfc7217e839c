"""What benchmarks/gpu_suite.py measures and checks: both sides of a layer, the bound, the steps, and the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from gpu import (  # the folder is no package of the library
    cuda_module,
    device,
    journal,
    kernels,
    layers,
    plan,
    report,
    steps,
    verdicts,
)

pytestmark = pytest.mark.usefixtures("settings_may_change")

IDENTITY = {"device": "a device", "versions": {"torch": "1"}, "commit": "abc", "source": "def", "tiny": True}
TINY = device.Settings("cpu", True, Path("nowhere"))


@pytest.fixture
def book(tmp_path: Path) -> journal.Journal:
    return journal.Journal(tmp_path, IDENTITY)


def timed(check: str, seconds: float, **more: Any) -> journal.Row:
    return journal.row("a thing", check=check, seconds=seconds, share=0.5, dtype="bf16", batch=2, **more)


# ------------------------------------------------------------------------------------------------- layers and checks


@pytest.mark.parametrize("shape", plan.shapes(TINY), ids=lambda shape: shape.name)
def test_both_sides_of_a_layer_compute_the_same_three_passes(shape: Any) -> None:
    given = layers.problem(shape, TINY, "fp32", "channels_last")
    ours, theirs = layers.by_operators(shape, given, "reference"), layers.by_torch(shape, given)
    for which in layers.PASSES:
        mine, right = ours[which](), theirs[which]()
        torch.testing.assert_close(mine, right if isinstance(mine, torch.Tensor) else tuple(right))


def test_times_of_a_layer_are_rows_with_their_work(book: journal.Journal) -> None:
    shape = plan.shapes(TINY)[0]
    book.end("t", "layer/torch", layers.measure_torch(shape, TINY, "fp32", "NCHW"))
    rows = book.done["t"]
    assert [r["pass"] for r in rows] == list(layers.PASSES) and all(r["seconds"] > 0 for r in rows)
    assert all(r["flops"] == 2 * shape.macs and r["batch"] == shape.batch for r in rows)


def test_judge_takes_twice_pytorchs_error_and_no_more() -> None:
    exact = torch.linspace(1, 2, 1000, dtype=torch.float64)
    theirs = exact.float() * (1 + 1e-5)
    good, bad = exact.float() * (1 - 1.5e-5), exact.float() * (1 - 2.5e-5)
    assert verdicts.judge(good, exact, theirs).check == "green"
    wrong = verdicts.judge((good, bad), (exact, exact), (theirs, theirs))
    assert wrong.check == "red" and "PyTorch's is" in str(wrong.reason)
    assert verdicts.judge(bad, exact, theirs, ideal=exact * (1 + 2e-5)).check == "green"
    hole = good.clone()
    hole[3] = float("nan")
    assert verdicts.judge(hole, exact, theirs).check == "red"
    assert verdicts.judge(good, exact, theirs, used=verdicts.Used(0)).reason == "no kernel of ours ran"


def test_truncated_keeps_ten_bits() -> None:
    x = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, -(1 + 2**-11), 3e-39])
    assert verdicts.truncated(x).tolist()[:4] == [1.0, 1 + 2**-10, 1.0, -1.0]


def test_the_kernels_calls_are_what_they_say() -> None:
    """On the reference backend every check's call runs, so that a device meets no mistake of the list itself."""
    for case in [*kernels.core_cases(TINY), *kernels.CASES[:3]]:
        for call, tensors in kernels.calls_of(case, TINY).values():
            call("reference", **tensors)
    for call, tensors in kernels.elementwise_calls(TINY).values():
        call("reference", **tensors)


# ------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("network", steps.NETWORKS.values(), ids=lambda network: network.name)
def test_all_programs_take_the_same_first_step(network: steps.Network) -> None:
    exact, low = (steps.reference(network, 3, TINY, name) for name in ("fp32", "bf16"))
    for wanted, program in (
        (exact, steps.Program("eager", "fp32", "NCHW")),
        (low, steps.Program("eager", "bf16", "NCHW")),
        (exact, steps.Program("accelerate", "fp32", accelerate=True, backend="reference")),
        (exact, steps.Program("Trainer", "fp32", trainer=True, backend="reference")),
        (low, steps.Program("Trainer", "bf16", trainer=True, backend="reference")),
    ):
        assert steps.difference(steps.Run(network, program, 3, TINY).first(), wanted, program) is None, program
    if not network.statistics:
        both = steps.Program("Trainer", "fp32", trainer=True, backend="reference", update="simultaneous")
        assert steps.difference(steps.Run(network, both, 3, TINY).first(), exact, both) is None


def test_another_first_step_is_noticed() -> None:
    network, program = steps.NETWORKS["article"], steps.Program("eager", "bf16")
    wanted = steps.reference(network, 3, TINY, "bf16")
    losses, gradients = wanted.losses, wanted.gradients
    assert "d_loss of the first step" in str(steps.difference(([9.0, losses[1]], gradients), wanted, program))
    turned = [gradients[0], gradients[1].flip(0)]
    assert "cosine between D's gradients" in str(steps.difference((losses, turned), wanted, program))
    lost = [torch.full_like(gradients[0], float("nan")), gradients[1]]
    assert "cosine between G's gradients" in str(steps.difference((losses, lost), wanted, program))


# ------------------------------------------------------------------------------------------------------------ report


def results(book: journal.Journal, check: str) -> list[journal.Row]:
    gemm = journal.row("matrix product", check="baseline", seconds=1.0, dtype="bf16", tflops=100.0)
    copy = journal.row("copy", check="baseline", seconds=1.0, dtype="fp32", gbytes_per_second=1000.0)
    book.end("ceiling", "ceiling", [gemm, copy])
    facts = {"layer": "article_g/x", "family": "article_g", "pass": "forward", "flops": 1e9, "bytes": 1e6}
    book.end("t", "layer/torch", [timed("baseline", 2.5e-5, layout="NCHW", **facts)])
    book.end("o", "layer/ours", [timed(check, 2e-5, layout="channels_last", **facts)])
    step = {"network": "article", "layout": "channels_last"}
    book.end("s", "step/torch", [timed("baseline", 4e-3, program="eager", **step)])
    book.end("u", "step/ours", [timed(check, 1.25e-3, program="Trainer triton", **step)])
    verdict = journal.row("conv k3", check=check, dtype="bf16", error=1.0, allowed=2.0, reason="error 1 of 2")
    book.end("check/case/conv", "check", [verdict])
    book.end("c", "check cuda", cuda_module.module(TINY))
    return report.enriched(book.rows())


def test_table_and_json_tell_green_speeds_with_their_share(book: journal.Journal, tmp_path: Path) -> None:
    rows = results(book, "green")
    ours = next(r for r in rows if r["task"] == "o")
    assert ours["share"] == pytest.approx(1e9 / 100e12 / 2e-5)
    report.write(tmp_path / "gpu_suite.json", book.identity, rows, {"layer/ours": 3})
    content = json.loads((tmp_path / "gpu_suite.json").read_text())
    assert content["not_reached"] == {"layer/ours": 3} and len(content["rows"]) == len(rows)
    assert all(set(journal.FIELDS) <= set(r) for r in content["rows"])
    text = report.table(book.identity, rows, {"layer/ours": 3})
    for words in ("100.0 TFLOP/s", "1.250", "3.20", "20.0", "1.25", "50%", "layer/ours 3", "not built", "CUDA module"):
        assert words in text, words


def test_table_tells_no_speed_of_what_is_red(book: journal.Journal) -> None:
    text = report.table(book.identity, results(book, "red"), {})
    assert "RED bf16  conv k3: error 1 of 2" in text and "4.000" in text
    assert "1.250" not in text and "20.0" not in text and "3.20" not in text
