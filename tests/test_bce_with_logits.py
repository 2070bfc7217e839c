"""gan_fast::bce_with_logits and its functional form on every backend and level."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import LAYOUTS, lay
from checks import BACKENDS, DTYPES, REGISTERED, assert_same_layout, level_of, recorded
from native import kernels
from tolerance import assert_as_good
from torch import Tensor

from gan_fast import functional
from gan_fast.ops import OPERATORS

REDUCTIONS = ("mean", "sum", "none")
#: shape of the logits, of weight, of pos_weight
SHAPES = [
    ((1,), None, None),
    ((7,), (7,), None),
    ((4, 1), None, (1,)),
    ((3, 5), (5,), (5,)),
    ((2, 1, 6, 7), (2, 1, 1, 1), None),
    ((3, 4, 5), (4, 1), (3, 1, 1)),
    ((2, 3, 33, 5), None, None),
]


def tensors(index: int, dtype: torch.dtype, layout: str = "contiguous") -> dict[str, Any]:
    shape, weight, pos_weight = SHAPES[index]
    generator = torch.Generator().manual_seed(6 + index)

    def draw(size: tuple[int, ...], positive: bool) -> Tensor:
        x = torch.rand(size, generator=generator, dtype=torch.float64)
        return (x if positive else 8 * (x - 0.5)).float().to(dtype)

    return {
        "input": lay(draw(shape, False), layout).requires_grad_(),
        "target": draw(shape, True),
        "weight": None if weight is None else draw(weight, True) + 0.5,
        "pos_weight": None if pos_weight is None else draw(pos_weight, True) + 0.5,
    }


def wide(t: dict[str, Any]) -> dict[str, Any]:
    """The very numbers in float64."""
    copies = {name: None if x is None else x.detach().double() for name, x in t.items()}
    copies["input"].requires_grad_()
    return copies


def run(t: dict[str, Any], reduction: str, backend: str, constant: float | None = None) -> tuple[Tensor, Tensor]:
    target = None if constant is not None else t["target"]
    return OPERATORS["bce_with_logits"](
        t["input"], target, constant or 0.0, t["weight"], t["pos_weight"], reduction, backend
    )


def plain(t: dict[str, Any], reduction: str, constant: float | None = None) -> tuple[Tensor, Tensor]:
    """PyTorch's loss, and its gradient by autograd."""
    target = t["target"] if constant is None else torch.full_like(t["target"], constant)
    loss = F.binary_cross_entropy_with_logits(
        t["input"], target, t["weight"], reduction=reduction, pos_weight=t["pos_weight"]
    )
    return loss.detach(), torch.autograd.grad(loss.sum(), t["input"])[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constant", [None, 0.0, 1.0, 0.9])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_value_and_gradient(
    reduction: str, constant: float | None, dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, (shape, *_) in enumerate(SHAPES):
        for layout in LAYOUTS:
            t = tensors(index, dtype, layout)
            truth = plain(wide(t), reduction, constant)
            theirs = plain(tensors(index, dtype), reduction, constant)
            with torch.no_grad(), level_of(backend, monkeypatch) as name, recorded(monkeypatch) as ran:
                ours = run(t, reduction, name, constant)
            assert ran == [("bce_with_logits", name)]
            assert_same_layout([ours[1], torch.empty_like(t["input"])], f"{shape} {layout}")
            for what, mine, true, reference in zip(("loss", "gradient"), ours, truth, theirs, strict=True):
                assert_as_good(mine, true, reference, f"{what} of {shape}, {layout}")


@pytest.mark.parametrize("backend", REGISTERED)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction: str, backend: str) -> None:
    """Both outputs, twice: the gradient that the forward pass returns has its own, true derivative."""
    if backend == "cpu":
        kernels()
    for index in (1, 3, 5):
        t = tensors(index, torch.float64)
        target = t["target"].requires_grad_()

        def call(x: Tensor, target: Tensor | None, t: dict[str, Any] = t) -> tuple[Tensor, Tensor]:
            return OPERATORS["bce_with_logits"](x, target, 0.25, t["weight"], t["pos_weight"], reduction, backend)

        for inputs in ((t["input"], target), (t["input"], None)):
            assert torch.autograd.gradcheck(call, inputs)
            assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("backend", ["auto", *REGISTERED])
