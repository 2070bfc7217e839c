"""The checks of gan_fast::conv and gan_fast::conv_transpose, run by test_conv.py and test_conv_transpose.py."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from cases import ConvCase
from checks import assert_same_layout, level_of, orders, recorded, rounds_transforms, run, run_torch, run_truth
from hypothesis import given, settings
from hypothesis import strategies as st
from native import kernels
from tolerance import FACTOR, Errors, assert_as_good, errors
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import OPERATORS
from gan_fast.ops.geometry import Geometry

#: On the level that every machine has.
BFLOAT16_LEVELS = ("cpu:portable", "cpu:portable+pairs", "cpu:portable+matrix")
ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh", "sigmoid")


@cache
def yardsticks(case: ConvCase) -> tuple[dict[str, Tensor], dict[str, Errors], dict[str, float]]:
    """Value and derivatives of a case in truth, PyTorch's float32 errors (the worst of the case and two neighbours),
    and how large the terms of an element are together.

    Neighbours have their inputs moved by a thousandth. Small cases have sums that cancel and few elements; on one of
    them PyTorch is lucky now and then, on three hardly ever.
    """
    truths: list[dict[str, Tensor]] = []
    losses: list[dict[str, Errors]] = []
    for neighbour in range(3):
        moved = replace(case, nudge=neighbour)
        truths.append(orders(moved, lambda x, w, b: run_truth(case, x, w, b), torch.float64))
        theirs = orders(moved, lambda x, w, b: run_torch(case, x, w, b), torch.float32)
        losses.append({what: errors(theirs[what], truth) for what, truth in truths[-1].items()})
    worst = {what: Errors(*(max(loss[what][i] for loss in losses) for i in range(2))) for what in truths[0]}
    # Activations' slopes are at most 1: without them, and without signs, the same sums are those of the magnitudes.
    linear = replace(case, activation="none")
    magnitudes = orders(linear, lambda x, w, b: run_truth(linear, x, w, b), torch.float64, magnitudes=True)
    return truths[0], worst, {what: float(value.max()) for what, value in magnitudes.items() if value.numel()}


def check_orders(case: ConvCase, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value, first and second derivatives in float32 are as near to the definition in float64 as PyTorch's own."""
    truth, theirs, terms = yardsticks(case)
    with level_of(backend, monkeypatch) as name, recorded(monkeypatch) as ran:
        ours = orders(case, lambda x, w, b: run(case, x, w, b, name), torch.float32)
    assert ran.of_convolutions() == {name}, f"asked for {name}, ran {sorted(ran)}"
    assert ran.backends() <= {name, "cpu"} if name == "gemm" else ran.backends() == {name}
    assert ours.keys() == truth.keys()
    # The reference is PyTorch's own operations, and gemm's products are: in second order, or as products of matrices,
    # they add in another order than autograd's convolutions.
    factor = FACTOR if name == "cpu" else 2 * FACTOR
    for what, value in ours.items():
        assert_as_good(
            value, truth[what], theirs[what], f"{case.name}, {backend}, {what}", factor, terms.get(what, 0.0)
        )


@cache
def bfloat16_yardsticks(case: ConvCase, stored: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Errors]]:
    """Value and derivatives of a case from numbers as ``stored``, and the errors of PyTorch's bfloat16; of its float32,
    rounded once, where that is not a number: oneDNN's gradients on AMX, for 10 channels in each of two groups.
    """
    half = torch.bfloat16
    truth = orders(case, lambda x, w, b: run_truth(case, x, w, b), torch.float64, stored)
    theirs = orders(case, lambda x, w, b: run_torch(case, x, w, b), half, half)
    if not all(bool(value.isfinite().all()) for value in theirs.values()):
        theirs = {
            what: value.to(half)
            for what, value in orders(case, lambda x, w, b: run_torch(case, x, w, b), torch.float32, half).items()
        }
    return truth, {what: errors(theirs[what], value) for what, value in truth.items()}


def check_bfloat16(case: ConvCase, backend: str, monkeypatch: pytest.MonkeyPatch, second: bool = True) -> None:
    """In bfloat16 value and derivatives are as near to float64 as PyTorch's own bfloat16; the second order, unless
    refused, where every operator of its formula takes bfloat16."""
    second = second and (case.activation == "none" or "act_grad" in backends.BFLOAT16_OPERATORS)
    truth, theirs = bfloat16_yardsticks(case, torch.float32 if rounds_transforms(case, backend) else torch.bfloat16)
    with level_of(backend, monkeypatch) as name, recorded(monkeypatch) as ran:
        ours = orders(case, lambda x, w, b: run(case, x, w, b, name), torch.bfloat16, torch.bfloat16, second)
    assert ran.backends() == {name}, f"asked for {name}, ran {sorted(ran.backends())}"
    for what, value in ours.items():
        assert value.dtype == torch.bfloat16
        assert_as_good(value, truth[what], theirs[what], f"{case.name}, {backend}, {what}")


