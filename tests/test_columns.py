"""What gan_fast.ops.columns adds to the checks of the convolutions on backend "gemm": parts of a batch, products of few
rows, and when the automatic choice takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import recorded
from native import kernels
from torch import Tensor

from gan_fast import backends, choice_table, functional
from gan_fast.choice_table import Choice
from gan_fast.ops import columns, geometry

FUNCTIONS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv": (functional.conv2d, (6, 5, 3, 3)),
    "conv_transpose": (functional.conv_transpose2d, (5, 6, 3, 3)),
}


def passes(function: Any, x: Tensor, weight: Tensor, backend: str) -> tuple[Tensor, ...]:
    """Output and both gradients."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = function(x, weight, stride=2, padding=1, backend=backend)
    return (y, *torch.autograd.grad(y.square().sum(), (x, weight)))


def assert_same(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    """In float64, but for the order of the sums."""
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def case(op: str, batch: int = 2) -> tuple[Any, Tensor, Tensor, tuple[Tensor, ...]]:
    """Function, image and weight in float64, and the passes by PyTorch."""
    kernels()
    function, shape = FUNCTIONS[op]
    x, weight = torch.randn(batch, 5, 9, 8, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    return function, x, weight, passes(function, x, weight, "reference")


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("most", [1, 5000, 1 << 30])
def test_a_batch_may_go_in_parts(op: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    function, x, weight, expected = case(op, batch=7)
    monkeypatch.setattr(columns, "MOST_BYTES", most)
    assert len(list(columns.parts(7, 1000))) == {1: 7, 5000: 2, 1 << 30: 1}[most]
    assert_same(passes(function, x, weight, "gemm"), expected)


@pytest.mark.parametrize("batch", [9, 10, 55, 56])
def test_products_of_few_rows_with_many_columns(batch: int) -> None:
    """Around the bounds from which the transpose is multiplied."""
    kernels()
    x, weight = torch.randn(batch, 4, 3, 3, dtype=torch.float64), torch.randn(400, 4, 3, 3, dtype=torch.float64)
    got, wanted = (functional.conv2d(x, weight, backend=name) for name in ("gemm", "reference"))
    assert got.shape == (batch, 400, 1, 1)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["cpu", "gemm"])
@pytest.mark.parametrize("op", FUNCTIONS)
def test_weights_in_any_memory(op: str, backend: str) -> None:
    """Dense in either format, and neither: a slice in channels_last order has its strides but not its memory."""
    function, x, weight, expected = case(op)
    wide = torch.cat((weight, weight), 1).to(memory_format=torch.channels_last)
    sliced = wide[:, : weight.shape[1]]
    assert not sliced.is_contiguous(memory_format=torch.channels_last)
    forms = [weight, weight.to(memory_format=torch.channels_last), sliced, weight.flip(3).flip(3)]
    forms.append(weight.transpose(2, 3).contiguous().transpose(2, 3))
    for form in forms:
        assert_same(passes(function, x, form, backend), expected)


@pytest.mark.parametrize("backend", ["cpu", "gemm"])
@pytest.mark.parametrize("op", FUNCTIONS)
def test_views_that_pytorch_negates_when_they_are_read(op: str, backend: str) -> None:
    """The imaginary part of a conjugate is one: its memory has the other sign."""
    kernels()
    function, shape = FUNCTIONS[op]

    def negated(*size: int) -> Tensor:
        view = torch.randn(*size, dtype=torch.complex128).conj().imag
        assert view.is_neg()
        return view

    x, weight, bias = negated(2, 5, 9, 8), negated(*shape), negated(6)
    expected = function(x, weight, bias, stride=2, backend="reference")
    torch.testing.assert_close(function(x, weight, bias, stride=2, backend=backend), expected, rtol=1e-12, atol=1e-12)
    images = negated(2, 9, 8, 5).permute(0, 3, 1, 2)  # dense in channels_last, so that no kernel needs a copy
    expected = function(images, weight, bias, stride=2, backend="reference")
    got = function(images, weight, bias, stride=2, backend=backend)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["cpu", "gemm"])
@pytest.mark.parametrize("op", FUNCTIONS)
def test_buffers_are_on_the_cpu_whatever_the_default_device(op: str, backend: str) -> None:
    function, x, weight, expected = case(op)
    torch.set_default_device("meta")
    try:
        found = passes(function, x, weight, backend)
    finally:
        torch.set_default_device(None)
    assert_same(found, expected)


def test_the_rules_keep_the_columns_of_one_sample_small() -> None:
    """A 3x3 layer of 512 channels on one large image would need gigabytes."""
    for op in ("conv", "conv_transpose", "conv_weight_grad"):
        facts = geometry.facts(
            op == "conv_transpose", (1, 512, 512, 512), (512, 512, 3, 3),
            geometry.Geometry((1, 1), (1, 1), (1, 1), 1, (512, 512)), True,
        )  # fmt: skip
        asked = {**facts, "rank": 2, "fused": False, "weight_last": False, "transposed": False}
        assert choice_table.decide(op, asked, "avx512").backend != "gemm"


def test_other_operators_run_on_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels()
    x = torch.randn(4, 5, 8, 8)
    with recorded(monkeypatch) as ran, backends.use_backend("gemm"):
        functional.bias_act(functional.conv2d(x, torch.randn(6, 5, 3, 3)), torch.randn(6), activation="tanh")
    assert ran == [("conv", "gemm"), ("bias_act", "cpu")]


def test_bfloat16_is_never_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels()
    rule = {"ops": ["conv"], "when": {}, "use": "gemm", "why": "for the test"}
    last = {"ops": ["conv"], "when": {}, "use": "cpu", "why": "the next one"}
    monkeypatch.setattr(choice_table, "_rules_for", lambda level: [rule, last])
    facts = {"rank": 2, "mflop": 1.0}
    assert backends.choose("conv", **facts) == Choice("gemm", "for the test")
    assert backends.choose("conv", dtype=torch.bfloat16, **facts) == Choice("cpu", "the next one")
    with pytest.raises(RuntimeError, match="the gemm kernels of conv take float32"):
        backends.choose("conv", backend="gemm", dtype=torch.bfloat16, **facts)
