"""gan_fast::bias_act on every backend and level."""

from __future__ import annotations

import pytest
import torch
from cases import LAYOUTS, lay
from checks import BACKENDS, DTYPES, REGISTERED, assert_same_layout, level_of, recorded
from conv_checks import ACTIVATIONS
from native import kernels
from tolerance import assert_as_good
from torch import Tensor

from gan_fast import functional
from gan_fast.ops import OPERATORS
from gan_fast.ops import activation as activations

SHAPES = [(1, 1), (3, 17), (2, 5, 9), (2, 33, 3, 4), (2, 1, 4, 4), (4, 3, 1, 1), (0, 3, 2, 2), (1, 2, 2, 3, 2)]


def tensors(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).float().to(dtype)
    bias = torch.randn(shape[1], generator=generator, dtype=torch.float64).float().to(dtype)
    return lay(x, layout).requires_grad_(), bias.requires_grad_()


def plain(x: Tensor, bias: Tensor | None, act: str, slope: float) -> Tensor:
    shifted = x if bias is None else x + bias.view(-1, *[1] * (x.dim() - 2))
    return activations.apply(shifted, act, slope)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_value(act: str, layout: str, dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in SHAPES:
        x, bias = tensors(shape, dtype, layout)
        for b in (bias, None):
            truth = plain(x.double(), None if b is None else b.double(), act, 0.3).detach()
            with torch.no_grad(), level_of(backend, monkeypatch) as name, recorded(monkeypatch) as ran:
                ours = OPERATORS["bias_act"](x, b, act, 0.3, name)
            assert ran == [("bias_act", name)]
            assert ours.data_ptr() != x.data_ptr() or not x.numel()
            assert_same_layout([ours, torch.empty_like(x)], f"{act} {shape}")
            assert_as_good(ours, truth, plain(x, b, act, 0.3).detach(), f"{act} {shape} {layout}")


@pytest.mark.parametrize("backend", REGISTERED)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gradcheck(act: str, backend: str) -> None:
    if backend == "cpu":
        kernels()

    def call(x: Tensor, bias: Tensor) -> Tensor:
        return OPERATORS["bias_act"](x, bias, act, 0.3, backend)

    inputs = tensors((2, 3, 2, 2), torch.float64)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("backend", REGISTERED)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_opcheck(act: str, backend: str) -> None:
    if backend == "cpu":
        kernels()
    for layout in LAYOUTS:
        args = (*tensors((2, 3, 4, 5), torch.float32, layout), act, 0.3, backend)
        torch.library.opcheck(torch.ops.gan_fast.bias_act.default, args)


@pytest.mark.parametrize("backend", ["auto", *REGISTERED])
@pytest.mark.parametrize("slope", [0.2, 0.0, -0.5])
def test_functional(slope: float, backend: str) -> None:
    if backend == "cpu":
        kernels()
    x, bias = tensors((8, 16, 16, 16), torch.float32)
    for act in (None, *ACTIVATIONS[1:]):
        ours = functional.bias_act(x, bias, act, slope, backend=backend)
        torch.testing.assert_close(ours, plain(x, bias, act or "none", slope))
        mine = torch.autograd.grad(ours.square().sum(), (x, bias))
        theirs = torch.autograd.grad(plain(x, bias, act or "none", slope).square().sum(), (x, bias))
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_bad_arguments_are_refused() -> None:
    x = torch.zeros(2, 3, 4)
    for call in (functional.bias_act, lambda x, b: torch.ops.gan_fast.bias_act(x, b, "relu", 0.1)):
        with pytest.raises(ValueError, match=r"bias must have shape \(3,\), got \(4,\)"):
            call(x, torch.zeros(4))
        with pytest.raises(ValueError, match=r"input must be \(N, C, ...\), got shape \(3,\)"):
            call(x[0, :, 0], None)
    with pytest.raises(ValueError, match=r"activation: unknown 'rleu'.*did you mean 'relu'"):
        functional.bias_act(x, None, "rleu")
