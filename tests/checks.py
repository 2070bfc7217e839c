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

from gan_fast import backends, choice_table
from gan_fast.choice_table import Choice
from gan_fast.ops import OPERATORS, memory
from gan_fast.ops import activation as activations

#: Backends and instruction-set levels, each tested by name.
BACKENDS = ("reference", *(f"cpu:{level}" for level in LEVELS))

#: Those of the convolutions: their products of matrices too.
CONVOLUTION_BACKENDS = (*BACKENDS, *(f"gemm:{level}" for level in LEVELS[2:]))

#: What the kernels of the operators other than the convolutions compute with.
DTYPES = (torch.float32, torch.bfloat16)
#: Those that take bfloat16, PyTorch's own operations being the yardstick; "+pairs": with the kernels of avx512_bf16,
#: emulated, "+matrix": with those of amx_bf16.
EMULATED = ("cpu:portable+pairs", "cpu:avx512+pairs", "cpu:portable+matrix", "cpu:avx512+matrix")
BFLOAT16_BACKENDS = (*BACKENDS[1:], *EMULATED)

#: Backends as the operators name them; float64 has one level only.
REGISTERED = ("reference", "cpu")
CONVOLUTION_REGISTERED = (*REGISTERED, "gemm")


def rounds_transforms(case: ConvCase, backend: str) -> bool:
    """Whether the case is Winograd's with operands rounded to bfloat16 behind the transform: its bound, twice PyTorch's
    error, holds from the numbers before autocast rounds them (csrc/cpu/winograd_conv.h), not from the rounded ones.
    """
    return case.name.startswith("winograd") and ("pairs" in backend or "avx512_bf16" in backend)


class Ran(list[tuple[str, str]]):
    """(operator, backend) of every implementation that ran, in order."""

    def backends(self) -> set[str]:
        return {backend for _, backend in self}

    def of_convolutions(self) -> set[str]:
        return {backend for name, backend in self if name.startswith("conv")}


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
def chosen(monkeypatch: pytest.MonkeyPatch, **served: str) -> Iterator[list[str]]:
    """Has the automatic choice on the CPU take these backends by operator, and the kernels for the others; gives the
    operators that run, not those that a lane (gan_fast/ops/lane.py) runs without them."""
    choose = backends.choose

    def decide(op: str, *, backend: str | None = None, **facts: Any) -> Choice:
        if backend != "auto" or facts.get("device") != "cpu":
            return choose(op, backend=backend, **facts)
        return Choice(served.get(op, "cpu"), "a test")

    ran: list[str] = []

    def noted(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            ran.append(name)
            return run(*arguments)

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr(backends, "choose", decide)
        for name, operator in OPERATORS.items():
            patch.setattr(operator, "_run", noted(name, operator._run))
        choice_table.forget()
        yield ran
    choice_table.forget()


@contextmanager
def level_of(backend: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The operators' backend name for one of BACKENDS, with the level set; every buffer comes from the pool, full of
    NaN.
    """
    name, _, level = backend.partition(":")
    level, _, emulated = level.partition("+")
    roomy = emulated == "roomy"
    emulated = "" if roomy else emulated
    if name == "reference":
        yield name
        return
    module = kernels()
    if level not in module.isa_levels():
        pytest.skip(f"this CPU cannot run {level}")
    before, poison = module.isa(), module.pool_set_poison(True)
    module.set_isa(level)
    module.set_near_cache(2 << 20 if roomy else 0)  # the same forms of Winograd on every machine
    module.set_emulated_pairs(bool(emulated))
    module.set_emulated_matrix(emulated == "matrix")
    assert module.isa() == level
    try:
        with monkeypatch.context() as patch:
            patch.setattr(memory, "POOL_FROM", 0)
            yield name
    finally:
        module.set_isa(before)
        module.set_near_cache(-1)
        module.set_emulated_pairs(False)
        module.set_emulated_matrix(False)
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


def orders(
    case: ConvCase,
    runner: Runner,
    dtype: torch.dtype,
    stored: torch.dtype = torch.float32,
    second_order: bool = True,
    magnitudes: bool = False,
) -> dict[str, Tensor]:
    """Value, gradients, and gradients of a mix of the gradients, with fixed random weights.

    All numbers are rounded to ``stored`` before they are given to ``runner`` in ``dtype``. With ``magnitudes`` they
    have lost their signs.
    """

    def prepared(t: Tensor) -> Tensor:
        return (t.abs() if magnitudes else t).to(dtype)

    def mix(t: Tensor, seed: int) -> Tensor:
        return prepared(_mix(t, seed, stored))

    tensors = tuple(
        None if t is None else prepared(t.detach().to(stored)).requires_grad_() for t in case.tensors(stored)
    )
    inputs = [t for t in tensors if t is not None]
    names = [name for name, t in zip(("input", "weight", "bias"), tensors, strict=True) if t is not None]
    out = runner(*tensors)
    result = {"value": out.detach()}
    # Where the padding cuts all input away, PyTorch's way has no path to some inputs; ours gives zeros.
    nothing = torch.stack([t.sum() for t in inputs]).sum() * 0
    first = torch.autograd.grad((out * mix(out, 1)).sum() + nothing, inputs, create_graph=True)
    result.update({f"d/d{n}": g.detach() for n, g in zip(names, first, strict=True)})
    if not second_order:
        return result
    # Products of the gradients with fixed numbers, as a gradient penalty has them.
    total = torch.stack([(g * mix(g, 2 + i)).sum() for i, g in enumerate(first)]).sum()
    second = torch.autograd.grad(total + nothing, inputs)
    result.update({f"d2/d{n}": g.detach() for n, g in zip(names, second, strict=True)})
    return result


def _mix(x: Tensor, seed: int, stored: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(stored).to(x.dtype)


def assert_same_layout(tensors: Sequence[Tensor], what: str) -> None:
    """All tensors have one shape, one dtype and the same strides."""
    first, *others = tensors
    for other in others:
        assert (other.shape, other.dtype, other.stride()) == (first.shape, first.dtype, first.stride()), (
            f"{what}: {tuple(other.shape)} {other.stride()} against {tuple(first.shape)} {first.stride()}"
        )
