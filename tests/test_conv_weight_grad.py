"""gan_fast::conv_weight_grad on every backend and level; its uses as a derivative are in test_conv*.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CONV, CONV_TRANSPOSE, ConvCase, naive
from checks import (
    BFLOAT16_BACKENDS,
    CONVOLUTION_BACKENDS,
    CONVOLUTION_REGISTERED,
    level_of,
    recorded,
    rounds_transforms,
)
from conv_checks import ACTIVATIONS, small
from native import kernels
from tolerance import FACTOR, assert_as_good
from torch import Tensor

from gan_fast.ops import OPERATORS
from gan_fast.ops import activation as activations

CASES = [*CONV, *CONV_TRANSPOSE]
all_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.name}")
small_cases = pytest.mark.parametrize(
    "case", small(CONV) + small(CONV_TRANSPOSE), ids=lambda case: f"{case.op}-{case.name}"
)


def tensors(
    case: ConvCase, dtype: torch.dtype, prologue: bool, stored: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(input, gradient of the output, the output that the prologue reads): numbers rounded to ``stored``."""
    generator = torch.Generator().manual_seed(11)
    x = case.tensors(stored)[0].detach().to(dtype).requires_grad_()
    g = torch.randn(case.output, generator=generator, dtype=torch.float64).to(stored).to(dtype).requires_grad_()
    y = torch.rand(case.output, generator=generator, dtype=torch.float64).float() * 0.8 + 0.1
    return x, g, y.to(stored).to(dtype).requires_grad_() if prologue else None


def run(
    case: ConvCase, x: Tensor, g: Tensor, y: Tensor | None, act: str, backend: str, channels_last: bool = False
) -> tuple[Tensor, Tensor]:
    stride, pad_begin, dilation, groups, _ = case.form
    kernel = list(case.weight[2:])
    return OPERATORS["conv_weight_grad"](
        x, g, kernel, stride, pad_begin, dilation, groups, case.transposed, True, y, act, 0.3, channels_last, backend
    )


def truth(case: ConvCase, act: str, stored: torch.dtype) -> tuple[Tensor, Tensor]:
    """By autograd, through the definition of the forward operation, in float64."""
    x, g, y = tensors(case, torch.float64, act != "none", stored)
    _, weight, _ = case.tensors(torch.float64)
    bias = torch.zeros(case.output[1], dtype=torch.float64, requires_grad=True)
    product = g if y is None else activations.grad(g, y, act, 0.3)
    gradients = torch.autograd.grad(naive(case, x, weight, bias), (weight, bias), product)
    return gradients[0].detach(), gradients[1].detach()


