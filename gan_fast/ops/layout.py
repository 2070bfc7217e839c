"""Memory order of tensors: the rule for outputs, and the conversion to what the kernels read.

The kernels read dense channels-last memory (N, spatial..., C). The *strides* of every output follow PyTorch's own
rule and depend on the inputs' sizes and strides only, never on the backend: a module downstream sees what it would
see with PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from gan_fast.ops import memory, registry


def is_channels_last(x: Tensor) -> bool:
    """Whether a 4-D tensor's strides say channels-last to PyTorch (``suggest_memory_format`` in its C++ core).

    Of the ambiguous cases (one channel, or one pixel) those that can be read as contiguous are.
    """
    if torch.compiler.is_compiling():  # the compiler traces no caches
        return strides_are_channels_last(x.shape, x.stride())
    try:
        return _known(x.shape, x.stride())
    except TypeError:  # symbolic sizes cannot be looked up
        return strides_are_channels_last(x.shape, x.stride())


def strides_are_channels_last(size: Sequence[int], stride: Sequence[int]) -> bool:
    """:func:`is_channels_last` of a tensor with this shape and these strides."""
    if len(size) != 4 or stride[1] == 0:
        return False
    least = 0
    for axis in (1, 3, 2, 0):
        if size[axis] == 0 or stride[axis] < least:
            return False
        if axis == 0 and least == stride[1]:  # N111 with channel stride 1: contiguous by convention
            return False
        least = stride[axis]
        if size[axis] > 1:
            least = least * size[axis]
    return True


_known = lru_cache(maxsize=4096)(strides_are_channels_last)


def as_channels_last(x: Tensor) -> Tensor:
    """``x.to(memory_format=torch.channels_last)`` of images (N, C, H, W), but a view where only strides differ.

    One channel is the same memory in both formats, and an axis of size 1 may have any stride: ``to`` makes a copy so
    that the strides say which format is meant. Under torch.func's transforms, where a tensor has no format of its own,
    x itself.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return x.to(memory_format=torch.channels_last)  # a compiler plans copies by itself
    if torch._C._are_functorch_transforms_active() or is_channels_last(x):
        return x
    if not x.is_contiguous(memory_format=torch.channels_last):
        recorded = torch.is_grad_enabled() and x.requires_grad
        if recorded or x.device.type != "cpu" or type(x) is not Tensor or x.is_neg() or not registry.nobody_looks_on():
            return x.to(memory_format=torch.channels_last)
        return memory.copied(x, memory.channels_last_stride(x.shape))
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).flatten().view(n, h, w, c).permute(0, 3, 1, 2)


def output_format(*tensors: Tensor) -> torch.memory_format:
    """Channels-last if one of the tensors (a convolution's input and weight) is, as PyTorch's CPU convolutions do."""
    return named(any(is_channels_last(t) for t in tensors))


def named(channels_last: bool) -> torch.memory_format:
    """The format that a flag in an operator's schema means."""
    return torch.channels_last if channels_last else torch.contiguous_format


def to_kernel(x: Tensor) -> Tensor:
    """x (N, C, H, W) or (N, C, W) as a 4-D tensor, dense in channels-last memory order; a copy only where needed."""
    if x.dim() == 3:
        x = x.unsqueeze(2)
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
    return memory.copied(x, memory.channels_last_stride(x.shape))


def is_for_kernel(x: Tensor) -> bool:
    """Whether :func:`to_kernel` returns x itself."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def dense_weight(weight: Tensor) -> tuple[Tensor, bool]:
    """The weight dense in memory, and whether in channels-last order, which it keeps; a copy only where needed."""
    last = is_channels_last(weight)
    return weight.contiguous(memory_format=named(last)), last


def empty_for_kernel(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised 4-D tensor in channels-last memory for a kernel to write; ``shape`` as :func:`to_kernel` takes
    it.
    """
    four = (shape[0], shape[1], 1, shape[2]) if len(shape) == 3 else tuple(shape)
    return memory.empty(four, memory.channels_last_stride(four), dtype)


def from_kernel(out: Tensor, rank: int, memory_format: torch.memory_format) -> Tensor:
    """A kernel's output as the operator returns it: ``rank`` spatial axes, the strides of ``memory_format``."""
    return with_format(out.squeeze(2) if rank == 1 else out, memory_format)


def is_finished(shape: Sequence[int], memory_format: torch.memory_format) -> bool:
    """Whether :func:`from_kernel` returns itself what :func:`empty_for_kernel` makes of this shape."""
    if len(shape) != 4:
        return False
    last = memory.channels_last_stride(shape)
    return memory_format == torch.channels_last or last == memory.contiguous_stride(shape)


class Format:
    """The strides of tensors of one shape in one format."""

    def __init__(self, shape: Sequence[int], memory_format: torch.memory_format) -> None:
        self.memory_format = memory_format
        last = memory_format == torch.channels_last
        self.stride = memory.channels_last_stride(shape) if last else memory.contiguous_stride(shape)

    @staticmethod
    def of_output(shape: Sequence[int], *tensors: Tensor) -> Format:
        """That of an output of this shape, made of these tensors: see :func:`output_format`."""
        return Format(shape, output_format(*tensors))

    def of(self, x: Tensor) -> Tensor:
        """x of this shape with exactly these strides, copied only if the memory differs.

        as_strided normalises the strides of axes of size 1, which PyTorch leaves free otherwise.
        """
        if x.stride() == self.stride:
            return x
        if x.is_contiguous(memory_format=self.memory_format):
            return x.as_strided(x.shape, self.stride)
        if x.device.type != "cpu":
            return torch.empty_strided(x.shape, self.stride, dtype=x.dtype, device=x.device).copy_(x)
        return memory.copied(x, self.stride)


def with_format(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """x with exactly the strides of ``torch.empty(x.shape, memory_format=...)``: see :meth:`Format.of`."""
    return Format(x.shape, memory_format).of(x)


def like(x: Tensor, pattern: Tensor) -> Tensor:
    """x broadcast to the shape of ``pattern`` and laid out as it, so that equal positions in memory are equal elements;
    a copy only where needed. ``pattern`` is dense."""
    if x.shape == pattern.shape:
        steps = zip(x.shape, x.stride(), pattern.stride(), strict=True)
        if x.stride() == pattern.stride() or all(n == 1 or mine == other for n, mine, other in steps):
            return x
    return (memory if x.device.type == "cpu" else torch).empty_like(pattern).copy_(x)
