"""Memory formats: what is a view and what is a copy, for shapes in which the two formats differ and where they meet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import level_of
from native import LEVELS
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from gan_fast import functional
from gan_fast.ops import layout, memory

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


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_copies_between_the_orders_are_exact(level: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = [
        (3, 5, 7, 9),
        (1, 16, 16, 16),
        (2, 64, 1, 130),
        (5, 3, 33, 31),
        (2, 130, 4, 4),
        (3, 1, 6, 6),
        (2, 40, 17, 1),
    ]
    with level_of(f"cpu:{level}", monkeypatch):
        for size in sizes:
            bits = torch.randint(-(2**15), 2**15, size, generator=generator, dtype=torch.int16)  # NaN and -0 among them
            plain = bits.view(torch.bfloat16).to(dtype)
            last = plain.to(memory_format=torch.channels_last)
            to_last = memory.copied(plain, memory.channels_last_stride(size))
            to_plain = memory.copied(last, memory.contiguous_stride(size))
            assert to_last.stride() == memory.channels_last_stride(size)
            assert to_plain.stride() == memory.contiguous_stride(size)
            for copy in (to_last, to_plain):
                torch.testing.assert_close(copy, plain, rtol=0, atol=0, equal_nan=True)
                assert torch.equal(copy.signbit(), plain.signbit())


def test_a_copy_of_anything_else_is_pytorchs() -> None:
    x = torch.randn(4, 6, 5, 8)
    for odd in (x[:, ::2], x.transpose(0, 1), x.expand(4, 6, 5, 8)[1:, :, 1:]):
        for stride in (memory.channels_last_stride(odd.shape), memory.contiguous_stride(odd.shape)):
            copy = memory.copied(odd, stride)
            assert torch.equal(copy, odd)
            assert copy.stride() == stride


def test_a_copy_does_not_depend_on_threads() -> None:
    x = torch.randn(7, 48, 40, 30)
    before = torch.get_num_threads()
    try:
        copies = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            copies.append(memory.copied(x, memory.channels_last_stride(x.shape)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(copy, x) for copy in copies)


def test_what_looks_on_sees_the_copy() -> None:
    """A tangent, and a mode that counts operators: neither survives a copy behind PyTorch's back."""

    class Names(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    x = torch.randn(2, 3, 4, 5)
    with forward_ad.dual_level():
        tangent = torch.randn_like(x)
        out = forward_ad.unpack_dual(functional.as_channels_last(forward_ad.make_dual(x, tangent)))
        assert out.tangent is not None
        assert torch.equal(out.tangent, tangent)
    with Names() as names:
        functional.as_channels_last(x)
    assert any(name.startswith(("clone", "_to_copy", "copy_")) for name in names.seen), names.seen