def small(cases: Sequence[ConvCase]) -> list[ConvCase]:
    """A few cases that between them have groups, dilation, a crop, a tail and one axis."""
    names = ("k3s2", "k4s2", "groups", "dilated", "negative_begin", "line")
    return [case for case in cases if case.name in names]


def threaded(cases: Sequence[ConvCase]) -> list[ConvCase]:
    """Those; one of few output channels, whose bfloat16 kernels add up in a pass of their own; and single images that
    Winograd's engine cuts into as many bands of rows as threads want."""
    more = ("few_out", "to_three", "winograd_large_rows", "winograd_large_bands", "winograd_three_band")
    return [*small(cases), *(case for case in cases if case.name in more)]


def check_gradients(cases: Sequence[ConvCase], activation: str, prologue: str, backend: str) -> None:
    """gradcheck and gradgradcheck in float64; on backend "cpu" that is the portable level's kernel text."""
    if backend != "reference":
        kernels()
    case = replace(next(case for case in cases if case.name == "gradcheck"), activation=activation)
    x, weight, bias = case.tensors(torch.float64)
    y = None
    if prologue != "none":
        # Inside (0, 1), where every activation's output can lie; away from 0, where relu has no derivative.
        y = (
            torch.rand(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype) * 0.8 + 0.1
        ).requires_grad_()

    def call(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor | None) -> Tensor:
        return OPERATORS[case.op](x, weight, bias, *case.form, activation, case.slope, y, prologue, 0.3, backend)

    assert torch.autograd.gradcheck(call, (x, weight, bias, y), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, weight, bias, y), fast_mode=True)


