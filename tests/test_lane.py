"""The short way of a call that was made before (gan_fast/ops/lane.py): the same results as the operators', bit for bit,
and never where somebody has to see what runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from checks import chosen
from native import kernels
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gan_fast import choice_table
from gan_fast import functional as GF
from gan_fast.ops import dispatch, registry
from gan_fast.ops.lane import Lane
from gan_fast.ops.registry import OPERATORS

Call = Callable[..., Tensor]
CALLS: dict[str, tuple[Call, tuple[int, ...], tuple[int, ...]]] = {
    "conv2d": (lambda x, w, b: GF.conv2d(x, w, b, 2, 1), (2, 8, 9, 7), (6, 8, 3, 3)),
    "activation": (lambda x, w, b: GF.conv2d(x, w, b, 2, 1, activation="leaky_relu"), (2, 8, 9, 7), (6, 8, 3, 3)),
    "transposed": (lambda x, w, b: GF.conv_transpose2d(x, w, b, 2, 1, activation="tanh"), (2, 8, 5, 4), (8, 6, 4, 4)),
    "sound": (lambda x, w, b: GF.conv1d(x, w, b, 2, 2), (2, 8, 33), (6, 8, 5)),
    "sound_up": (lambda x, w, b: GF.conv_transpose1d(x, w, b, 4, 2), (2, 8, 12), (8, 6, 8)),
}
every_call = pytest.mark.parametrize("name", CALLS)


@pytest.fixture(params=["cpu", "torch"])
def ran(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The operators that run. Every pass is the kernels', or the weight's gradient PyTorch's."""
    kernels()
    with chosen(monkeypatch, conv_weight_grad=str(request.param)) as names:
        yield names


def operands(name: str, dtype: torch.dtype = torch.float32, last: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    _, input, weight = CALLS[name]
    generator = torch.Generator().manual_seed(5)
    x, w, b = (torch.randn(shape, generator=generator) for shape in (input, weight, (6,)))
    if last and x.dim() == 4:
        x, w = (t.to(memory_format=torch.channels_last) for t in (x, w))
    x, w, b = (t.to(dtype).requires_grad_() for t in (x, w, b))
    return x, w, b


def lanes() -> list[Lane]:
    return [known for known in dispatch._known.values() if isinstance(known, Lane)]


def gradients(call: Call, tensors: tuple[Tensor, ...], asked: tuple[int, ...], expanded: bool) -> list[Tensor]:
    y = call(*tensors)
    g = (
        torch.ones(()).to(y.dtype).expand(y.shape)
        if expanded
        else torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
    )
    return [y, *torch.autograd.grad(y, [tensors[i] for i in asked], g)]


@every_call
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("asked", [(0, 1, 2), (0,), (1,), (2,), (0, 1)], ids=str)
def test_bits_and_strides_are_the_operators(
    name: str, dtype: torch.dtype, last: bool, asked: tuple[int, ...], ran: list[str]
) -> None:
    call, tensors = CALLS[name][0], operands(name, dtype, last)
    for expanded in (False, True):
        first = gradients(call, tensors, asked, expanded)
        ran.clear()
        for _ in range(2):
            again = gradients(call, tensors, asked, expanded)
            assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(first, again, strict=True))
        assert ran == []
    assert len(lanes()) == 1


@every_call
def test_without_a_bias_and_without_gradients(name: str, ran: list[str]) -> None:
    call, (x, w, _) = CALLS[name][0], operands(name)
    first = call(x, w, None)
    ran.clear()
    assert torch.equal(call(x, w, None), first)
    with torch.no_grad():
        call(x, w, None)
        ran.clear()
        out = call(x, w, None)
    assert ran == [] and torch.equal(out, first) and not out.requires_grad


@every_call
def test_derivatives_of_derivatives(name: str, ran: list[str]) -> None:
    call, tensors = CALLS[name][0], operands(name)

    def penalty() -> list[Tensor]:
        (slope,) = torch.autograd.grad(call(*tensors).square().sum(), tensors[0], create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), tensors[:2]))

    first = penalty()
    ran.clear()
    again = penalty()
    assert ran != []  # the recorded backward pass is operators
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


