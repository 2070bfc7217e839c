"""gan_fast::batch_norm_act on every backend and level, and functional.batch_norm around it."""

from __future__ import annotations

import inspect
import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from batch_norm_cases import CASES, EPS, EVALUATION, SLOPE, NormCase, by_torch, name, random_cases
from cases import LAYOUTS
from checks import BACKENDS, REGISTERED, assert_same_layout, level_of, recorded
from conv_checks import ACTIVATIONS
from hypothesis import given, settings
from native import kernels
from tolerance import assert_as_good
from torch import Tensor

from gan_fast import backends, functional
from gan_fast.ops import OPERATORS

F64 = torch.float64


def run(case: NormCase, tensors: list[Tensor], dtype: torch.dtype, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """The case by the registered operator: (y, mean, var)."""
    x, weight, bias = (*tensors, None, None)[:3]
    statistics = (None, None) if case.training else case.running(dtype)
    return OPERATORS["batch_norm_act"](x, weight, bias, *statistics, EPS, case.activation, SLOPE, backend)


def check_value(case: NormCase, backend: str) -> None:
    tensors = [t.detach() for t in case.tensors()]
    y, mean, var = run(case, tensors, torch.float32, backend)
    wide = [t.double() for t in tensors]
    theirs, truth = by_torch(case, tensors, torch.float32), by_torch(case, wide, F64)
    assert_as_good(y, truth, theirs, name(case))
    if case.activation == "none":
        assert_same_layout([y, theirs], name(case))
    assert (mean.dtype, var.dtype) == (F64, F64)
    if not case.training:
        torch.testing.assert_close((mean, var), tuple(t.double() for t in case.running()), rtol=0, atol=0)
    elif backend == "cpu":  # the reference has PyTorch's
        true_var, true_mean = torch.var_mean(wide[0], [0, *range(2, len(case.shape))], correction=0)
        torch.testing.assert_close(mean, true_mean, rtol=0, atol=1e-6 * case.std)
        torch.testing.assert_close(var, true_var, rtol=2e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [*CASES, *EVALUATION], ids=name)
def test_value(case: NormCase, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with level_of(backend, monkeypatch) as ran_by, recorded(monkeypatch) as ran:
        check_value(case, ran_by)
    assert ran == [("batch_norm_act", ran_by)]


@settings(max_examples=60, deadline=None)
@given(random_cases())
def test_random_shapes(case: NormCase) -> None:
    kernels()
    check_value(case, "cpu")


def test_statistics_are_robust() -> None:
    """A mean a million deviations from 0, and a first row that is nothing like the rest."""
    module = kernels()
    for level, channels in itertools.product(module.isa_levels(), (5, 24, 130)):
        before = module.isa()
        module.set_isa(level)
        try:
            x = (torch.randn(3000, channels, dtype=F64) * 2**-6 + 2**14).float()
            x[0] = -(2.0**14)
            for rows in (x, x[1:]):
                _, mean, var = OPERATORS["batch_norm_act"](rows, None, None, None, None, EPS, "none", SLOPE, "cpu")
                true_var, true_mean = torch.var_mean(rows.double(), 0, correction=0)
                torch.testing.assert_close(var, true_var, rtol=2e-5, atol=0)
                assert ((mean - true_mean).abs() <= 1e-5 * true_var.sqrt()).all()
        finally:
            module.set_isa(before)


def test_no_number_depends_on_the_threads() -> None:
    kernels()
    case = NormCase((50, 70, 13, 13), "channels_last", "tanh")
    tensors = case.tensors()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = run(case, tensors, torch.float32, "cpu")
            results.append([*out, *torch.autograd.grad(out[0], tensors, case.grad_output())])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_not_a_number_stays_in_its_channel() -> None:
    kernels()
    for value in (float("nan"), float("inf")):
        x = torch.randn(9, 21)
        x[3, 20] = value
        y = functional.batch_norm(x, None, None, training=True, activation="relu", backend="cpu")
        assert y[:, 20].isnan().all() and y[:, :20].isfinite().all()


@pytest.mark.parametrize("backend", REGISTERED)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gradcheck(act: str, training: bool, backend: str) -> None:
    if backend == "cpu":
        kernels()
    for affine in (True, False):
        case = NormCase((3, 5, 2, 2), "channels_last", act, training, affine)

        def call(*tensors: Tensor, case: NormCase = case) -> Tensor:
            return run(case, list(tensors), F64, backend)[0]

        assert torch.autograd.gradcheck(call, case.tensors(F64))
        assert torch.autograd.gradgradcheck(call, case.tensors(F64))


@pytest.mark.parametrize("backend", REGISTERED)
def test_third_order(backend: str) -> None:
    """The truth is composed: in PyTorch's own third derivative the statistics count as constants."""
    if backend == "cpu":
        kernels()
    case = NormCase((4, 3, 2), activation="tanh")

    def third(f: object) -> tuple[Tensor, ...]:
        tensors = case.tensors(F64)
        (g,) = torch.autograd.grad((f(*tensors) ** 3).sum(), tensors[0], create_graph=True)  # type: ignore[operator]  # a function
        (h,) = torch.autograd.grad((g**2).sum(), tensors[0], create_graph=True)
        return torch.autograd.grad((h**2).sum(), tensors)

    def composed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, (0, 2), correction=0, keepdim=True)
        return torch.tanh((x - mean) * (var + EPS).rsqrt() * weight.view(-1, 1) + bias.view(-1, 1))

    torch.testing.assert_close(third(lambda *t: run(case, list(t), F64, backend)[0]), third(composed))


@pytest.mark.parametrize("backend", REGISTERED)
def test_opcheck(backend: str) -> None:
    if backend == "cpu":
        kernels()
    for layout, training in itertools.product(LAYOUTS, (True, False)):
        case = NormCase((2, 3, 4, 5), layout, "tanh", training)
        statistics = (None, None) if training else case.running()
        args = (*case.tensors(), *statistics, EPS, "tanh", SLOPE, backend)
        torch.library.opcheck(torch.ops.gan_fast.batch_norm_act.default, args)


# ----------------------------------------------------------------------------------------------------- functional


def test_signature_is_torch_s() -> None:
    parameters = list(inspect.signature(functional.batch_norm).parameters.values())
    positional = [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == [(p.name, p.default) for p in inspect.signature(F.batch_norm).parameters.values()]
    assert [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] == ["activation", "negative_slope", "backend"]


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0])
@pytest.mark.parametrize("backend", ["auto", *REGISTERED])
def test_running_statistics_follow_as_torch_s(backend: str, momentum: float) -> None:
    if backend == "cpu":
        kernels()
    case = NormCase((32, 24, 16, 16), "channels_last")
    ours, theirs, truths = case.running(), case.running(), case.running(F64)
    for step in range(3):
        x = case.tensors()[0].detach() * (1 + step) + step
        functional.batch_norm(x, *ours, training=True, momentum=momentum, backend=backend)
        F.batch_norm(x, *theirs, training=True, momentum=momentum)
        F.batch_norm(x.double(), *truths, training=True, momentum=momentum)
    for mine, truth, other in zip(ours, truths, theirs, strict=True):
        assert_as_good(mine, truth, other, "running statistics")
    before = [t.clone() for t in ours]
    functional.batch_norm(x, *ours, training=False, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(ours, before, strict=True))


