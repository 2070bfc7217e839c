"""The CUDA kernel of binary cross entropy, emulated, against float64."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from cuda_texts import DTYPES, PRODUCTS, address, both_ways, emulation, numbers
from tolerance import assert_as_good
from torch import Tensor


@pytest.mark.parametrize("product", ["bfloat16", "float16", "ieee"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("elements", [1, 255, 2049, 9_011])
def test_bce_with_logits(elements: int, reduction: str, product: str) -> None:
    x = numbers((elements,), 4, product, 8.0)
    share = torch.rand(elements, generator=torch.Generator().manual_seed(5)).to(DTYPES[product])
    weight, pos_weight = share + 0.5, share * 2 + 0.1
    scale = 1.0 / elements if reduction == "mean" else 1.0
    for t, constant, w, p in (
        (None, 1.0, None, None),
        (None, 0.0, weight, None),
        (share, 0.0, None, pos_weight),
        (share, 0.0, weight, pos_weight),
    ):
        partial = torch.full((64,), float("nan"), dtype=torch.float64)
        counter = torch.zeros(1, dtype=torch.int32)

        def run(
            backwards: int, t=t, constant=constant, w=w, p=p, partial=partial, counter=counter
        ) -> tuple[Tensor, ...]:
            loss = torch.full((elements if reduction == "none" else 1,), float("nan"), dtype=x.dtype)
            grad = torch.full_like(x, float("nan"))
            said = emulation().bce_with_logits(
                PRODUCTS[product], ctypes.c_int64(elements), address(x), address(t), ctypes.c_float(constant),
                address(w), address(p), ["none", "mean", "sum"].index(reduction), ctypes.c_float(scale), address(loss),
                address(grad), address(partial), address(counter), backwards,
            )  # fmt: skip
            assert said == b"", said.decode()
            assert counter.item() == 0, "the counter is not ready for the next launch"
            return loss, grad

        def by_torch(dtype: torch.dtype, t=t, constant=constant, w=w, p=p) -> tuple[Tensor, Tensor]:
            target = torch.full_like(x, constant) if t is None else t
            given = [None if a is None else a.to(dtype) for a in (x, target, w, p)]
            logits = given[0].requires_grad_()
            loss = F.binary_cross_entropy_with_logits(
                logits, given[1], given[2], reduction=reduction, pos_weight=given[3]
            )
            return loss.detach().reshape(-1), torch.autograd.grad(loss.sum(), logits)[0]

        for what, mine, exact, theirs in zip(
            ("loss", "gradient"), both_ways(run), by_torch(torch.float64), by_torch(x.dtype), strict=True
        ):
            assert_as_good(mine, exact, theirs, f"{what} {reduction} {elements} {product}")


def test_bce_of_large_logits_keeps_its_small_values() -> None:
    x = torch.tensor([-30.0, -20.0, 20.0, 30.0, -80.0, 80.0])
    for constant in (0.0, 1.0):
        loss, grad = torch.empty_like(x), torch.empty_like(x)
        emulation().bce_with_logits(
            PRODUCTS["ieee"], ctypes.c_int64(6), address(x), None, ctypes.c_float(constant), None, None, 0,
            ctypes.c_float(1.0), address(loss), address(grad), None, None, 0,
        )  # fmt: skip
        exact = F.softplus(x.double() if constant == 0 else -x.double(), threshold=1e9)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
