"""bias_act, act_grad and bce_with_logits of the compiled module, called directly, at every instruction-set level."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import ACT_CODES, DTYPE_CODES, LEVELS, address, kernels, ulps, unaligned
from torch import Tensor
from torch.nn import functional as F

ACTS = tuple(ACT_CODES)
LENGTHS = (0, 1, 15, 16, 17, 257, 100_003)
SLOPE = 0.25  # exact in float32, so that rounding it is not part of any error
INF, NAN = float("inf"), float("nan")
TINY_TO_HUGE = (1e-45, 1e-39, 1.2e-38, 88.8, 103.9, 104.1, 3.4e38)
SPECIAL = (0.0, -0.0, INF, -INF, NAN, *TINY_TO_HUGE, *(-v for v in TINY_TO_HUGE))

#: Largest error over all floats, in float32 ulps, as csrc/cpu/vec_math.h states it.
WORST_ULPS = {"none": 0.0, "relu": 0.0, "leaky_relu": 0.5, "tanh": 1.01, "sigmoid": 2.5}


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The compiled module, switched to one level."""
    module = kernels()
    if request.param not in module.isa_levels():
        pytest.skip(f"this CPU cannot run {request.param}")
    before = module.isa()
    module.set_isa(request.param)
    assert module.isa() == request.param
    yield module
    module.set_isa(before)


def torch_act(x: Tensor, act: str) -> Tensor:
    match act:
        case "relu":
            return F.relu(x)
        case "leaky_relu":
            return F.leaky_relu(x, SLOPE)
        case "tanh":
            return torch.tanh(x)
        case "sigmoid":
            return torch.sigmoid(x)
    return x.clone()


def run_bias_act(
    module: ModuleType, x: Tensor, bias: Tensor | None, act: str, inner: int = 1, threads: int = 1
) -> Tensor:
    channels = 1 if bias is None else bias.numel()
    y = torch.full_like(x, NAN)
    outer = x.numel() // (channels * inner)
    module.bias_act(
        DTYPE_CODES[x.dtype],
        outer,
        channels,
        inner,
        address(x),
        address(bias),
        address(y),
        ACT_CODES[act],
        SLOPE,
        threads,
    )
    return y


def run_act_grad(module: ModuleType, g: Tensor, y: Tensor, act: str, threads: int = 1) -> Tensor:
    out = torch.full_like(g, NAN)
    module.act_grad(
        DTYPE_CODES[g.dtype], g.numel(), address(g), address(y), address(out), ACT_CODES[act], SLOPE, threads
    )
    return out


def run_bce(
    module: ModuleType,
    x: Tensor,
    target: Tensor | float,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "none",
    threads: int = 1,
) -> tuple[Tensor, Tensor]:
    """(loss, derivative of the reduced loss)."""
    code = {"none": 0, "mean": 1, "sum": 2}[reduction]
    loss = torch.full((x.numel() if reduction == "none" else 1,), NAN, dtype=x.dtype)
    grad = torch.full_like(x, NAN)
    tensor, value = (target, NAN) if isinstance(target, Tensor) else (None, target)
    module.bce_with_logits(
        DTYPE_CODES[x.dtype],
        x.numel(),
        address(x),
        address(tensor),
        value,
        address(weight),
        address(pos_weight),
        code,
        address(loss),
        address(grad),
        threads,
    )
    return loss, grad


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)


def floats(*ranges: tuple[float, float], step: int) -> Tensor:
    """Every step-th float32 of each range (both ends of the same sign), found by counting in their bit patterns."""
    parts = []
    for low, high in ranges:
        first, last = (int(bits(torch.tensor([v]))[0]) for v in (low, high))
        parts.append(torch.arange(first, last, step, dtype=torch.int32).view(torch.float32))
    return torch.cat(parts)


# ------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("act", ACTS)
def test_activation_error_is_within_its_bound_and_twice_torchs(level: ModuleType, act: str) -> None:
    x = floats((1e-45, 1e-3), (-1e-45, -1e-3), step=40_009)
    x = torch.cat([x, floats((1e-3, 110.0), (-1e-3, -110.0), step=211), torch.tensor([3e38, -3e38])])
    truth = torch_act(x.double(), act)
    ours = ulps(run_bias_act(level, x, None, act), truth)
    torchs = ulps(torch_act(x, act), truth)
    assert ours.max() <= WORST_ULPS[act]
    assert ours.max() <= 2 * torchs.max()
    assert ours.square().mean() <= 4 * torchs.square().mean()


