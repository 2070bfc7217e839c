"""What calls alike share is worked out once, and by nobody else's tensors: registry.planned and Operator._run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from native import kernels
from torch import Tensor

import gan_fast
from gan_fast import functional
from gan_fast.ops import layout, registry
from gan_fast.ops.registry import OPERATORS

FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the operators whose plans are made, in order."""
    kernels()
    made: list[str] = []

    def counted(name: str, plan: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:
            made.append(name)
            return plan(*arguments)

        return registry.planned(counting)

    for name in ("conv", "conv_transpose", "conv_weight_grad"):
        operator = OPERATORS[name]
        plan = registry.plan_of(operator.implementations["cpu"])
        assert plan is not None
        monkeypatch.setattr(operator, "implementations", {**operator.implementations, "cpu": counted(name, plan)})
        operator._choices.clear()
    yield made
    for name in ("conv", "conv_transpose", "conv_weight_grad"):
        OPERATORS[name]._choices.clear()


def conv(x: Tensor, w: Tensor, b: Tensor | None = None, **how: Any) -> Tensor:
    return functional.conv2d(x, w, b, padding=1, backend="cpu", **how)


def test_one_plan_for_calls_alike_each_with_its_own_tensors(plans: list[str]) -> None:
    for _ in range(3):
        x, w, b = torch.randn(2, 5, 6, 7), torch.randn(4, 5, 3, 3), torch.randn(4)
        torch.testing.assert_close(conv(x, w, b), torch.nn.functional.conv2d(x, w, b, padding=1), rtol=1e-4, atol=1e-4)
    assert plans == ["conv"]
    given = [torch.randn(2, 5, 6, 7).requires_grad_(), torch.randn(4, 5, 3, 3).requires_grad_()]
    for _ in range(2):
        conv(*given).sum().backward()
    assert plans == ["conv", "conv", "conv_transpose", "conv_weight_grad"]  # without a bias it is another call


@pytest.mark.parametrize("memory_format", FORMATS)
def test_another_plan_for_what_is_not_alike(plans: list[str], memory_format: torch.memory_format) -> None:
    x, w, b = torch.randn(2, 8, 6, 6), torch.randn(4, 8, 3, 3), torch.randn(8)[::2]
    x = x.contiguous(memory_format=memory_format)
    others: list[tuple[Any, ...]] = [
        (x, w, None), (x, w, b), (x, w, b.contiguous()), (x[:1], w, b), (x[..., ::2], w, b), (x.transpose(2, 3), w, b),
        (x, w.to(memory_format=torch.channels_last), b), (x.double(), w.double(), b.double()),
    ]  # fmt: skip
    for number, given in enumerate(others, 1):
        for _ in range(2):
            expected = torch.nn.functional.conv2d(*given, padding=1)
            torch.testing.assert_close(conv(*given), expected, rtol=1e-4, atol=1e-4)
        assert len(plans) == number
    conv(x, w, activation="relu")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        conv(x, w)
    finally:
        torch.set_num_threads(threads)
    assert len(plans) == len(others) + 2


def test_an_implementation_put_in_later_serves_known_calls(monkeypatch: pytest.MonkeyPatch, plans: list[str]) -> None:
    x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3)
    before = conv(x, w)
    healthy = OPERATORS["conv"].implementations["cpu"]

    @functools.wraps(healthy)  # copies all attributes
    def doubled(*arguments: Any) -> Tensor:
        return 2 * healthy(*arguments)

    assert registry.plan_of(doubled) is None
    monkeypatch.setattr(OPERATORS["conv"], "implementations", {**OPERATORS["conv"].implementations, "cpu": doubled})
    torch.testing.assert_close(conv(x, w), 2 * before)
    OPERATORS["conv"]._choices.clear()
    torch.testing.assert_close(conv(x, w), 2 * before)


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (1, 3, 1, 5), (2, 3, 7), (2, 1, 7), (2, 3, 1)]
)
def test_what_is_taken_and_returned_as_it_is(shape: tuple[int, ...]) -> None:
    """The two questions that plans ask once agree with the functions that they spare."""
    rank = len(shape) - 2
    whole = torch.randn(tuple(2 * n for n in shape))
    images = [
        torch.randn(shape),
        whole[tuple(slice(n) for n in shape)],
        torch.randn(shape[::-1]).permute(*range(rank + 1, -1, -1)),
    ]
    if rank == 2:
        images.append(torch.randn(shape).contiguous(memory_format=torch.channels_last))
    for x in images:
        assert layout.is_for_kernel(x) == (layout.to_kernel(x) is x)
    for memory_format in FORMATS[:rank]:
        out = layout.empty_for_kernel(shape, torch.float32)
        assert layout.is_finished(shape, memory_format) == (layout.from_kernel(out, rank, memory_format) is out)


def test_bfloat16_is_ours_where_pytorch_has_no_instructions_for_it() -> None:
    facts = {"dtype": "bfloat16", "mflop": 0.2, "rank": 2, "in_pixels": 1, "groups": 1, "positions": 1, "batch": 1}
    for op in ("conv", "conv_transpose", "conv_weight_grad"):
        assert gan_fast.choice_table.look_up(op, facts, "avx2").backend == "cpu"
        assert gan_fast.choice_table.look_up(op, {**facts, "groups": 2}, "avx2").backend == "torch"


def test_rules_for_products_of_matrices_bound_their_columns() -> None:
    """Unfolded, an image is as many times larger as the kernel has taps: never without a bound on its pixels."""
    for rule in gan_fast.choice_table.rules():
        if rule["use"] == "gemm":
            upper = {fact for fact, bounds in rule["when"].items() if set(bounds) & {"lt", "le", "eq"}}
            assert upper & {"in_pixels", "positions", "mflop"}, rule
