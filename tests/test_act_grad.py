"""gan_fast::act_grad on every backend and level."""

from __future__ import annotations

import pytest
import torch
from cases import LAYOUTS, lay
from checks import BACKENDS, DTYPES, REGISTERED, assert_same_layout, level_of, recorded
from conv_checks import ACTIVATIONS
from native import kernels
from tolerance import assert_as_good
from torch import Tensor

from gan_fast.ops import OPERATORS
from gan_fast.ops import activation as activations

SHAPES = [(1,), (17,), (2, 5), (3, 4, 5, 7), (2, 1, 1, 1), (0, 3), (2, 3, 33)]


def tensors(shape: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    g = torch.randn(shape, generator=generator, dtype=torch.float64).float().to(dtype).requires_grad_()
    y = torch.rand(shape, generator=generator, dtype=torch.float64).float() * 1.9 - 0.95
    return g, lay(y.to(dtype), layout).requires_grad_()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_value(act: str, layout: str, dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in SHAPES:
        g, y = tensors(shape, dtype, layout)
        truth = activations.grad(g.double(), y.double(), act, 0.3).detach()
        theirs = activations.grad(g, y, act, 0.3).detach()
        with torch.no_grad(), level_of(backend, monkeypatch) as name, recorded(monkeypatch) as ran:
            ours = OPERATORS["act_grad"](g, y, act, 0.3, name)
        assert ran == [("act_grad", name)]
        assert ours.data_ptr() != g.data_ptr() or not g.numel()
        assert_same_layout([ours, torch.empty_like(y)], f"{act} {shape}")
        assert_as_good(ours, truth, theirs, f"{act} {shape} {layout}")


@pytest.mark.parametrize("backend", REGISTERED)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gradcheck(act: str, backend: str) -> None:
    if backend == "cpu":
        kernels()
    inputs = tensors((2, 3, 2, 2), torch.float64)
    if act in ("none", "relu", "leaky_relu"):  # constant in y almost everywhere: no gradient is handed to y
        inputs = (inputs[0], inputs[1].detach())

    def call(g: Tensor, y: Tensor) -> Tensor:
        return OPERATORS["act_grad"](g, y, act, 0.3, backend)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("backend", REGISTERED)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_opcheck(act: str, backend: str) -> None:
    if backend == "cpu":
        kernels()
    for layout in LAYOUTS:
        torch.library.opcheck(
            torch.ops.gan_fast.act_grad.default, (*tensors((2, 3, 4, 5), torch.float32, layout), act, 0.3, backend)
        )


def test_bad_arguments_are_refused() -> None:
    g = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"y must have the shape of grad_output \(2, 3\), got \(3, 2\)"):
        torch.ops.gan_fast.act_grad(g, torch.zeros(3, 2), "relu", 0.1)
    with pytest.raises(ValueError, match="activation: unknown 'gelu'"):
        torch.ops.gan_fast.act_grad(g, g, "gelu", 0.1)
    with pytest.raises(ValueError, match=r"slope > 0 .* got 0\.0"):
        torch.ops.gan_fast.act_grad(g, g, "leaky_relu", 0.0)