def check_layouts(case: ConvCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strides are the same on every backend and in the fake kernel, whatever the layout of input and weight."""
    with torch.no_grad():
        tensors = case.tensors()
        outputs = [run(case, *tensors, "reference")]
        with level_of("cpu:portable", monkeypatch) as name:
            outputs.append(run(case, *tensors, name))
        meta = [None if t is None else t.to("meta") for t in tensors]
        # .to("meta") gives a dense tensor; keep the strides that the rule looks at.
        meta[0] = torch.empty_strided(tensors[0].shape, tensors[0].stride(), device="meta")
        outputs.append(run(case, *meta, "reference"))
    assert_same_layout(outputs, case.name)


def check_opcheck(case: ConvCase, backend: str) -> None:
    """torch.library.opcheck: schema, autograd registration, fake kernel, AOT dispatch (static, dynamic)."""
    if backend != "reference":
        kernels()
    args = (*case.tensors(), *case.form, case.activation, case.slope, None, "none", 0.01, backend)
    torch.library.opcheck(getattr(torch.ops.gan_fast, case.op).default, args)


def check_special_values(case: ConvCase, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Huge and denormal inputs lose no more than PyTorch; NaN and infinity come out exactly where PyTorch has them."""
    with level_of(backend, monkeypatch) as name, torch.no_grad():
        for scale in (1e30, 1e-41):
            tensors = case.tensors(scale=scale)
            truth = run_truth(case, *(None if t is None else t.double() for t in tensors))
            what = f"{case.name} times {scale}"
            assert_as_good(run(case, *tensors, name), truth, run_torch(case, *tensors), what)
        for special in (float("nan"), float("inf")):
            x, weight, bias = (None if t is None else t.detach().clone() for t in case.tensors())
            x[tuple(n // 2 for n in x.shape)] = special
            ours, theirs = run(case, x, weight, bias, name), run_torch(case, x, weight, bias)
            assert torch.equal(torch.isfinite(ours), torch.isfinite(theirs)), f"{case.name} with one {special}"
            # relu of an infinite sum may hide a sign of NaN; where both are finite the ordinary bound has been checked.
            assert torch.equal(torch.isnan(ours), torch.isnan(theirs)), f"{case.name} with one {special}"


def check_empty_batch(case: ConvCase, backend: str) -> None:
    """No samples: an empty output, and zero gradients of weight and bias."""
    if backend != "reference":
        kernels()
    x, weight, bias = case.tensors()
    out = run(case, x[:0], weight, bias, backend)
    assert out.shape == (0, *case.output[1:])
    out.sum().backward()
    assert weight.grad is not None and not weight.grad.any()


def check_threads(case: ConvCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits for any number of threads, gradients included."""
    before = torch.get_num_threads()
    for dtype, backend in ((torch.float32, "cpu:portable"), *((torch.bfloat16, level) for level in BFLOAT16_LEVELS)):
        results = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                with level_of(backend, monkeypatch) as name:
                    second = dtype == torch.float32
                    program = functools.partial(run, case, backend=name)
                    results.append(orders(case, program, dtype, dtype, second))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            for what, value in results[0].items():
                assert torch.equal(value, other[what]), f"{case.name}, {what}: depends on the number of threads"


@st.composite
def geometries(draw: st.DrawFn, transposed: bool, most: int = 18) -> ConvCase:
    """A random small case of up to ``most`` channels in a group; beginnings and ends of the padding are free, crops
    included."""
    rank = draw(st.integers(1, 2))

    def axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    size, kernel, stride, dilation, out = axis(1, 7), axis(1, 4), axis(1, 3), axis(1, 3), axis(1, 9)
    begin = axis(-3, 5)
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    inner, outer = groups * draw(st.integers(1, most)), draw(st.integers(1, most))
    batch = draw(st.integers(1, 3))
    weight = (inner, outer, *kernel)
    channels = inner if transposed else outer * groups
    return ConvCase(
        "random",
        (batch, channels, *size),
        weight,
        Geometry(stride, begin, dilation, groups, out),
        transposed,
        layout=draw(st.sampled_from(("contiguous", "channels_last", "strided"))),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        bias=draw(st.booleans()),
    )


def random_geometries(
    transposed: bool, backend: str, monkeypatch: pytest.MonkeyPatch, examples: int, most: int = 18
) -> None:
    """check_orders on random geometries of up to ``most`` channels in a group."""

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    @given(geometries(transposed, most))
    def inner(case: ConvCase) -> None:
        check_orders(case, backend, monkeypatch)

    inner()


def random_bfloat16(transposed: bool, backend: str, monkeypatch: pytest.MonkeyPatch, examples: int) -> None:
    """check_bfloat16 on random geometries, with channels on both sides of a block of 32. Not in second order: of a few
    elements, rounded at every step, PyTorch's are right by luck too often."""

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    @given(geometries(transposed, most=40))
    def inner(case: ConvCase) -> None:
        check_bfloat16(case, backend, monkeypatch, second=False)

    inner()


def check_mutation(cases: Sequence[ConvCase], index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of values notices one wrong element, of the value or of a gradient, at either end of the output."""
    case = next(case for case in cases if case.name == "groups")
    check_orders(case, "cpu:portable", monkeypatch)
    for name in OPERATORS:
        if not name.startswith("conv"):
            continue
        healthy = OPERATORS[name].implementations["cpu"]

        def broken(*args: Any, healthy: Callable[..., Any] = healthy) -> Any:
            out = healthy(*args)
            first = out[0] if isinstance(out, tuple) else out
            first.view(-1)[index] += 1e-4 * float(first.abs().max())
            return out

        with monkeypatch.context() as patch:
            patch.setattr(OPERATORS[name], "implementations", {**OPERATORS[name].implementations, "cpu": broken})
            with pytest.raises(AssertionError, match=r"error .* against float64"):
                check_orders(case, "cpu:portable", patch)


#: Changed arguments of the case "groups" -> part of the error's text.
BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"input": torch.zeros(2, 12, 4)}, "weight must have 3 axes"),
    ({"input": torch.zeros(2, 11, 8, 7)}, "input must have 12 channels"),
    ({"input": torch.zeros(12)}, r"1 to 3 spatial axes, got shape \(12,\)"),
    ({"input": torch.zeros(2, 12, 8, 0)}, "must be positive"),
    ({"input": torch.zeros(2, 12, 8, 7, dtype=torch.float64)}, "weight must have the dtype and device of input"),
    ({"bias": torch.zeros(4)}, r"bias must have shape \(\d+,\), got \(4,\)"),
    ({"stride": [1]}, r"stride must have 2 entries for a 2-D convolution, got \[1\]"),
    ({"stride": [0, 1]}, r"stride must be positive, got \[0, 1\]"),
    ({"dilation": [1, -1]}, r"dilation must be positive, got \[1, -1\]"),
    ({"out_size": [0, 3]}, r"out_size must be positive, got \[0, 3\]"),
    ({"groups": 5}, "groups=5"),
    ({"groups": 0}, "groups must be positive, got 0"),
    ({"activation": "swish"}, "activation: unknown 'swish'"),
    ({"activation": "leaky_relu", "negative_slope": -0.1}, "slope > 0"),
    ({"prologue_activation": "relu"}, "prologue_y and prologue_activation"),
    ({"prologue_activation": "relu", "prologue_y": torch.zeros(2, 12, 8, 6)}, "prologue_y must have shape"),
    ({"backend": "cuad"}, "unknown backend 'cuad'.*did you mean 'cuda'"),
]


def check_refusal(cases: Sequence[ConvCase], change: dict[str, Any], message: str) -> None:
    """A wrong argument raises ValueError with a text that names it."""
    case = next(case for case in cases if case.name == "groups")
    x, weight, bias = case.tensors(requires_grad=False)
    stride, pad_begin, dilation, groups, out_size = case.form
    arguments = {
        "input": x, "weight": weight, "bias": bias, "stride": stride, "pad_begin": pad_begin, "dilation": dilation,
        "groups": groups, "out_size": out_size, "backend": "reference",
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        getattr(torch.ops.gan_fast, case.op)(**{**arguments, **change})