class Mode(TorchDispatchMode):
    """Lists the operators that PyTorch's dispatcher is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_modes_recorders_and_transforms_see_the_operators(ran: list[str]) -> None:
    call, (x, w, b) = CALLS["conv2d"][0], operands("conv2d")
    y = call(x, w, b)
    y = call(x, w, b)
    ran.clear()
    with Mode() as mode:
        torch.autograd.grad(y, (x, w), torch.ones_like(y))
        call(x, w, b)
    assert any("gan_fast.conv.default" in name for name in mode.seen)
    assert any("conv_weight_grad" in name for name in mode.seen)
    recorded: list[str] = []
    with registry.recording(lambda operator, arguments, choice: recorded.append(operator.name)):
        y = call(x, w, b)
        torch.autograd.grad(y, (x, w), torch.ones_like(y))
    assert recorded == ["conv", "conv_transpose", "conv_weight_grad"]
    slope = torch.func.grad(lambda w: call(x, w, b).square().sum())(w.detach())
    truth = torch.nn.functional.conv2d(x, w, b, 2, 1).square().sum()
    torch.testing.assert_close(slope, torch.autograd.grad(truth, w)[0], rtol=1e-4, atol=1e-4)


def test_another_implementation_is_taken_notice_of(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    call, (x, w, b) = CALLS["conv2d"][0], operands("conv2d")
    for _ in range(2):
        y = call(x, w, b)
        (before,) = torch.autograd.grad(y, x, torch.ones_like(y))
    conv, sibling = OPERATORS["conv"], OPERATORS["conv_transpose"]
    real = sibling.implementations["cpu"]
    y = call(x, w, b)
    monkeypatch.setitem(conv.implementations, "cpu", lambda x, w, b, *_: torch.full((2, 6, 5, 4), 7.0))
    monkeypatch.setitem(sibling.implementations, "cpu", lambda *arguments: 2 * real(*arguments))
    assert bool((call(x, w, b) == 7).all())
    (doubled,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(doubled, 2 * before)


def test_negated_tensors(ran: list[str]) -> None:
    """PyTorch keeps some tensors with the other sign, which kernels that read memory would not see."""
    call, (x, w, b) = CALLS["conv2d"][0], operands("conv2d")
    first = call(x, w, b)
    negated = torch._neg_view(x.detach())
    assert negated.is_neg()
    for _ in range(2):
        out = call(negated.requires_grad_(), w, b)
        torch.testing.assert_close(out, -(first - b.view(1, -1, 1, 1)) + b.view(1, -1, 1, 1))
    y = call(x, w, b)
    g = torch.ones_like(y)
    plain = torch.autograd.grad(y, (x, w), g, retain_graph=True)
    other = torch.autograd.grad(y, (x, w), torch._neg_view(g))
    assert all(torch.equal(-a, b) for a, b in zip(plain, other, strict=True))


def test_weights_that_have_changed_since_are_refused(ran: list[str]) -> None:
    call, (x, w, b) = CALLS["conv2d"][0], operands("conv2d")
    for _ in range(2):
        y = call(x, w, b)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_results_may_be_changed_in_place(ran: list[str]) -> None:
    call, (x, w, b) = CALLS["conv2d"][0], operands("conv2d")
    wanted = torch.autograd.grad(torch.nn.functional.conv2d(x, w, b, 2, 1).relu().sum(), (x, w))
    for _ in range(3):
        x.grad = w.grad = None
        call(x, w, b).relu_().sum().backward()
        for t, truth in zip((x, w), wanted, strict=True):
            assert t.grad is not None
            torch.testing.assert_close(t.grad, truth, rtol=1e-4, atol=1e-4)
            t.grad.mul_(2)


def test_saved_tensors_in_another_format(ran: list[str]) -> None:
    """A hook may give a saved tensor back with other strides, and a weight's data may be other since."""
    call, (x, w, b) = CALLS["conv2d"][0], operands("conv2d", last=True)
    y = call(x, w, b)
    g = torch.linspace(-1, 1, y.numel()).view(y.shape)
    wanted = torch.autograd.grad(y, (x, w, b), g)
    again = torch.autograd.grad(call(x, w, b), (x, w, b), g)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.detach().contiguous()):
        hooked = torch.autograd.grad(call(x, w, b), (x, w, b), g)
    y = call(x, w, b)
    w.data = w.data.contiguous()
    other = torch.autograd.grad(y, (x, w, b), g)
    for found in (again, hooked, other):
        for theirs, ours in zip(wanted, found, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_tables_that_have_changed_since(ran: list[str]) -> None:
    """A backward pass asks anew where the choices of its forward pass no longer hold."""
    call, (x, w, b) = CALLS["conv2d"][0], operands("conv2d")
    for _ in range(2):
        y = call(x, w, b)
        torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
    choice_table.forget()
    ran.clear()
    torch.autograd.grad(y, x, torch.ones_like(y))
    assert ran == ["conv_transpose"]


def test_batched_by_vmap(ran: list[str]) -> None:
    """A tensor of torch.func.vmap does not tell its format; after it the lane is as before."""
    call, (x, w, b) = CALLS["conv2d"][0], operands("conv2d")
    xs = torch.stack([x.detach(), 2 * x.detach()])
    for _ in range(2):
        found = torch.func.vmap(lambda x: call(x, w.detach(), b.detach()))(xs)
    for image, ours in zip(xs, found, strict=True):
        torch.testing.assert_close(ours, torch.nn.functional.conv2d(image, w, b, 2, 1), rtol=1e-4, atol=1e-4)


def test_shapes_are_inferred_on_meta_without_losing_the_lane(ran: list[str]) -> None:
    call, (x, w, b) = CALLS["conv2d"][0], operands("conv2d")
    call(x, w, b)
    call(x.detach().to("meta").requires_grad_(), w.detach().to("meta").requires_grad_(), b.detach().to("meta"))
    ran.clear()
    call(x, w, b)
    assert ran == [] and len(lanes()) == 1
