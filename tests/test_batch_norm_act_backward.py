"""gan_fast::batch_norm_act_backward on every backend and level: against float64, and its own derivative."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from batch_norm_cases import CASES, EPS, EVALUATION, SLOPE, NormCase, by_torch, name, random_cases
from cases import LAYOUTS
from checks import BACKENDS, REGISTERED, assert_same_layout, level_of, recorded
from conv_checks import ACTIVATIONS
from hypothesis import assume, given, settings
from native import kernels
from tolerance import assert_as_good
from torch import Tensor

from gan_fast.ops import OPERATORS

F64 = torch.float64


def statistics(case: NormCase, x: Tensor) -> tuple[Tensor, Tensor]:
    if not case.training:
        mean, var = case.running(F64)
        return mean, var
    var, mean = torch.var_mean(x.detach().double(), [0, *range(2, x.dim())], correction=0)
    return mean, var


def run(case: NormCase, grad_output: Tensor, tensors: list[Tensor], backend: str) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = (*tensors, None, None)[:3]
    form = (case.training, EPS, case.activation, SLOPE)
    operator = OPERATORS["batch_norm_act_backward"]
    return operator(grad_output, x, weight, bias, *statistics(case, x), *form, backend)


def check_value(case: NormCase, backend: str) -> None:
    def plain(dtype: torch.dtype) -> tuple[Tensor, ...]:
        tensors = case.tensors(dtype)
        return torch.autograd.grad(by_torch(case, tensors, dtype), tensors, case.grad_output(dtype))

    with torch.no_grad():
        ours = run(case, case.grad_output(), case.tensors(), backend)
    truths, theirs = plain(F64), plain(torch.float32)
    for mine, truth, other, what in zip(ours, truths, theirs, ("input", "weight", "bias"), strict=False):
        assert_as_good(mine, truth, other, f"{what} of {name(case)}")
    if case.activation == "none":
        assert_same_layout([ours[0], theirs[0]], name(case))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [*CASES, *EVALUATION], ids=name)
def test_value(case: NormCase, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with level_of(backend, monkeypatch) as ran_by, recorded(monkeypatch) as ran:
        check_value(case, ran_by)
    assert ran == [("batch_norm_act_backward", ran_by)]


@settings(max_examples=60, deadline=None)
@given(random_cases())
def test_random_shapes(case: NormCase) -> None:
    kernels()
    # The gradient of two or three values is what is left of terms that nearly cancel: nobody's last digits mean much.
    assume(not case.training or math.prod(case.shape) // case.shape[1] >= 8)
    check_value(case, "cpu")


@pytest.mark.parametrize("backend", REGISTERED)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gradcheck(act: str, training: bool, backend: str) -> None:
    """Of the input's gradient and of the others alone too: a penalty on gradients wants only the one."""
    if backend == "cpu":
        kernels()
    for affine, wanted in itertools.product((True, False), ([0, 1, 2], [0], [1, 2])):
        case = NormCase((2, 3, 2, 2), "channels_last", act, training, affine)
        tensors = case.tensors(F64)
        grad_output = case.grad_output(F64).requires_grad_()

        def call(g: Tensor, *tensors: Tensor, case: NormCase = case, wanted: list[int] = wanted) -> tuple[Tensor, ...]:
            results = run(case, g, list(tensors), backend)
            return tuple(results[i] for i in wanted)

        assert torch.autograd.gradcheck(call, (grad_output, *tensors))
        if act not in ("relu", "leaky_relu"):  # their kinks: a step of the numerical derivative may cross one
            assert torch.autograd.gradgradcheck(call, (grad_output, *tensors), fast_mode=True)


@pytest.mark.parametrize("backend", REGISTERED)
def test_opcheck(backend: str) -> None:
    if backend == "cpu":
        kernels()
    for layout, training in itertools.product(LAYOUTS, (True, False)):
        case = NormCase((2, 3, 4, 5), layout, "tanh", training)
        tensors = case.tensors()
        form = (training, EPS, "tanh", SLOPE, backend)
        args = (case.grad_output().requires_grad_(), *tensors, *statistics(case, tensors[0]), *form)
        torch.library.opcheck(torch.ops.gan_fast.batch_norm_act_backward.default, args)


def test_a_weight_of_zero_keeps_the_gradients() -> None:
    """y alone would not tell what x was."""
    kernels()
    case = NormCase((5, 4, 3, 3), "channels_last", "leaky_relu")
    tensors = [t.detach() for t in case.tensors()]
    tensors[1].zero_()
    tensors = [t.requires_grad_() for t in tensors]
    expected = torch.autograd.grad(by_torch(case, tensors, torch.float32), tensors, case.grad_output())
    ours = run(case, case.grad_output(), tensors, "cpu")
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert ours[1].abs().min() > 0


def test_bad_arguments_are_refused() -> None:
    x, one = torch.randn(2, 3, 4), torch.ones(3, dtype=F64)
    op = torch.ops.gan_fast.batch_norm_act_backward
    with pytest.raises(ValueError, match=r"grad_output must have the shape of input \(2, 3, 4\), got \(2, 3\)"):
        op(x[:, :, 0], x, None, None, one, one, True, 1e-5)
    with pytest.raises(ValueError, match=r"mean must be float64 on cpu, got torch\.float32, cpu"):
        op(x, x, None, None, one.float(), one, True, 1e-5)
    with pytest.raises(ValueError, match=r"var must have shape \(3,\), got \(4,\)"):
        op(x, x, None, None, one, torch.ones(4, dtype=F64), True, 1e-5)
