"""Memory formats: what is a view and what is a copy, for shapes in which the two formats differ and where they meet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gan_fast import functional
from gan_fast.ops import layout

LAST = torch.channels_last
SHAPES = [(2, 3, 4, 5), (2, 1, 4, 5), (1, 6, 1, 5), (1, 1, 1, 5), (4, 6, 1, 1), (4, 1, 1, 1), (0, 3, 4, 5)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def numbers(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(float(torch.Size(shape).numel())).view(shape)


def forms(shape: tuple[int, ...]) -> list[Tensor]:
    """Images of a shape: contiguous, channels_last, rows of a matrix, and every other one of a larger tensor."""
    n, c, h, w = shape
    rows = numbers((n * h * w, c)).view(n, h, w, c).permute(0, 3, 1, 2)
    return [numbers(shape), numbers(shape).to(memory_format=LAST), rows, numbers((2 * n, c, h, w))[::2]]


@every_shape
def test_as_channels_last_says_what_to_says(shape: tuple[int, ...]) -> None:
    for x in forms(shape):
        ours, theirs = functional.as_channels_last(x), x.to(memory_format=LAST)
        assert torch.equal(ours, x)
        if x.numel() and not layout.is_channels_last(x) and shape[1:] != (1, 1, 1):
            assert ours.stride() == theirs.stride(), f"{shape} {x.stride()}"
        assert layout.is_channels_last(ours) == layout.is_channels_last(theirs)
        same_order = x.is_contiguous(memory_format=LAST)
        if x.numel() and not same_order:
            assert (ours.data_ptr() == x.data_ptr()) == layout.is_channels_last(x)
        elif x.numel():
            assert ours.data_ptr() == x.data_ptr(), f"{shape} {x.stride()} was copied"


def test_as_channels_last_can_be_differentiated_traced_and_mapped() -> None:
    x = torch.randn(3, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(functional.as_channels_last, x)
    mapped = torch.func.vmap(functional.as_channels_last)(torch.randn(2, 3, 1, 4, 5))
    assert mapped.shape == (2, 3, 1, 4, 5)
    traced = torch.jit.trace(functional.as_channels_last, torch.randn(3, 1, 4, 5))
    assert traced(x.float()).stride() == (20, 1, 5, 1)


@every_shape
def test_like_copies_only_another_order(shape: tuple[int, ...]) -> None:
    for pattern in forms(shape)[:2]:
        for x in forms(shape):
            laid = layout.like(x, pattern)
            # Element by element in memory.
            flat = [torch.as_strided(t, (t.numel(),), (1,)) for t in (laid, pattern)]
            wanted = torch.empty_like(pattern).copy_(x)
            assert torch.equal(flat[0], torch.as_strided(wanted, (wanted.numel(),), (1,))), f"{shape} {x.stride()}"
            dense = x.is_contiguous() if pattern.is_contiguous() else x.is_contiguous(memory_format=LAST)
            assert x.numel() == 0 or (laid.data_ptr() == x.data_ptr()) == dense, f"{shape} {x.stride()}"


def test_like_broadcasts() -> None:
    pattern = numbers((2, 3, 4, 5)).to(memory_format=LAST)
    laid = layout.like(numbers((3, 1, 1)), pattern)
    assert laid.stride() == pattern.stride() and torch.equal(laid, numbers((3, 1, 1)).expand(2, 3, 4, 5))
