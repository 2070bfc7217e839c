"""Gradients that torch.autograd.grad does not ask for are not computed, as in PyTorch's own operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checks import recorded
from torch import Tensor

from gan_fast import functional

#: The convolution by its function, and as an operator that PyTorch's dispatcher calls.
CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "function": lambda x, w, b: functional.conv2d(x, w, b, padding=1, activation="tanh", backend="reference"),
    "dispatcher": lambda x, w, b: torch.ops.gan_fast.conv(
        x, w, b, [1, 1], [1, 1], [1, 1], 1, list(x.shape[2:]), "tanh", 0.01, None, "none", 0.01, "reference"
    ),
}


def operands() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = (2, 3, 5, 4), (6, 3, 3, 3), (6,)
    made = (torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes)
    x, w, b = made
    return x, w, b


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ((0,), {"conv_transpose"}),
        ((1,), {"conv_weight_grad"}),
        ((2,), {"act_grad"}),
        ((0, 1), {"conv_transpose", "conv_weight_grad"}),
        ((0, 1, 2), {"conv_transpose", "conv_weight_grad"}),
    ],
)
@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "inner"])
def test_only_what_is_asked_for_runs(
    call: Callable[[Tensor, Tensor, Tensor], Tensor],
    wanted: tuple[int, ...],
    expected: set[str],
    leaves: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = operands()
    inputs = made if leaves else tuple(2 * t for t in made)
    upstream = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    with recorded(monkeypatch) as ran:
        found = torch.autograd.grad(call(*inputs), [inputs[i] for i in wanted], upstream)
    backward = {name for name, _ in ran} - {"conv"}
    assert backward == expected
    truth = torch.tanh(torch.nn.functional.conv2d(*inputs, padding=1))
    for ours, theirs in zip(found, torch.autograd.grad(truth, [inputs[i] for i in wanted], upstream), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_backward_of_some_inputs(call: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    x, w, b = operands()
    call(x, w, b).square().sum().backward(inputs=[w])
    assert x.grad is None and b.grad is None
    truth = torch.tanh(torch.nn.functional.conv2d(x, w, b, padding=1)).square().sum()
    torch.testing.assert_close(w.grad, torch.autograd.grad(truth, w)[0])


def test_gradient_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    """WGAN-GP: the inner gradient is the images' alone, the outer one everybody's."""
    x, w, b = operands()
    with recorded(monkeypatch) as ran:
        score = CALLS["function"](x, w, b).sum()
        (inner,) = torch.autograd.grad(score, x, create_graph=True)
    assert [name for name, _ in ran if name == "conv_weight_grad"] == []
    ours = torch.autograd.grad(inner.square().sum(), (w, b))
    score = torch.tanh(torch.nn.functional.conv2d(x, w, b, padding=1)).sum()
    (inner,) = torch.autograd.grad(score, x, create_graph=True)
    for mine, theirs in zip(ours, torch.autograd.grad(inner.square().sum(), (w, b)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_under_torch_func() -> None:
    x, w, b = operands()
    ours = torch.func.grad(lambda w: CALLS["function"](x.detach(), w, b.detach()).square().sum())(w.detach())
    truth = torch.tanh(torch.nn.functional.conv2d(x, w, b, padding=1)).square().sum()
    torch.testing.assert_close(ours, torch.autograd.grad(truth, w)[0])
