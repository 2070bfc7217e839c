"""The Triton kernels of the three convolution operators, in Triton's interpreter, against float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CONV, CONV_TRANSPOSE, ConvCase, conv_case, naive
from torch import Tensor
from triton_proof import DTYPES, MANY_TILES, ONE_TILE, check, record, tile

from gan_fast import functional
from gan_fast.ops import OPERATORS, _triton
from gan_fast.ops import activation as activations

__all__ = ["record"]  # the fixture, for this module

ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh", "sigmoid")


def grid(transposed: bool) -> list[ConvCase]:
    """Kernel x stride x dilation, with paddings, output paddings, groups, odd sizes and tails in turn."""
    found = []
    turn = itertools.count()
    for k, s, d in itertools.product((1, 2, 3, 4, 5), (1, 2, 3), (1, 2)):
        i = next(turn)
        groups = (1, 1, 2, 1, 3)[i % 5]
        # Both sides of the number of channels from which taps are no longer an inner dimension, and tails of 16.
        inner, outer = ((17, 5), (3, 20), (16, 33), (1, 9), (20, 1))[i % 5]
        size = ((3, 5), (5, 4), (4, 4), (1, 7))[i % 4]
        pad = (i % 3, (i + 1) % 3)
        span = d * (k - 1) + 1
        if transposed:
            extra = i % max(s, d)
            out = tuple(max(1, (n - 1) * s - 2 * p + span + extra) for n, p in zip(size, pad, strict=True))
            shape = (2, inner * groups, *size), (inner * groups, outer, k, k)
        else:
            out = tuple(max(1, (n + 2 * p - span) // s + 1) for n, p in zip(size, pad, strict=True))
            shape = (2, inner * groups, *size), (outer * groups, inner, k, k)
        name = f"k{k}s{s}d{d}p{pad[0]}{pad[1]}g{groups}-{inner}-{outer}"
        layout = ("contiguous", "channels_last")[i % 2]
        options = {"activation": ACTIVATIONS[i % 5], "bias": i % 4 != 3, "layout": layout}
        found.append(
            conv_case(name, *shape, out, stride=s, pad=pad, dilation=d, groups=groups, transposed=transposed, **options)
        )
    return found


#: The awkward cases of the other backends, but those that are many steps for the interpreter and say little more.
LONG = ("winograd", "deep", "tails", "few_out", "line_long", "wide", "k5s2", "keras_k5s2", "stride1")
CASES = [c for c in [*CONV, *CONV_TRANSPOSE] if not c.name.startswith(LONG)]
GRID = [*grid(transposed=False), *grid(transposed=True)]
every_case = pytest.mark.parametrize("case", [*CASES, *GRID], ids=lambda c: f"{c.op}-{c.name}")


def both(call: Callable[..., Any], tensors: tuple[Tensor | None, ...], dtype: torch.dtype) -> tuple[Any, Any]:
    """(PyTorch's result in ``dtype``, the truth by ``call`` in float64 from the same rounded numbers)."""
    rounded = [None if t is None else t.to(dtype) for t in tensors]
    return call(*rounded), call(*(None if t is None else t.double() for t in rounded))


def pick(case: ConvCase) -> tuple[torch.dtype, Any]:
    """Types and tiles in turn over the cases: each has one of each."""
    i = [*CASES, *GRID].index(case)
    # Many tiles only where the interpreter is through them in about a second.
    small = math.prod(case.output) * math.prod(case.weight[1:]) < 20_000
    return DTYPES[i % 3], (ONE_TILE, MANY_TILES, None)[i % 3 if small else 0]


def run(case: ConvCase, x: Tensor, w: Tensor, b: Tensor | None, y: Tensor | None, act: str, backend: str) -> Tensor:
    return OPERATORS[case.op](x, w, b, *case.form, case.activation, case.slope, y, act, 0.3, backend)


@pytest.fixture(autouse=True)
def ieee(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter rounds nothing to TF32; float32 is compared as such."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@every_case
def test_value(case: ConvCase) -> None:
    dtype, forced = pick(case)
    x, w, b = case.tensors(requires_grad=False)
    theirs, truth = both(lambda x, w, b: run(case, x, w, b, None, "none", "reference"), (x, w, b), dtype)
    with tile(forced):
        ours = run(case, *(None if t is None else t.to(dtype) for t in (x, w, b)), None, "none", "triton")
    assert ours.stride() == theirs.stride()
    check(case.op, f"{case.name} {dtype}", ours, truth, theirs)


@every_case
def test_weight_gradient(case: ConvCase) -> None:
    dtype, forced = pick(case)
    x = case.tensors(requires_grad=False)[0]
    generator = torch.Generator().manual_seed(3)
    g, y = torch.randn(case.output, generator=generator), torch.rand(case.output, generator=generator) * 0.8 + 0.1
    stride, pad, dilation, groups, _ = case.form

    last = len(case.weight) == 4 and forced is MANY_TILES

    def call(x: Tensor, g: Tensor, y: Tensor, backend: str = "reference") -> tuple[Tensor, Tensor]:
        prologue = (None, "none") if case.activation == "none" else (y, case.activation)
        return OPERATORS["conv_weight_grad"](
            x, g, list(case.weight[2:]), stride, pad, dilation, groups, case.transposed, True, *prologue, 0.3, last,
            backend,
        )  # fmt: skip

    theirs, truth = both(call, (x, g, y), dtype)
    with tile(forced):
        ours = call(*(t.to(dtype) for t in (x, g, y)), "triton")
    for name, mine, exact, other in zip(("weight", "bias"), ours, truth, theirs, strict=True):
        check("conv_weight_grad", f"{case.op} {case.name} {dtype} {name}", mine, exact, other)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("act", ACTIVATIONS[1:])
@pytest.mark.parametrize("channels", [3, 18])
def test_prologue(channels: int, act: str, transposed: bool) -> None:
    """The gradient passes an activation on its way in: by the kernel for many channels, and by that for few."""
    case = conv_case("prologue", (2, channels, 5, 6), (channels, 7, 3, 3) if transposed else (7, channels, 3, 3),
                     stride=2, pad=1, transposed=transposed, bias=False)  # fmt: skip
    for dtype in DTYPES:
        x, w, _ = case.tensors(requires_grad=False)
        y = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) - (0.4 if "relu" in act else 0)
        theirs, truth = both(lambda x, w, y: run(case, x, w, None, y, act, "reference"), (x, w, y), dtype)
        with tile(ONE_TILE):
            ours = run(case, x.to(dtype), w.to(dtype), None, y.to(dtype), act, "triton")
        check(case.op, f"prologue {act} {dtype}", ours, truth, theirs)


def test_no_product_with_an_inserted_zero() -> None:
    """NaN at one input reaches exactly the outputs that a tap connects it with: all others never touch it."""
    case = conv_case("nan", (1, 16, 4, 4), (16, 16, 3, 3), stride=2, pad=1, transposed=True, bias=False)
    x, w, _ = case.tensors(requires_grad=False)
    x[0, :, 1, 2] = float("nan")
    ours = run(case, x, w, None, None, "none", "triton")
    truth = naive(case, x.isnan().float(), w.abs(), None) > 0
    assert torch.equal(ours.isnan(), truth)


@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("k3s2", "k4s2", "line")], ids=lambda c: c.name)
def test_derivatives_of_two_orders_run_on_the_kernels(case: ConvCase) -> None:
    """Backward and double backward, all by backend "triton", as near to float64 as PyTorch's."""

    def orders(dtype: torch.dtype, backend: str) -> list[Tensor]:
        tensors = [t for t in case.tensors(dtype) if t is not None]
        out = run(case, tensors[0], tensors[1], tensors[2] if case.bias else None, None, "none", backend)
        mix = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        first = torch.autograd.grad((out * mix).sum(), tensors, create_graph=True)
        total = torch.stack([g.square().sum() for g in first]).sum()
        # The result is linear in the bias: its gradients do not depend on it.
        second = torch.autograd.grad(total, tensors, materialize_grads=True, allow_unused=True)
        return [*(g.detach() for g in first), *second]

    with tile(ONE_TILE):
        ours = orders(torch.float32, "triton")
    truth, theirs = orders(torch.float64, "reference"), orders(torch.float32, "reference")
    for i, (mine, exact, other) in enumerate(zip(ours, truth, theirs, strict=True)):
        check(case.op, f"derivative {i} of {case.name}", mine, exact, other)