def test_running_statistics_may_change_before_the_backward_pass() -> None:
    """A discriminator sees real and fake images one after the other, and PyTorch may serve one of the two."""
    kernels()
    case = NormCase((8, 16, 4, 4), "channels_last")
    running = case.running()
    for order in itertools.permutations(("auto", "cpu", "reference"), 2):
        for training in itertools.permutations((True, False)):
            x = case.tensors()[0]
            pairs = zip(order, training, strict=True)
            outs = [functional.batch_norm(x, *running, training=t, backend=b) for b, t in pairs]
            sum(outs).square().sum().backward()  # type: ignore[union-attr]  # a sum of tensors


def test_the_mask_of_the_gradient_is_that_of_the_output() -> None:
    """Both passes decide on which side of 0 an element lies by the same bits."""
    module = kernels()
    for level, channels in itertools.product(module.isa_levels(), (3, 19, 64)):
        before = module.isa()
        module.set_isa(level)
        try:
            x = torch.randn(400, channels) * 0.01 + 30
            bias = torch.randn(channels).mul(1e-3).requires_grad_()
            y = functional.batch_norm(x, None, None, None, bias, True, activation="relu", backend="cpu")
            (grad,) = torch.autograd.grad(y.sum(), bias)
            assert torch.equal(grad, (y > 0).sum(0).float())
        finally:
            module.set_isa(before)


