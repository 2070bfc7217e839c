"""What the tests of all operators share: backends by name, proof of which one ran, derivatives of a case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import ConvCase, naive
from native import LEVELS, kernels
from torch import Tensor

from gan_fast.ops import OPERATORS, memory
from gan_fast.ops import activation as activations

#: Backends and instruction-set levels, each tested by name.
BACKENDS = ("reference", *(f"cpu:{level}" for level in LEVELS))

#: What the kernels of the operators other than the convolutions compute with.
DTYPES = (torch.float32, torch.bfloat16)

#: Backends as the operators name them; float64 has one level only.
REGISTERED = ("reference", "cpu")


class Ran(list[tuple[str, str]]):
    """(operator, backend) of every implementation that ran, in order."""

    def backends(self) -> set[str]:
        return {backend for _, backend in self}


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ran]:
    """Records which implementations run."""
    ran = Ran()

    def counting(name: str, backend: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            ran.append((name, backend))
            return function(*args)

        return wrapper

    with monkeypatch.context() as patch:
        for name, operator in OPERATORS.items():
            counted = {b: counting(name, b, f) for b, f in operator.implementations.items()}
            patch.setattr(operator, "implementations", counted)
        yield ran


@contextmanager
def level_of(backend: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The operators' backend name for one of BACKENDS, with the level set; every buffer comes from the pool, full of
    NaN.
    """
    name, _, level = backend.partition(":")
    if name == "reference":
        yield name
        return
    module = kernels()
    if level not in module.isa_levels():
        pytest.skip(f"this CPU cannot run {level}")
    before, poison = module.isa(), module.pool_set_poison(True)
    module.set_isa(level)
    assert module.isa() == level
    with monkeypatch.context() as patch:
        patch.setattr(memory, "POOL_FROM", 0)
        yield name
    module.set_isa(before)
    module.pool_set_poison(poison)


def run(case: ConvCase, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    """The case by the registered operator."""
    return OPERATORS[case.op](x, weight, bias, *case.form, case.activation, case.slope, None, "none", 0.01, backend)


def run_torch(case: ConvCase, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The case by PyTorch's own operations, differentiated by PyTorch's own autograd."""
    out = OPERATORS[case.op].implementations["reference"](x, weight, bias, *case.form)
    return activations.apply(out, case.activation, case.slope)


def run_truth(case: ConvCase, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The case by definition."""
    return activations.apply(naive(case, x, weight, bias), case.activation, case.slope)


Runner = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def orders(case: ConvCase, runner: Runner, dtype: torch.dtype) -> dict[str, Tensor]:
    """Value, gradients, and gradients of a mix of the gradients, with fixed random weights (equal for all dtypes)."""
    tensors = case.tensors(dtype)
    inputs = [t for t in tensors if t is not None]
    names = [name for name, t in zip(("input", "weight", "bias"), tensors, strict=True) if t is not None]
    out = runner(*tensors)
    result = {"value": out.detach()}
    # Where the padding cuts all input away, PyTorch's way has no path to some inputs; ours gives zeros.
    nothing = torch.stack([t.sum() for t in inputs]).sum() * 0
    first = torch.autograd.grad((out * _mix(out, 1)).sum() + nothing, inputs, create_graph=True)
    result.update({f"d/d{n}": g.detach() for n, g in zip(names, first, strict=True)})
    # Products of the gradients with fixed numbers, as a gradient penalty has them.
    total = torch.stack([(g * _mix(g, 2 + i)).sum() for i, g in enumerate(first)]).sum()
    second = torch.autograd.grad(total + nothing, inputs)
    result.update({f"d2/d{n}": g.detach() for n, g in zip(names, second, strict=True)})
    return result


def _mix(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).float().to(x.dtype)


def assert_same_layout(tensors: Sequence[Tensor], what: str) -> None:
    """All tensors have one shape, one dtype and the same strides."""
    first, *others = tensors
    for other in others:
        assert (other.shape, other.dtype, other.stride()) == (first.shape, first.dtype, first.stride()), (
            f"{what}: {tuple(other.shape)} {other.stride()} against {tuple(first.shape)} {first.stride()}"
        )
