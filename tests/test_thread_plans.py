"""How the kernels split their work for more threads than this machine has: benchmarks/threads.py and its hook."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from native import kernels

from gan_fast import functional

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def threads() -> object:
    kernels()
    spec = importlib.util.spec_from_file_location("benchmarks_threads", BENCHMARKS / "threads.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_plan_computes_nothing_and_ends() -> None:
    module = kernels()
    # In channels_last: copies between the orders have loops of their own.
    x, weight = torch.randn(2, 8, 9, 9).to(memory_format=torch.channels_last), torch.randn(16, 8, 3, 3)
    expected = functional.conv2d(x, weight, backend="cpu")
    module.begin_plan()
    functional.conv2d(x, weight, backend="cpu")
    plan = module.end_plan()
    assert len(plan["loops"]) == 2 and min(plan["loops"]) >= 1 and plan["shared_weights"] >= 4 * weight.numel()
    assert torch.equal(functional.conv2d(x, weight, backend="cpu"), expected)
    assert module.end_plan() == {"loops": [], "shared_weights": 0, "partial_sums": 0, "winograd": 0, "parts": 0}


def test_busy(threads: object) -> None:
    busy = threads.busy  # type: ignore[attr-defined]  # a benchmark's file
    assert [busy(8, 4), busy(9, 4), busy(1, 16), busy(64, 64)] == [1, 0.75, 1 / 16, 1]


def test_the_article_s_layers_are_cut_and_share_no_growing_sums(threads: object) -> None:
    rows = threads.rows(threads.select(family="article_g"))  # type: ignore[attr-defined]  # as above
    assert len(rows) >= 6
    for row in rows:
        plans, what = row["plans"], f"{row['shape'].name} {row['pass']}"
        for name in ("partial_sums", "shared_weights"):
            assert threads.growth(row, name) <= threads.MOST_GROWTH, what  # type: ignore[attr-defined]  # as above
        if row["shape"].batch > 1:
            assert plans[2]["products"] >= 2, what
    threads.summary(rows)  # type: ignore[attr-defined]  # as above
    assert threads.line(rows[0])  # type: ignore[attr-defined]  # as above


@pytest.mark.parametrize("threads", [3, 70])
def test_every_task_is_done_once(threads: int) -> None:
    """Shares of neighbours, and the interleaved ones of packed weights; 70 threads begin with 64 shares."""
    kernels()
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(3, 512, 9, 8, generator=generator).to(memory_format=torch.channels_last)
    weight = torch.randn(480, 512, 3, 3, generator=generator)
    long = torch.randn(90, 32768, generator=generator)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            results.append(
                (functional.conv2d(x, weight, backend="cpu"), functional.bias_act(long, None, "relu", backend="cpu"))
            )
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        assert torch.equal(one, many)
    assert torch.equal(results[0][1], long.relu())
