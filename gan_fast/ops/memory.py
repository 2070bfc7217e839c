"""Memory for the kernels' outputs and copies, recycled by the pool of the compiled module.

A fresh large tensor costs more than many kernels take to fill it, because the system hands out and clears its pages
one by one; a block that comes back from the pool is mapped already. Small tensors are PyTorch's own: their allocation
is cheap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gan_fast import backends

#: Bytes from which a block of the pool is used; below, the C library's allocator recycles memory itself (its limit for
#: mapping fresh pages is 128 KiB by default).
POOL_FROM = 128 * 1024

_DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}


def channels_last_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of (N, C, H, W) in dense channels-last memory."""
    _, c, h, w = shape
    return (h * w * c, 1, w * c, c)


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense tensor in the order of its axes."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def empty(shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised CPU tensor with these dense strides, from the pool where it is large."""
    module = backends.extension()
    if module is None or dtype not in _DTYPE_CODES or math.prod(shape) * dtype.itemsize < POOL_FROM:
        return torch.empty_strided(tuple(shape), tuple(stride), dtype=dtype, device="cpu")
    return torch.from_dlpack(module.pool_empty(list(shape), list(stride), _DTYPE_CODES[dtype]))


def empty_like(pattern: Tensor) -> Tensor:
    """torch.empty_like(pattern) from the pool: dense, in pattern's order of axes if pattern is dense itself."""
    if pattern.numel() * pattern.element_size() < POOL_FROM:
        return torch.empty_like(pattern)
    stride = pattern.stride() if pattern.is_contiguous() else torch.empty_like(pattern, device="meta").stride()
    return empty(pattern.shape, stride, pattern.dtype)


def copied(x: Tensor, stride: Sequence[int]) -> Tensor:
    """A copy of the CPU tensor x with these dense strides, from the pool where it is large. Between plain and
    channels-last order by the kernel ``_C.transpose`` (csrc/cpu/transpose*)."""
    out = empty(x.shape, stride, x.dtype)
    module = backends.extension()
    if module is None or x.dtype not in _DTYPE_CODES or x.dim() not in (3, 4):
        return out.copy_(x)
    count, channels, pixels = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    plain = contiguous_stride(x.shape)
    last = (channels * pixels, 1, *(step * channels for step in contiguous_stride(x.shape[2:])))
    if x.is_contiguous() and tuple(stride) == last:
        rows, columns = channels, pixels
    elif tuple(stride) == plain and x.movedim(1, -1).is_contiguous():
        rows, columns = pixels, channels
    else:
        return out.copy_(x)
    module.transpose(
        _DTYPE_CODES[x.dtype], count, rows, columns, x.data_ptr(), out.data_ptr(), torch.get_num_threads()
    )  # fmt: skip
    return out
