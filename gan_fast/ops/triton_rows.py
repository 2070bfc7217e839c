"""What the Triton kernels of batch normalisation share: rows of channels, cut into slices, and how many of them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gan_fast.ops import _triton, layout

#: Rows and channels of a block: 64 channels are a full line of memory in every data type.
BLOCK_ROWS, BLOCK_CHANNELS = 32, 64
#: Programs of a launch that sums, two for each multiprocessor of the largest present device; a constant, so that every
#: device adds in the same order.
_PROGRAMS = 264


class Slices(NamedTuple):
    """How rows are divided: so many slices of so many rows (the last may have fewer), and blocks of channels."""

    number: int
    length: int
    channel_blocks: int


def slices(rows: int, channels: int) -> Slices:
    """The division of a sum over rows; a slice is worth at least four blocks."""
    blocks = _triton.ceil_div(channels, BLOCK_CHANNELS)
    count = max(1, min(_PROGRAMS // blocks, rows // (4 * BLOCK_ROWS)))
    length = _triton.ceil_div(rows, count)
    return Slices(_triton.ceil_div(rows, length), length, blocks)


def to_rows(x: Tensor) -> Tensor:
    """x (N, C), (N, C, L) or (N, C, H, W), dense with its channels innermost; a copy only where needed."""
    return x.contiguous() if x.dim() == 2 else _triton.dense(x)


def empty_rows(pattern: Tensor) -> Tensor:
    """Uninitialised rows of pattern's shape and dtype."""
    if pattern.dim() == 2:
        return pattern.new_empty(pattern.shape)
    return _triton.empty_dense(tuple(pattern.shape), pattern)


def from_rows(rows: Tensor, pattern: Tensor) -> Tensor:
    """A kernel's output in pattern's shape, with the strides of PyTorch's batch normalisation."""
    return rows if pattern.dim() == 2 else layout.from_kernel(rows, pattern.dim() - 2, layout.output_format(pattern))