@pytest.mark.parametrize("backend", CONVOLUTION_BACKENDS)
@all_cases
def test_value(case: ConvCase, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_value(case, backend, torch.float32, monkeypatch)


@pytest.mark.parametrize("backend", BFLOAT16_BACKENDS)
@all_cases
def test_bfloat16(case: ConvCase, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_value(case, backend, torch.bfloat16, monkeypatch)


def check_value(case: ConvCase, backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    act = case.activation
    expected = truth(case, act, torch.float32 if rounds_transforms(case, backend) else dtype)
    x, g, y = tensors(case, dtype, act != "none", dtype)
    with torch.no_grad():
        theirs = OPERATORS["conv_weight_grad"].implementations["reference"](
            x, g, list(case.weight[2:]), *case.form[:4], case.transposed, True, y, act, 0.3
        )
        with level_of(backend, monkeypatch) as name, recorded(monkeypatch) as ran:
            ours = run(case, x, g, y, act, name)
    assert ran == [("conv_weight_grad", name)]
    assert ours[0].shape == case.weight and ours[0].is_contiguous()
    for what, mine, reference, true in zip(("weight", "bias"), ours, theirs, expected, strict=True):
        # gemm's product is PyTorch's, in another order than its convolution's.
        factor = 2 * FACTOR if name == "gemm" else FACTOR
        assert_as_good(mine, true, reference, f"{case.name}, {backend}, {what}", factor)


@pytest.mark.parametrize("backend", CONVOLUTION_REGISTERED)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("cases", [CONV, CONV_TRANSPOSE], ids=["conv", "conv_transpose"])
def test_gradcheck(cases: list[ConvCase], act: str, backend: str) -> None:
    if backend != "reference":
        kernels()
    case = next(case for case in cases if case.name == "gradcheck")

    def call(x: Tensor, g: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        return run(case, x, g, y, act, backend)

    inputs = tensors(case, torch.float64, act != "none")
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("backend", CONVOLUTION_REGISTERED)
@small_cases
def test_opcheck(case: ConvCase, backend: str) -> None:
    if backend != "reference":
        kernels()
    x, g, y = tensors(case, torch.float32, prologue=True)
    rest = (y, "tanh", 0.3, len(case.weight) == 4, backend)
    args = (x, g, list(case.weight[2:]), *case.form[:4], case.transposed, True, *rest)
    # Traced, the reference's gradients get other strides, and oneDNN may then add PyTorch's own sums in another order.
    bounds = {"atol": 1e-4, "rtol": 1e-4} if backend == "reference" else {}
    torch.library.opcheck(torch.ops.gan_fast.conv_weight_grad.default, args, **bounds)


@pytest.mark.parametrize("backend", CONVOLUTION_BACKENDS)
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ("k3s2", "k4s2", "groups")], ids=lambda c: c.op + c.name
)
def test_channels_last_is_the_same_in_another_order(
    case: ConvCase, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every backend, and the fake kernel, gives the strides that PyTorch gives such a tensor; an empty batch, too."""
    x, g, y = tensors(case, torch.float32, prologue=True)
    with torch.no_grad(), level_of(backend, monkeypatch) as name:
        plain, asked = (run(case, x, g, y, "relu", name, last)[0] for last in (False, True))
        nothing = run(case, x[:0], g[:0], y[:0], "relu", name, True)[0]
        fake = run(case, x.to("meta"), g.to("meta"), y.to("meta"), "relu", "reference", True)[0]
    assert plain.is_contiguous()
    if backend.startswith(("gemm", "reference")):  # PyTorch's kernels for the other format may add in another order
        with torch.no_grad():
            truth = run(case, x.double(), g.double(), y.double(), "relu", "reference", False)[0]
            theirs = run(case, x, g, y, "relu", "reference", False)[0]
        assert_as_good(asked, truth, theirs, case.name, 2 * FACTOR)  # as test_value
    else:
        assert torch.equal(plain, asked)
    pattern = torch.empty(case.weight, memory_format=torch.channels_last)
    assert asked.stride() == nothing.stride() == fake.stride() == pattern.stride()


@pytest.mark.parametrize("backend", CONVOLUTION_REGISTERED)
def test_without_the_bias(backend: str) -> None:
    if backend != "reference":
        kernels()
    case = CONV[0]
    x, g, _ = tensors(case, torch.float32, prologue=False)
    weight_grad, bias_grad = OPERATORS["conv_weight_grad"](
        x, g, list(case.weight[2:]), *case.form[:4], case.transposed, False, None, "none", 0.01, False, backend
    )
    assert bias_grad.shape == (0,)
    (second,) = torch.autograd.grad(weight_grad.sum(), g)
    assert second.shape == g.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad_output": torch.zeros(2, 18, 4)}, "must have the rank of input"),
        ({"grad_output": torch.zeros(3, 18, 4, 5)}, "batch size of input, 2, got 3"),
        ({"grad_output": torch.zeros(2, 17, 4, 5)}, r"groups must divide .*\(12 and 17\), got 3"),
        ({"kernel_size": [3]}, "must have the rank of input"),
        ({"kernel_size": [3, 0]}, "must be positive"),
        ({"groups": 0}, "got 0"),
        (
            {
                "input": torch.zeros(2, 12, 8),
                "grad_output": torch.zeros(2, 18, 4),
                "kernel_size": [3],
                "stride": [2],
                "pad_begin": [1],
                "dilation": [1],
                "channels_last": True,
            },
            r"channels_last is a format of 2-D weights, got kernel_size \[3\]",
        ),
        ({"prologue_activation": "tanh"}, "go together"),
        ({"grad_output": torch.zeros(2, 18, 4, 5, dtype=torch.float64)}, "grad_output must have the dtype"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "input": torch.zeros(2, 12, 8, 7), "grad_output": torch.zeros(2, 18, 4, 5), "kernel_size": [3, 3],
        "stride": [2, 1], "pad_begin": [1, 0], "dilation": [1, 1], "groups": 3, "transposed": False, "want_bias": True,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        torch.ops.gan_fast.conv_weight_grad(**{**arguments, **change})