@pytest.mark.parametrize("act", ACTS)
def test_special_values_match_torch(level: ModuleType, act: str) -> None:
    x = torch.tensor(SPECIAL)
    got, expected = run_bias_act(level, x, None, act), torch_act(x.double(), act)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.isinf(), expected.isinf())
    kept = ~expected.isnan()
    assert (ulps(got[kept], expected[kept]) <= WORST_ULPS[act]).all()
    if act in ("none", "tanh", "leaky_relu"):
        assert torch.equal(torch.signbit(got[kept]), torch.signbit(x[kept])), "-0.0 must stay -0.0"


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("n", LENGTHS)
def test_every_length_aligned_or_not(level: ModuleType, act: str, n: int) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(n)) * 4
    y = run_bias_act(level, x, None, act)
    torch.testing.assert_close(y.double(), torch_act(x.double(), act), rtol=3e-7, atol=0)
    assert torch.equal(bits(run_bias_act(level, unaligned(x), None, act)), bits(y))
    g = torch.randn(n, generator=torch.Generator().manual_seed(n + 1))
    out = run_act_grad(level, g, y, act)
    assert torch.equal(bits(run_act_grad(level, unaligned(g), unaligned(y), act)), bits(out))
    assert out.isfinite().all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    outer=st.integers(0, 9),
    channels=st.integers(1, 40),
    inner=st.sampled_from([1, 1, 2, 5, 16, 33]),
    act=st.sampled_from(ACTS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_bias_goes_to_its_channel(outer: int, channels: int, inner: int, act: str, dtype: torch.dtype) -> None:
    module = kernels()
    generator = torch.Generator().manual_seed(outer + 10 * channels + 1000 * inner)
    x = torch.randn(outer, channels, inner, generator=generator, dtype=dtype)
    bias = torch.randn(channels, generator=generator, dtype=dtype)
    expected = torch_act((x + bias[:, None]).double(), act)
    before = module.isa()
    try:
        for name in module.isa_levels():
            module.set_isa(name)
            y = run_bias_act(module, x, bias, act, inner)
            torch.testing.assert_close(y.double(), expected, rtol=3e-7 if dtype == torch.float32 else 1e-14, atol=0)
    finally:
        module.set_isa(before)


@pytest.mark.parametrize("act", ACTS)
def test_in_place(level: ModuleType, act: str) -> None:
    x, bias = torch.randn(37, 5), torch.randn(5)
    y = run_bias_act(level, x, bias, act)
    level.bias_act(0, 37, 5, 1, address(x), address(bias), address(x), ACT_CODES[act], SLOPE, 1)
    assert torch.equal(x, y)
    g = torch.randn(37, 5)
    out = run_act_grad(level, g, y, act)
    level.act_grad(0, g.numel(), address(g), address(y), address(g), ACT_CODES[act], SLOPE, 1)
    assert torch.equal(g, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("act", ACTS)
def test_act_grad_is_autograds_derivative(level: ModuleType, act: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    x = (torch.randn(10_007, generator=generator, dtype=dtype) * 3).requires_grad_()
    g = torch.randn(10_007, generator=generator, dtype=dtype)
    y = torch_act(x, act)
    (torchs,) = torch.autograd.grad(y, x, g)
    y = y.detach()
    truth_x = x.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(torch_act(truth_x, act), truth_x, g.double())
    ours = run_act_grad(level, g, y, act)
    if dtype == torch.float64:
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-15)
    else:
        assert (ours - truth).norm() <= 2 * (torchs - truth).norm()


@pytest.mark.parametrize("act", ACTS)
def test_act_grad_of_special_values_is_torchs(level: ModuleType, act: str) -> None:
    values = torch.tensor([0.0, -0.0, INF, -INF, NAN, 1.0, -1.0, 1e-45])
    g, x = (t.reshape(-1) for t in torch.meshgrid(values, values, indexing="ij"))
    x = x.clone().requires_grad_()
    y = torch_act(x, act)
    (expected,) = torch.autograd.grad(y, x, g)
    got = run_act_grad(level, g.contiguous(), y.detach(), act)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0, equal_nan=True)


def test_float64_is_exact_at_every_level(level: ModuleType) -> None:
    x = torch.cat([torch.randn(1001, dtype=torch.float64) * 8, torch.tensor(SPECIAL, dtype=torch.float64)])
    for act in ACTS:
        torch.testing.assert_close(
            run_bias_act(level, x, None, act), torch_act(x, act), rtol=1e-15, atol=0, equal_nan=True
        )


# ---------------------------------------------------------------------------------------------- bce_with_logits


def bce_truth(x: Tensor, t: Tensor, w: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and derivative in float64, in a form that does not cancel (torch's own float64 loses 1e-16 absolutely)."""
    x, t, w, p = (v.double() for v in (x, t, w, p))
    linear = torch.where(x < 0, -x * t * p, x * (1 - t))
    loss = linear + (1 + (p - 1) * t) * torch.log1p(torch.exp(-x.abs()))
    return w * loss, w * ((1 - t) * torch.sigmoid(x) - p * t * torch.sigmoid(-x))


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_bce_of_a_constant_label(level: ModuleType, n: int, label: float) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(n)) * 8
    ones = torch.ones(n)
    loss_truth, grad_truth = bce_truth(x, label * ones, ones, ones)
    loss, grad = run_bce(level, x, label)
    assert (ulps(loss, loss_truth) <= 2.5).all()
    assert (ulps(grad, grad_truth) <= 3.5).all()
    for target in (label * ones, unaligned(label * ones)):
        again = run_bce(level, unaligned(x), target)
        assert torch.equal(bits(again[0]), bits(loss)) and torch.equal(bits(again[1]), bits(grad))


@pytest.mark.parametrize("with_pos_weight", [False, True])
@pytest.mark.parametrize("with_weight", [False, True])
def test_bce_error_is_at_most_twice_torchs(level: ModuleType, with_weight: bool, with_pos_weight: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    n = 50_021
    x = torch.randn(n, generator=generator) * 5
    t, w, p = torch.rand(3, n, generator=generator)
    weight, pos_weight = (w if with_weight else None), (3 * p if with_pos_weight else None)
    ones = torch.ones(n)
    loss_truth, grad_truth = bce_truth(
        x, t, ones if weight is None else weight, ones if pos_weight is None else pos_weight
    )
    loss, grad = run_bce(level, x, t, weight, pos_weight)
    xt = x.clone().requires_grad_()
    torchs = F.binary_cross_entropy_with_logits(xt, t, weight, pos_weight=pos_weight, reduction="none")
    (torchs_grad,) = torch.autograd.grad(torchs.sum(), xt)
    assert (loss - loss_truth).norm() <= 2 * (torchs.detach() - loss_truth).norm()
    assert (grad - grad_truth).norm() <= 2 * (torchs_grad - grad_truth).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("n", [0, 1, 17, 4096, 40_009])
def test_bce_reductions(level: ModuleType, n: int, reduction: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, generator=generator, dtype=dtype)
    t, w, p = torch.rand(3, n, generator=generator, dtype=dtype)
    loss, grad = run_bce(level, x, t, w, p, reduction)
    xt = x.double().requires_grad_()
    expected = F.binary_cross_entropy_with_logits(
        xt, t.double(), w.double(), pos_weight=p.double(), reduction=reduction
    )
    (expected_grad,) = torch.autograd.grad(expected.sum(), xt)
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(loss.double(), expected.detach().reshape(loss.shape), equal_nan=True, **tolerance)
    torch.testing.assert_close(grad.double(), expected_grad, **tolerance)


def test_bce_special_values(level: ModuleType) -> None:
    x = torch.tensor(SPECIAL)
    for label in (0.0, 0.3, 1.0):
        loss, grad = run_bce(level, x, label)
        truth, grad_truth = bce_truth(x, torch.full_like(x, label), torch.ones_like(x), torch.ones_like(x))
        torch.testing.assert_close(loss.double(), truth, rtol=5e-7, atol=1e-44, equal_nan=True)
        torch.testing.assert_close(grad.double(), grad_truth, rtol=5e-7, atol=1e-44, equal_nan=True)
    finite = x[x.isfinite()]
    expected = F.binary_cross_entropy_with_logits(finite, torch.ones_like(finite), reduction="none")
    torch.testing.assert_close(run_bce(level, finite, 1.0)[0], expected, rtol=5e-7, atol=1e-44)


def test_bce_without_gradient(level: ModuleType) -> None:
    x, loss = torch.randn(100), torch.empty(1)
    level.bce_with_logits(0, 100, address(x), 0, 1.0, 0, 0, 1, address(loss), 0, 1)
    torch.testing.assert_close(loss[0], F.binary_cross_entropy_with_logits(x, torch.ones(100)))


# ----------------------------------------------------------------------------------- threads and wrong arguments


@pytest.mark.parametrize("n", [65_537, 1_000_003])
def test_the_number_of_threads_changes_no_bit(level: ModuleType, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x, g, t, w = torch.randn(4, n, generator=generator)
    bias = torch.randn(7, generator=generator)
    shaped = x[: n // 7 * 7].contiguous()

    def run(threads: int) -> list[Tensor]:
        y = run_bias_act(level, x, None, "tanh", threads=threads)
        biased = run_bias_act(level, shaped, bias, "sigmoid", threads=threads)
        rows = run_bias_act(level, shaped[: len(shaped) // 91 * 91], bias, "relu", inner=13, threads=threads)
        grads = run_act_grad(level, g, y, "tanh", threads)
        return [
            y,
            biased,
            rows,
            grads,
            *run_bce(level, x, t, w, None, "mean", threads),
            *run_bce(level, x, t, threads=threads),
        ]

    one = run(1)
    for threads in (2, 3, 5):
        for a, b in zip(one, run(threads), strict=True):
            assert torch.equal(bits(a), bits(b)), f"{threads} threads"


WRONG = [
    ("bias_act", {"dtype": 3}, "dtype=3"),
    ("bias_act", {"outer": -1}, "outer=-1"),
    ("bias_act", {"outer": 2**40, "channels": 2**40}, "outer \\* channels \\* inner"),
    ("bias_act", {"x": 0}, "x=0"),
    ("bias_act", {"y": 0}, "y=0"),
    ("bias_act", {"act": 5}, "act=5"),
    ("bias_act", {"threads": 0}, "threads=0"),
    ("act_grad", {"n": -3}, "n=-3"),
    ("act_grad", {"act": 2, "slope": 0.0}, "slope=0.0"),
    ("act_grad", {"act": -1}, "act=-1"),
    ("act_grad", {"grad_output": 0}, "grad_output=0"),
    ("bce_with_logits", {"reduction": 3}, "reduction=3"),
    ("bce_with_logits", {"loss": 0}, "loss=0"),
    ("bce_with_logits", {"x": 0}, "x=0"),
    ("bce_with_logits", {"threads": -1}, "threads=-1"),
]


@pytest.mark.parametrize(("name", "change", "message"), WRONG, ids=lambda v: str(v) if isinstance(v, dict) else None)
def test_wrong_arguments_are_named(name: str, change: dict[str, float], message: str) -> None:
    a, b, c = torch.zeros(3, 8)
    good: dict[str, dict[str, float]] = {
        "bias_act": {
            "dtype": 0,
            "outer": 2,
            "channels": 2,
            "inner": 2,
            "x": address(a),
            "bias": 0,
            "y": address(b),
            "act": 1,
            "slope": 0.1,
        },
        "act_grad": {
            "dtype": 0,
            "n": 8,
            "grad_output": address(a),
            "y": address(b),
            "out": address(c),
            "act": 1,
            "slope": 0.1,
        },
        "bce_with_logits": {
            "dtype": 0,
            "n": 8,
            "x": address(a),
            "target": 0,
            "target_value": 1.0,
            "weight": 0,
            "pos_weight": 0,
            "reduction": 1,
            "loss": address(b),
            "grad": address(c),
        },
    }
    function = getattr(kernels(), name)
    function(**good[name], threads=1)
    with pytest.raises(ValueError, match=f"{message}.*: expected"):
        function(**{**good[name], "threads": 1, **change})
