"""The Triton kernels of bias_act, act_grad, bce_with_logits and batch normalisation, in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from triton_proof import DTYPES, check, record

from gan_fast import functional
from gan_fast.ops import OPERATORS

__all__ = ["record"]  # the fixture, for this module

ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh", "sigmoid")
SHAPES = [(3, 5), (2, 7, 11), (1, 3, 29, 31)]
every_type = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def compare(op: str, what: str, dtype: torch.dtype, tensors: tuple[Tensor | None, ...], rest: tuple[Any, ...]) -> None:
    """All outputs of an operator by backend "triton" against the reference in float64, and in ``dtype``."""

    def call(to: torch.dtype, backend: str) -> tuple[Tensor, ...]:
        given = [t if t is None or t.dtype == torch.float64 else t.to(dtype).to(to) for t in tensors]
        out = OPERATORS[op](*given, *rest, backend)
        return out if isinstance(out, tuple) else (out,)

    ours, theirs, truth = call(dtype, "triton"), call(dtype, "reference"), call(torch.float64, "reference")
    for i, (mine, other, exact) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert (mine.shape, mine.dtype, mine.stride()) == (other.shape, other.dtype, other.stride()), what
        check(op, f"{what} {dtype} output {i}", mine, exact, other)


def numbers(shape: tuple[int, ...], seed: int, last: bool = False) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last) if last and x.dim() == 4 else x


@every_type
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_bias_act_and_act_grad(act: str, last: bool, dtype: torch.dtype) -> None:
    for i, shape in enumerate(SHAPES):
        x, b = numbers(shape, 1, last) * 3, numbers(shape[1:2], 2)
        compare("bias_act", f"{act} {shape}", dtype, (x, None if i == 1 else b), (act, 0.2))
        y = torch.rand(shape) - (0.5 if "relu" in act else 0)
        compare("act_grad", f"{act} {shape}", dtype, (numbers(shape, 3, last), y), (act, 0.2))


def test_nan_and_infinity_come_out_where_pytorch_has_them() -> None:
    x = torch.tensor([[0.0, -0.0, 80.0, -80.0, float("inf"), -float("inf"), float("nan"), 1e-30]])
    for act in ACTIVATIONS:
        ours, theirs = (OPERATORS["bias_act"](x, None, act, 0.2, backend) for backend in ("triton", "reference"))
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-6, atol=0)
    infinite = torch.full((1, 3), float("inf"))
    shut = torch.tensor([[0.0, -1.0, 1.0]])
    ours, theirs = (OPERATORS["act_grad"](infinite, shut, "relu", 0.2, b) for b in ("triton", "reference"))
    assert torch.equal(ours, theirs)


@every_type
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_bce_with_logits(reduction: str, dtype: torch.dtype) -> None:
    for shape in ((5,), (3, 1), (2, 1, 35, 33), (8200,)):  # by one program, small and large, and by several
        x = numbers(shape, 4) * 8
        target = torch.rand(shape, generator=torch.Generator().manual_seed(5))
        weight, pos_weight = target + 0.5, target * 2 + 0.1
        for tensors, constant in (
            ((None, None, None), 1.0),
            ((None, weight, None), 0.9),
            ((target, None, pos_weight), 0.0),
            ((target, weight[..., :1], pos_weight), 0.0),
        ):
            t, w, p = tensors

            def call(
                to: torch.dtype, backend: str, x: Tensor = x, t: Tensor | None = t, w: Tensor | None = w,
                p: Tensor | None = p, constant: float = constant,
            ) -> tuple[Tensor, Tensor]:  # fmt: skip
                given = [None if a is None else a.to(dtype).to(to) for a in (x, t, w, p)]
                return OPERATORS["bce_with_logits"](given[0], given[1], constant, *given[2:], reduction, backend)

            ours, theirs, truth = call(dtype, "triton"), call(dtype, "reference"), call(torch.float64, "reference")
            for what, mine, exact, other in zip(("loss", "gradient"), ours, truth, theirs, strict=True):
                check("bce_with_logits", f"{what} {reduction} {shape} {dtype}", mine, exact, other)


def test_bce_of_large_logits_keeps_its_small_values() -> None:
    """Where (1 - t) x and softplus(-x) nearly cancel, the loss is exp(x), not 0."""
    x = torch.tensor([-30.0, -20.0, 20.0, 30.0, -100.0, 100.0])
    for constant in (0.0, 1.0):
        value = functional.binary_cross_entropy_with_logits(x, constant, reduction="none", backend="triton")
        exact = torch.nn.functional.softplus(x.double() if constant == 0 else -x.double(), threshold=1e9)
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-37)


@every_type
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("act", ["none", "relu", "leaky_relu", "tanh"])
def test_batch_norm(act: str, training: bool, dtype: torch.dtype) -> None:
    for i, shape in enumerate([(9, 5), (2, 7, 11), (3, 67, 5, 13)]):
        channels = shape[1]
        # A mean far from 0: sums of squares would lose it in float32.
        x = numbers(shape, 6, last=i == 2) + 3
        weight, bias = (numbers((channels,), 7) + 1, numbers((channels,), 8)) if i else (None, None)
        # In float64, as the operators pass them between each other, and as running statistics come.
        mean = None if training else numbers((channels,), 9)
        var = None if training else numbers((channels,), 10).square() + 0.5
        compare("batch_norm_act", f"{act} {shape}", dtype, (x, weight, bias, mean, var), (1e-5, act, 0.2))
        g = numbers(shape, 11)
        rounded = x.to(dtype).double()
        axes = [0, *range(2, len(shape))]
        statistics = (rounded.mean(axes), rounded.var(axes, correction=0)) if training else (mean, var)
        compare(
            "batch_norm_act_backward", f"{act} {shape}", dtype,
            (g, x, weight, bias, *(s.double() for s in statistics)), (training, 1e-5, act, 0.2),
        )  # fmt: skip


def test_more_rows_than_one_slice() -> None:
    """Statistics and sums of many slices, the last of them short."""
    x = numbers((700, 3), 12) + 5
    compare("batch_norm_act", "slices", torch.float32, (x, None, None, None, None), (1e-5, "none", 0.2))
    statistics = (x.double().mean(0), x.double().var(0, correction=0))
    compare(
        "batch_norm_act_backward", "slices", torch.float32, (numbers((700, 3), 13), x, None, None, *statistics),
        (True, 1e-5, "relu", 0.2),
    )  # fmt: skip


def test_batch_norm_of_bfloat16_images_with_float32_parameters() -> None:
    """As autocast has them: the parameters' gradients stay in float32."""
    dtype = torch.bfloat16
    x, g = numbers((2, 5, 3, 4), 14).to(dtype), numbers((2, 5, 3, 4), 15).to(dtype)
    weight, bias = numbers((5,), 16) + 1, numbers((5,), 17)
    given = (x, weight, bias, None, None, 1e-5, "leaky_relu", 0.2)
    y, mean, var = OPERATORS["batch_norm_act"](*given, "triton")
    assert y.dtype == dtype
    exact = OPERATORS["batch_norm_act"](x.double(), weight.double(), bias.double(), *given[3:], "reference")[0]
    torch.testing.assert_close(y.double(), exact, rtol=2e-2, atol=2e-2)
    rest = (mean, var, True, 1e-5, "leaky_relu", 0.2)
    ours = OPERATORS["batch_norm_act_backward"](g, x, weight, bias, *rest, "triton")
    doubles = (t.double() for t in (g, x, weight, bias))
    for mine, right in zip(ours, OPERATORS["batch_norm_act_backward"](*doubles, *rest, "reference"), strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=3e-2, atol=3e-2)
    assert ours[1].dtype == ours[2].dtype == torch.float32