def test_second_derivative_is_not_zero(backend: str) -> None:
    if backend == "cpu":
        kernels()
    x = torch.linspace(-3, 3, 20_000, requires_grad=True)
    loss = functional.binary_cross_entropy_with_logits(x, 1.0, reduction="sum", backend=backend)
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    s = torch.sigmoid(x.detach())
    torch.testing.assert_close(second, s * (1 - s))


@pytest.mark.parametrize("backend", REGISTERED)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_opcheck(reduction: str, backend: str) -> None:
    if backend == "cpu":
        kernels()
    for index in (3, 4):
        t = tensors(index, torch.float32)
        for target in (t["target"], None):
            args = (t["input"], target, 0.9, t["weight"], t["pos_weight"], reduction, backend)
            torch.library.opcheck(torch.ops.gan_fast.bce_with_logits.default, args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_logits(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.tensor([0.0, -0.0, 1e-45, -1e-39, 88.0, -88.0, 104.0, -104.0, 3e38, -3e38])
    for target in (0.0, 1.0):
        with level_of(backend, monkeypatch) as name:
            loss, grad = torch.ops.gan_fast.bce_with_logits(x, None, target, None, None, "none", name)
        torch.testing.assert_close(
            loss, F.binary_cross_entropy_with_logits(x, torch.full_like(x, target), reduction="none")
        )
        torch.testing.assert_close(grad, torch.sigmoid(x) - target, atol=1e-7, rtol=1e-6)
    with level_of(backend, monkeypatch) as name:
        loss, grad = torch.ops.gan_fast.bce_with_logits(x * float("nan"), None, 1.0, None, None, "mean", name)
    assert loss.isnan() and grad.isnan().all()


@pytest.mark.parametrize("backend", ["auto", *REGISTERED])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_functional_against_torch(reduction: str, backend: str) -> None:
    if backend == "cpu":
        kernels()
    for index in range(len(SHAPES)):
        t = tensors(index, torch.float32)
        ours = functional.binary_cross_entropy_with_logits(**t, reduction=reduction, backend=backend)
        theirs = F.binary_cross_entropy_with_logits(**t, reduction=reduction)
        torch.testing.assert_close(ours, theirs)
        mine = torch.autograd.grad(ours.sum(), t["input"])
        torch.testing.assert_close(mine, torch.autograd.grad(theirs.sum(), t["input"]))


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
def test_weights_that_require_grad(name: str) -> None:
    """The functional form leaves them to PyTorch, which has no derivative for them either; never a silent 0."""
    x, target, factor = torch.randn(5), torch.rand(5), torch.rand(5, requires_grad=True)
    with pytest.raises(RuntimeError, match=f"not differentiable with respect to argument '{name}'"):
        functional.binary_cross_entropy_with_logits(x, target, **{name: factor})
    both = (factor, None) if name == "weight" else (None, factor)
    with pytest.raises(NotImplementedError, match=f"{name} requires grad"):
        torch.ops.gan_fast.bce_with_logits(x, target, 0.0, *both, "mean")


def test_bad_arguments_are_refused() -> None:
    x = torch.zeros(2, 3)
    op = torch.ops.gan_fast.bce_with_logits
    with pytest.raises(ValueError, match=r"target must have the shape of input \(2, 3\), got \(3,\)"):
        op(x, torch.zeros(3), 0.0, None, None, "mean")
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none, got 'avg'"):
        op(x, None, 0.0, None, None, "avg")
    with pytest.raises(ValueError, match=r"weight must broadcast to \(2, 3\), got \(4,\)"):
        op(x, None, 0.0, torch.zeros(4), None, "mean")
    with pytest.raises(ValueError, match="floating point"):
        op(x.long(), None, 0.0, None, None, "mean")
    with pytest.raises(ValueError, match="Target size"):  # PyTorch's own words
        functional.binary_cross_entropy_with_logits(x, torch.zeros(3))
    with pytest.raises(TypeError, match="target: got None, expected a tensor of the input's shape or a number"):
        functional.binary_cross_entropy_with_logits(x, None)  # type: ignore[arg-type]  # wrong on purpose