@pytest.mark.parametrize("backend", ["auto", *REGISTERED])
@pytest.mark.parametrize("slope", [0.2, 0.0, -0.5])
def test_slopes(slope: float, backend: str) -> None:
    if backend == "cpu":
        kernels()
    case = NormCase((8, 16, 9, 9), "channels_last")
    tensors = case.tensors()
    ours = functional.batch_norm(
        tensors[0], None, None, *tensors[1:], True, activation="leaky_relu", negative_slope=slope, backend=backend
    )
    theirs = F.leaky_relu(F.batch_norm(tensors[0], None, None, *tensors[1:], True), slope)
    torch.testing.assert_close(ours, theirs)
    mine = torch.autograd.grad(ours.square().sum(), tensors)
    torch.testing.assert_close(mine, torch.autograd.grad(theirs.square().sum(), tensors), rtol=1e-4, atol=1e-3)


def test_the_choice_is_by_size_and_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels()
    large = torch.randn(64, 64, 16, 16)
    for x, ours in (
        (large.to(memory_format=torch.channels_last), True),
        (large.permute(0, 2, 3, 1).flatten(0, 2), True),
        (large, False),
        (large.flatten(2), False),
        (large[:1, :, :4, :4].contiguous(memory_format=torch.channels_last), False),
        (large.view(-1, 2, 16, 16).contiguous(memory_format=torch.channels_last), False),
        (large.double().to(memory_format=torch.channels_last), False),
        (large.bfloat16().to(memory_format=torch.channels_last), True),
        (large.half().to(memory_format=torch.channels_last), False),
    ):
        with recorded(monkeypatch) as ran:
            y = functional.batch_norm(x, None, None, training=True, activation="relu")
        assert ran == ([("batch_norm_act", "cpu")] if ours else []), x.shape
        theirs = torch.relu(F.batch_norm(x, None, None, training=True))
        low = x.dtype in (torch.bfloat16, torch.float16)
        torch.testing.assert_close(y, theirs, **({"rtol": 0.016, "atol": 0.016} if low else {}))


def test_dtypes_and_autocast_are_torch_s() -> None:
    running = torch.zeros(16), torch.ones(16)
    for dtype, weights in itertools.product((torch.float32, torch.bfloat16, F64), repeat=2):
        x, weight = torch.randn(4, 16, 16, 16, dtype=dtype), torch.ones(16, dtype=weights)
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                try:
                    theirs = F.batch_norm(x, *running, weight, None, True)
                except RuntimeError as error:
                    with pytest.raises(RuntimeError, match=re.escape(str(error)[:20])):
                        functional.batch_norm(x, *running, weight, None, True)
                    continue
                ours = functional.batch_norm(x, *running, weight, None, True)
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", ["auto", *REGISTERED])
def test_errors_are_torch_s(backend: str) -> None:
    if backend == "cpu":
        kernels()
    x = torch.randn(4, 3, 2, 2)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training, got input size"):
        functional.batch_norm(x[:1, :, :1, :1], None, None, training=True, backend=backend)
    for arguments in ((x, torch.zeros(4), torch.ones(4)), (x, None, None), (x, torch.zeros(3), None)):
        with pytest.raises(Exception) as theirs:  # whichever PyTorch has
            F.batch_norm(*arguments)
        with pytest.raises(theirs.type):
            functional.batch_norm(*arguments, backend=backend)


