"""gan_fast.losses against their formulas, at extreme logits, in half precision and on maps of logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gan_fast import losses

SHAPES = [(8, 1), (8,), (2, 1, 30, 30), (3, 1, 62), (1, 1)]


def reference(name: str, real: Tensor, fake: Tensor) -> tuple[float, float]:
    """d_loss and g_loss in float64, straight from the formulas."""
    real, fake = real.double().flatten(), fake.double().flatten()
    d_loss = -torch.nn.functional.logsigmoid(real).mean() - torch.nn.functional.logsigmoid(-fake).mean()
    if name == "bce":
        g_loss = -torch.nn.functional.logsigmoid(fake).mean()
    else:
        g_loss = torch.nn.functional.logsigmoid(-fake).mean()
    return d_loss.item(), g_loss.item()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["bce", "minimax"])
def test_values_equal_the_formulas(name: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(shape, generator=generator) * 3 for _ in range(2))
    loss = losses.get(name)
    expected = reference(name, real, fake)
    assert loss.d_loss(real, fake).item() == pytest.approx(expected[0], rel=1e-6)
    assert loss.g_loss(fake).item() == pytest.approx(expected[1], rel=1e-6)
    assert loss.d_loss(real, fake).shape == loss.g_loss(fake).shape == ()


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    logits=st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=9),
    name=st.sampled_from(["bce", "minimax"]),
)
def test_values_and_gradients_stay_finite_and_right(logits: list[float], name: str) -> None:
    fake = torch.tensor(logits, requires_grad=True)
    loss = losses.get(name)
    value = loss.g_loss(fake)
    (gradient,) = torch.autograd.grad(value, fake)
    assert value.item() == pytest.approx(reference(name, fake.detach(), fake.detach())[1], rel=1e-5, abs=1e-30)
    probability = torch.sigmoid(fake.detach().double())
    expected = (probability - 1 if name == "bce" else -probability) / len(logits)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-7)


def test_minimax_differs_from_bce_only_for_the_generator() -> None:
    real, fake = torch.tensor([1.5, -0.5]), torch.tensor([-4.0, 2.0])
    bce, minimax = losses.get("bce"), losses.get("minimax")
    assert torch.equal(bce.d_loss(real, fake), minimax.d_loss(real, fake))
    assert bce.g_loss(fake) > 0 > minimax.g_loss(fake)


def test_minimax_is_the_value_function() -> None:
    """D's loss is -V(D, G), and G's is V's second term: what G can change of it."""
    real, fake = torch.randn(64, 1), torch.randn(64, 1)
    value = torch.log(torch.sigmoid(real)).mean() + torch.log(1 - torch.sigmoid(fake)).mean()
    minimax = losses.get("minimax")
    torch.testing.assert_close(minimax.d_loss(real, fake), -value)
    torch.testing.assert_close(minimax.g_loss(fake), torch.log(1 - torch.sigmoid(fake)).mean())


def test_undecided_discriminator_costs_log_two() -> None:
    zeros = torch.zeros(4, 1)
    assert losses.get("bce").d_loss(zeros, zeros).item() == pytest.approx(2 * math.log(2))
    assert losses.get("minimax").g_loss(zeros).item() == pytest.approx(-math.log(2))


@pytest.mark.parametrize("name", ["bce", "minimax"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_averaged_in_float32(name: str, dtype: torch.dtype) -> None:
    """With 40,000 logits a mean accumulated in half precision is off by far more than this bound."""
    fake = torch.linspace(-3, 3, 40_000).to(dtype)
    loss = losses.get(name)
    value = loss.g_loss(fake)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(reference(name, fake, fake)[1], rel=1e-5)


def test_autocast_region_gives_float32_losses() -> None:
    layer = torch.nn.Linear(16, 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(torch.randn(32, 16))
        value = losses.get("bce").g_loss(logits)
    assert logits.dtype == torch.bfloat16 and value.dtype == torch.float32
    value.backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_double_stays_double() -> None:
    logits = torch.randn(5, 1, dtype=torch.float64)
    assert losses.get("bce").d_loss(logits, logits).dtype == torch.float64


def test_second_derivative_is_not_lost() -> None:
    logits = torch.randn(6, 1, dtype=torch.float64, requires_grad=True)
    for name in losses.names():
        loss = losses.get(name)
        assert torch.autograd.gradgradcheck(loss.g_loss, (logits,))
    s = torch.sigmoid(logits)
    (first,) = torch.autograd.grad(losses.get("bce").g_loss(logits), logits, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), logits)
    torch.testing.assert_close(second, (s * (1 - s) / 6).detach())


@pytest.mark.parametrize(("given_name", "near"), [("bcee", "'bce'"), ("mini-max", "'minimax'"), ("BCE", "bce")])
def test_unknown_name_lists_near_ones(given_name: str, near: str) -> None:
    with pytest.raises(ValueError, match=near) as caught:
        losses.get(given_name)
    assert repr(given_name) in str(caught.value) and "known: bce, minimax" in str(caught.value)


@pytest.mark.parametrize("wrong", [None, 3, object(), losses.BCE, torch.nn.BCEWithLogitsLoss()])
def test_what_is_no_loss_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"d_loss\(\) and g_loss\(\)"):
        losses.get(wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_bad_logits_name_the_argument() -> None:
    loss, good = losses.get("bce"), torch.zeros(2, 1)
    with pytest.raises(TypeError, match=r"real_logits: got dtype torch\.int64"):
        loss.d_loss(torch.zeros(2, 1, dtype=torch.int64), good)
    with pytest.raises(TypeError, match="fake_logits: got list"):
        loss.g_loss([good, good])  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="fake_logits: got an empty tensor"):
        loss.d_loss(good, torch.zeros(0, 1))


class LeastSquares:
    """A loss of a user's own."""

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return (real_logits - 1).square().mean() + fake_logits.square().mean()

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        return (fake_logits - 1).square().mean()


def test_register_makes_a_loss_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_REGISTRY", dict(losses._REGISTRY))
    losses.register("least_squares", LeastSquares)
    assert losses.names() == ["bce", "least_squares", "minimax"]
    assert losses.get("least_squares").g_loss(torch.zeros(3)).item() == 1.0
    own = LeastSquares()
    assert losses.get(own) is own
    with pytest.raises(ValueError, match="'bce' is already registered"):
        losses.register("bce", LeastSquares)
    with pytest.raises(ValueError, match="non-empty string"):
        losses.register("", LeastSquares)
    with pytest.raises(TypeError, match="expected a callable"):
        losses.register("other", 3)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TypeError, match="it returned"):
        losses.register("other", dict)  # type: ignore[arg-type]  # wrong on purpose