def test_64_bit_offsets_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' variant for tensors of more than 2^31 elements, on small ones."""
    case = conv_case("wide", (2, 17, 5, 6), (17, 9, 3, 3), stride=2, pad=1, transposed=True, activation="relu")
    x, w, b = case.tensors()
    results = []
    for wide in (False, True):
        monkeypatch.setattr(_triton, "wide", lambda *tensors, wide=wide: wide)
        out = run(case, x, w, b, None, "none", "triton")
        results.append([out, *torch.autograd.grad(out.sum(), [x, w, b])])
    for narrow, wide_result in zip(*results, strict=True):
        assert torch.equal(narrow, wide_result)


def test_functional_by_name_and_empty_batch() -> None:
    x, w = torch.randn(2, 8, 5, 5), torch.randn(8, 4, 4, 4)
    ours = functional.conv_transpose2d(x, w, None, 2, 1, activation="tanh", backend="triton")
    theirs = activations.apply(torch.nn.functional.conv_transpose2d(x, w, None, 2, 1), "tanh", 0.01)
    torch.testing.assert_close(ours, theirs)
    case = conv_case("empty", (2, 8, 5, 5), (8, 4, 4, 4), stride=2, pad=1, transposed=True)
    weight = w.clone().requires_grad_()
    out = run(case, x[:0], weight, None, None, "none", "triton")
    assert out.shape == (0, 4, 10, 10)
    out.sum().backward()
    assert weight.grad is not None and not weight.grad.any()
