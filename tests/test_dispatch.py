"""The way of a call: who serves a layer of which not every pass is ours, what is remembered, and when an operator may
pass PyTorch's dispatcher by."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from native import kernels
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gan_fast import backends, choice_table, functional
from gan_fast.choice_table import Choice
from gan_fast.ops.registry import Operator, recording

CL = torch.channels_last


@pytest.fixture
def served() -> Iterator[list[str]]:
    """The operators that run, with their backends."""
    kernels()
    found: list[str] = []

    def record(operator: Operator, _: list[Any], choice: Choice) -> None:
        found.append(f"{operator.name}:{choice.backend}")

    with recording(record):
        yield found


def only(monkeypatch: pytest.MonkeyPatch, *ours: str) -> None:
    """Let the table give these operators to the kernels and all others to PyTorch."""

    def decide(op: str, facts: object, level: object) -> Choice:
        return Choice("cpu" if op in ours else "torch", "a test")

    monkeypatch.setattr(choice_table, "decide", decide)
    choice_table.forget()


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    choice_table.forget()


def tensors(requires_grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = torch.randn(2, 3, 9, 9), torch.randn(8, 3, 3, 3), torch.randn(8)
    return tuple(t.requires_grad_(requires_grad) for t in (x, weight, bias))  # type: ignore[return-value]  # of three


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (("conv_weight_grad",), ["conv:torch", "conv_transpose:torch", "conv_weight_grad:cpu"]),
        (("conv_transpose",), ["conv:torch", "conv_transpose:cpu", "conv_weight_grad:torch"]),
        (("conv",), ["conv:cpu", "conv_transpose:torch", "conv_weight_grad:torch"]),
        ((), []),
    ],
)
def test_each_pass_has_its_own_backend(
    ours: tuple[str, ...], expected: list[str], served: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, *ours)
    for _ in range(2):  # the second time by what is remembered
        served.clear()
        x, weight, bias = tensors()
        y = functional.conv2d(x, weight, bias, activation="tanh")
        got = torch.autograd.grad(y.square().sum(), (x, weight, bias))
        assert [name for name in served if "conv" in name] == expected
        plain = torch.tanh(torch.nn.functional.conv2d(x, weight, bias))
        for a, b in zip(got, torch.autograd.grad(plain.square().sum(), (x, weight, bias)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_passes_that_will_not_run_do_not_count(served: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "conv_weight_grad")
    x, weight, bias = tensors()
    functional.conv2d(x, weight, bias)
    assert served == ["conv:torch"]
    served.clear()
    with torch.no_grad():
        functional.conv2d(x, weight, bias)
    functional.conv2d(x, weight.detach(), bias)  # the generator's step: D's weights are frozen
    assert served == []


def test_what_is_remembered_holds_for_its_own_kind_only(served: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A first call must not decide for one that differs in what the choice depends on."""
    seen: list[tuple[Any, ...]] = []

    def decide(op: str, facts: dict[str, Any], level: object) -> Choice:
        seen.append((facts["channels_last"], facts["fused"], facts.get("dtype"), facts["batch"], facts["stride"]))
        return Choice("torch", "a test")

    monkeypatch.setattr(choice_table, "decide", decide)
    choice_table.forget()
    x, weight, bias = tensors(requires_grad=False)
    calls: list[Callable[[], Tensor]] = [
        lambda: functional.conv2d(x, weight, bias),
        lambda: functional.conv2d(x.to(memory_format=CL), weight, bias),
        lambda: functional.conv2d(x, weight, bias, activation="relu"),
        lambda: functional.conv2d(x[:1], weight, bias),
        lambda: functional.conv2d(x, weight, bias, 2),
    ]
    for call in calls:
        call()
        call()
    with torch.autocast("cpu", torch.bfloat16):
        assert calls[0]().dtype == torch.bfloat16
    assert seen == [
        (False, False, None, 2, 1),
        (True, False, None, 2, 1),
        (False, True, None, 2, 1),
        (False, False, None, 1, 1),
        (False, False, None, 2, 2),
        (False, False, "bfloat16", 2, 1),
    ]


@pytest.mark.parametrize("ours", [(), ("conv",)])
def test_a_remembered_call_still_raises_pytorchs_errors(
    ours: tuple[str, ...], served: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, *ours)
    x, weight, bias = tensors(requires_grad=False)
    functional.conv2d(x, weight, bias)
    for wrong in (
        functools.partial(functional.conv2d, x, weight, bias[:3]),
        functools.partial(functional.conv2d, x, weight.double(), bias),
        functools.partial(functional.conv2d, x[:, :2], weight, bias),
        functools.partial(functional.conv2d, x.to_sparse(), weight, bias),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wrong()
    with pytest.raises(ValueError, match="activation: unknown 'gelu'"):
        functional.conv2d(x, weight, bias, activation="gelu")
    functional.conv2d(x, weight, bias, [1, 1], (0, 0))  # a list cannot be remembered, and is as good


def test_a_backend_by_name_outweighs_what_is_remembered(served: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch)
    x, weight, bias = tensors(requires_grad=False)
    functional.conv2d(x, weight, bias)
    with backends.use_backend("cpu"):
        functional.conv2d(x, weight, bias)
        with backends.use_backend("auto"):
            functional.conv2d(x, weight, bias)
    functional.conv2d(x, weight, bias, backend="reference")
    assert served == ["conv:cpu", "conv:reference"]


class Seen(TorchDispatchMode):
    """Keeps the names of the operators that pass the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_who_looks_on_sees_the_operators(served: list[str]) -> None:
    x, weight, bias = tensors()
    with backends.use_backend("cpu"):
        direct = functional.conv2d(x, weight, bias)
        with Seen() as seen:
            looked_at = functional.conv2d(x, weight, bias)
        with torch.profiler.profile() as profile:
            functional.conv2d(x, weight, bias)
    assert torch.equal(direct, looked_at) and served == ["conv:cpu"] * 3
    assert "gan_fast.conv.default" in seen.names
    assert "gan_fast::conv" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("requires_grad", [True, False])
def test_outputs_may_be_overwritten(requires_grad: bool) -> None:
    """As after PyTorch's own layers; a view that a function returns may not."""
    kernels()
    x, weight = torch.randn(2, 3, 40), torch.randn(4, 3, 5)
    (weight.requires_grad_() if requires_grad else weight).mul(1)
    with backends.use_backend("cpu"):
        y = torch.nn.functional.relu_(functional.conv1d(x, weight))
    torch.testing.assert_close(y, torch.relu(torch.nn.functional.conv1d(x, weight)), rtol=1e-4, atol=1e-4)
    if requires_grad:
        y.sum().backward()
        assert weight.grad is not None


class Tagged(Tensor):
    """A subclass without behaviour of its own."""


def test_subclasses_come_back_as_themselves() -> None:
    kernels()
    x, weight, bias = tensors(requires_grad=False)
    assert type(functional.conv2d(x.as_subclass(Tagged), weight, bias)) is Tagged  # type: ignore[arg-type]  # torch's type