def test_bad_arguments_are_refused() -> None:
    x, one = torch.randn(2, 3, 4), torch.ones(3)
    op = torch.ops.gan_fast.batch_norm_act
    with pytest.raises(ValueError, match=r"batch_norm_act: weight must have shape \(3,\), got \(4,\)"):
        op(x, torch.ones(4), None, None, None, 1e-5)
    with pytest.raises(ValueError, match="mean and var go together, got mean=True, var=False"):
        op(x, None, None, one, None, 1e-5)
    with pytest.raises(ValueError, match=r"input must be \(N, C\).*got shape \(2,\)"):
        op(x[:, 0, 0], None, None, None, None, 1e-5)
    with pytest.raises(ValueError, match="statistics need more than 1 value per channel"):
        op(x[:1, :, :1], None, None, None, None, 1e-5)
    with pytest.raises(ValueError, match="did you mean 'relu'"):
        functional.batch_norm(x, one, one, activation="rleu")
    with pytest.raises(RuntimeError, match="backend 'cpu' was asked for by name"):
        functional.batch_norm(x.half(), one.half(), one.half(), backend="cpu")


@pytest.mark.parametrize("backend", ["auto", *REGISTERED])
def test_compiled(backend: str) -> None:
    if backend == "cpu":
        kernels()
    case = NormCase((16, 32, 12, 12), "channels_last", "leaky_relu")

    def call(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return functional.batch_norm(x, mean, var, weight, bias, True, **case.options, backend=backend)  # type: ignore[arg-type]  # options are the function's own

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, call):
        tensors, running = case.tensors(), case.running()
        out = function(*tensors, *running)
        out = function(*tensors, *running)  # the statistics move on with each call
        results.append([out, *running, *torch.autograd.grad(out, tensors, case.grad_output())])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_exported_programs_hold_aten_only() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.batch_norm(x, torch.zeros(8), torch.ones(8), activation="relu")

    program = torch.export.export(Module(), (torch.randn(4, 8, 64, 64),))
    assert "gan_fast" not in str(program.graph)


def test_torch_func_goes_to_torch() -> None:
    x = torch.randn(64, 64, 16, 16).to(memory_format=torch.channels_last)

    def loss(f: object) -> object:
        return lambda t: f(t, None, None, training=True).pow(3).sum()  # type: ignore[operator]  # a function

    ours = torch.func.grad(loss(functional.batch_norm))(x)
    torch.testing.assert_close(ours, torch.func.grad(loss(F.batch_norm))(x))
    many = torch.func.vmap(lambda t: functional.batch_norm(t, None, None, training=True))(x.view(8, 8, 64, 16, 16))
    one = F.batch_norm(x.view(8, 8, 64, 16, 16)[3], None, None, training=True)
    torch.testing.assert_close(many[3], one)


@pytest.mark.parametrize("backend", REGISTERED)
def test_torch_func_grad_by_name(backend: str) -> None:
    if backend == "cpu":
        kernels()
    x = torch.randn(6, 5, 3, 3, dtype=F64)

    def penalty(f: object) -> object:
        def first(t: Tensor) -> Tensor:
            return f(t, None, None, training=True).pow(3).sum()  # type: ignore[operator]  # a function

        return lambda t: torch.func.grad(first)(t).square().sum()

    mine = torch.func.grad(penalty(lambda *a, **k: functional.batch_norm(*a, **k, backend=backend)))(x)
    torch.testing.assert_close(mine, torch.func.grad(penalty(F.batch_norm))(x))


def test_without_kernels_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends._extension, "module", None)
    monkeypatch.setattr(backends._extension, "tried", True)
    x = torch.randn(64, 64, 16, 16).to(memory_format=torch.channels_last)
    running = torch.zeros(64), torch.ones(64)
    with recorded(monkeypatch) as ran:
        functional.batch_norm(x, *running, training=True)
    assert not ran
