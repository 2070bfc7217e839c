"""Gradients that the automatic choice leaves to PyTorch are the backward pass that PyTorch's own layer would run: the
same call, so the same bits, in the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import CONV, CONV_TRANSPOSE, ConvCase
from checks import chosen
from native import kernels
from torch import Tensor

from gan_fast import functional as GF
from gan_fast.ops.registry import OPERATORS

#: (transposed, input, weight, stride, padding): sounds and images.
LAYERS = [
    (False, (2, 6, 33), (8, 6, 5), 2, 1),
    (True, (1, 16, 12), (16, 8, 8), 4, 2),
    (False, (3, 8, 9, 7), (4, 8, 3, 3), 2, 1),
    (True, (2, 8, 5, 4), (8, 6, 4, 4), 2, 1),
]
every_layer = pytest.mark.parametrize("layer", LAYERS)
#: What PyTorch serves, of the gradients of input and weight.
LEFT = [(True, True), (True, False), (False, True)]


ToTorch = Callable[[bool, tuple[bool, bool]], list[str]]


@pytest.fixture
def to_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[ToTorch]:
    """A function that has the automatic choice leave a layer's gradients to PyTorch, and gives the operators that run.

    A convolution's forward pass and its sibling's input gradient are one operator, so the forward pass is the kernel's.
    """
    kernels()
    with ExitStack() as stack:

        def leave(transposed: bool, left: tuple[bool, bool]) -> list[str]:
            passes = ("conv" if transposed else "conv_transpose", "conv_weight_grad")
            served = {op: "torch" for op, its in zip(passes, left, strict=True) if its}
            return stack.enter_context(chosen(monkeypatch, **served))

        yield leave


def tensors(layer: Any, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    transposed, input, weight, *_ = layer
    generator = torch.Generator().manual_seed(3)
    memory_format = torch.channels_last if last and len(input) == 4 else torch.contiguous_format
    x, w = (torch.randn(shape, generator=generator).to(memory_format=memory_format) for shape in (input, weight))
    b = torch.randn(weight[1 if transposed else 0], generator=generator)
    return x.requires_grad_(), w.requires_grad_(), b.requires_grad_()


def function(module: Any, layer: Any) -> Callable[..., Tensor]:
    transposed, input, _, stride, padding = layer
    name = f"conv{'_transpose' if transposed else ''}{len(input) - 2}d"
    made: Callable[..., Tensor] = getattr(module, name)
    return lambda x, w, b, **more: made(x, w, b, stride, padding, **more)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("left", LEFT)
@every_layer
def test_bits_are_those_of_pytorch(layer: Any, left: tuple[bool, bool], last: bool, to_torch: ToTorch) -> None:
    x, w, b = tensors(layer, last)
    y = function(F, layer)(x, w, b)
    g = torch.randn_like(y)
    wanted = torch.autograd.grad(y, (x, w, b), g)
    ran = to_torch(layer[0], left)
    first = torch.autograd.grad(function(GF, layer)(x, w, b), (x, w, b), g)
    forward, sibling = ("conv_transpose", "conv") if layer[0] else ("conv", "conv_transpose")
    assert ran == [forward, *([] if left[0] else [sibling]), *([] if left[1] else ["conv_weight_grad"])]
    ran.clear()
    again = torch.autograd.grad(function(GF, layer)(x, w, b), (x, w, b), g)  # the short way of gan_fast/ops/lane.py
    assert ran == [] and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for index, (theirs, ours) in enumerate(zip(wanted, first, strict=True)):
        if left[min(index, 1)] and not (layer[0] and index == 2):  # a transposed one's bias is a sum of its own
            assert torch.equal(theirs, ours) and theirs.stride() == ours.stride()
        else:
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@every_layer
def test_activations_and_what_is_not_asked_for(layer: Any, to_torch: ToTorch) -> None:
    """A fused activation's derivative comes before; a gradient that nobody wants is not computed."""
    x, w, b = tensors(layer, False)
    y = F.leaky_relu(function(F, layer)(x, w, b), 0.2)
    g = torch.randn_like(y)
    wanted = torch.autograd.grad(y, (x, w, b), g)
    ran = to_torch(layer[0], (True, True))
    y = function(GF, layer)(x, w, b, activation="leaky_relu", negative_slope=0.2)
    for asked in ((0, 1, 2), (0,), (1,), (2,), (1, 2)):
        found = torch.autograd.grad(y, [(x, w, b)[i] for i in asked], g, retain_graph=True)
        for i, ours in zip(asked, found, strict=True):
            torch.testing.assert_close(wanted[i], ours, rtol=1e-5, atol=1e-5)
    assert set(ran) <= {"conv_transpose" if layer[0] else "conv", "act_grad"}


@every_layer
def test_derivatives_of_derivatives_are_our_operators(layer: Any, to_torch: ToTorch) -> None:
    x, w, b = tensors(layer, False)

    def penalty(f: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        (slope,) = torch.autograd.grad(f(x, w, b).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (x, w, b))

    wanted = penalty(function(F, layer))
    ran = to_torch(layer[0], (True, True))
    for theirs, ours in zip(wanted, penalty(function(GF, layer)), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
    assert ran[1] == ("conv" if layer[0] else "conv_transpose")


ODD = [case for case in CONV + CONV_TRANSPOSE if len(case.input) == 4 and max(case.input) < 64]


@pytest.mark.parametrize("case", ODD, ids=lambda case: f"{case.op}-{case.name}")
def test_every_geometry(case: ConvCase, to_torch: ToTorch) -> None:
    """Also those that PyTorch's backward pass has no arguments for, which stay with our operators."""
    x, w, b = case.tensors(torch.float32)
    inputs = [t for t in (x, w, b) if t is not None]

    def gradients(backend: str) -> tuple[Tensor, ...]:
        y = OPERATORS[case.op](x, w, b, *case.form, "none", 0.01, None, "none", 0.01, backend)
        return torch.autograd.grad(y, inputs, torch.ones_like(y))

    wanted = gradients("reference")
    to_torch(case.transposed, (True, True))
    for theirs, ours in zip(wanted, gradients("auto"), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
