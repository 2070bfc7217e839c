"""Convolutions as products of matrices: what the backend "gemm" of the three convolution operators shares.

A row of the *columns* holds what the kernel's window covers of an image at one position, so that

    conv            = columns(input) @ weight^T
    conv_transpose  = the sum, on each pixel, of input @ weight, whose rows are columns of the output
    weight gradient = dense^T @ columns(image)

The products are PyTorch's (its BLAS), the columns our kernels ``_C.unfold`` and ``_C.fold`` (csrc/cpu/columns*). The
weights are read as they lie, in either memory format, while the backend "cpu" packs them on every call: this is the way
for many weights and few positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gan_fast.ops import _kernels, activation, layout, memory
from gan_fast.ops.act_grad.cpu import act_grad
from gan_fast.ops.convolution import kernel_code
from gan_fast.ops.geometry import Geometry

#: Columns that are alive together; a batch with more goes through in parts.
MOST_BYTES = 64 << 20


def parts(batch: int, bytes_per_sample: int) -> Iterator[slice]:
    """The batch in parts whose columns take no more than :data:`MOST_BYTES`, or of one sample."""
    step = max(1, MOST_BYTES // max(bytes_per_sample, 1))
    for first in range(0, batch, step):
        yield slice(first, min(batch, first + step))


def rows(x: Tensor) -> Tensor:
    """x (N, C, spatial...) as (N * pixels, C); a copy only where its memory is not channels-last."""
    four = layout.to_kernel(x)
    return four.as_strided((four.numel() // x.shape[1], x.shape[1]), (x.shape[1], 1))


def taps_inner(weight_last: bool, groups: int) -> bool:
    """The order of a row: by channel and then tap as weights in PyTorch's plain format, or by tap and then channel as
    those in channels_last; with groups always the former, which keeps a group's columns together."""
    return groups > 1 or not weight_last


def weight_matrix(weight: Tensor, inner: bool) -> Tensor:
    """weight (A, B, kernel...) as (A, B * taps) in the order of the columns; a view of a weight in that format."""
    ordered = weight if inner else weight.movedim(1, -1)
    return ordered.reshape(weight.shape[0], -1)


def weight_of(matrix: Tensor, shape: Sequence[int], inner: bool) -> Tensor:
    """The inverse of :func:`weight_matrix`, a view: a weight of ``shape``."""
    if inner:
        return matrix.view(*shape)
    return matrix.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


#: Rows from which, and below which, MKL is faster with the transpose of a product (rows, K) with (columns, K)^T where
#: there are many columns: mostly 1.1 to 2.9 times (AVX-512, MKL 2024.2, 1,024 to 8,192 summands).
_FEW_ROWS, _MANY_COLUMNS = (10, 56), 384


def product_with_weights(rows: Tensor, matrix: Tensor, groups: int, out: Tensor) -> None:
    """out = rows @ matrix^T by groups: rows (M, groups * K), matrix (groups * N, K), out (M, groups * N)."""
    if groups > 1:
        product(rows, matrix.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1), groups, out)
    elif _FEW_ROWS[0] <= rows.shape[0] < _FEW_ROWS[1] and matrix.shape[0] >= _MANY_COLUMNS:
        out.copy_(torch.mm(matrix, rows.t()).t())
    else:
        torch.mm(rows, matrix.t(), out=out)


def product(a: Tensor, b: Tensor, groups: int, out: Tensor) -> None:
    """out = a @ b by groups: a (M, groups * K), b (groups * K, N), out (M, groups * N)."""
    if groups == 1:
        torch.mm(a, b, out=out)
        return
    made = torch.bmm(a.unflatten(1, (groups, -1)).transpose(0, 1), b.unflatten(0, (groups, -1)))
    out.unflatten(1, (groups, -1)).transpose(0, 1).copy_(made)


def product_over_rows(a: Tensor, b: Tensor, groups: int, out: Tensor, add: bool) -> None:
    """out (+)= a^T @ b by groups: a (M, groups * K), b (M, groups * N), out (groups * K, N)."""
    if groups == 1:
        torch.addmm(out, a.t(), b, out=out) if add else torch.mm(a.t(), b, out=out)
        return
    blocks = out.unflatten(0, (groups, -1))
    made = torch.bmm(a.unflatten(1, (groups, -1)).permute(1, 2, 0), b.unflatten(1, (groups, -1)).transpose(0, 1))
    blocks.add_(made) if add else blocks.copy_(made)


def is_identity(image: Sequence[int], g: Geometry, kernel: Sequence[int]) -> bool:
    """Whether the columns are the image's rows themselves: a kernel of one tap that visits every pixel."""
    return max(*kernel, *g.stride) == 1 and not any(g.pad_begin) and tuple(image) == tuple(g.out_size)


def unfold(
    image: Tensor, other: Sequence[int], kernel: Sequence[int], g: Geometry, transposed: bool, inner: bool
) -> Tensor:
    """The columns of an image (N, C, spatial...) of any strides: (positions, C * taps).

    Args:
        image: input of the convolution, or output of the transposed one (``transposed``).
        other: shape of the other side, whose pixels are the positions.
        kernel, g: the layer's.
        inner: see :func:`taps_inner`.
    """
    if is_identity(image.shape[2:], g, kernel) and tuple(other[2:]) == tuple(image.shape[2:]):
        return rows(image)
    shape = (image.shape[0] * math.prod(other[2:]), image.shape[1] * math.prod(kernel))
    made = memory.empty(shape, (shape[1], 1), image.dtype)
    sides = (other, image.shape) if transposed else (image.shape, other)
    _kernels.module().unfold(
        _kernels.DTYPE_CODES[image.dtype], kernel_code(torch.Size(sides[0]), tuple(sides[1]), tuple(kernel), g),
        transposed, _kernels.pointer(image), _strides(image), inner, _kernels.pointer(made), torch.get_num_threads(),
    )  # fmt: skip
    return made


def fold(
    columns: Tensor, image: Tensor, other: Sequence[int], kernel: Sequence[int], g: Geometry, inner: bool,
    bias: Tensor | None, act: str, slope: float,
) -> None:  # fmt: skip
    """image = act(sum of the columns on each pixel + bias): the output (N, C, spatial...) of a transposed convolution
    from an input of shape ``other``; image may have any strides."""
    _kernels.module().fold(
        _kernels.DTYPE_CODES[image.dtype], kernel_code(torch.Size(other), tuple(image.shape), tuple(kernel), g), True,
        _kernels.pointer(columns), inner, _kernels.pointer(bias), activation.CODES[act], slope,
        _kernels.pointer(image), _strides(image), torch.get_num_threads(),
    )  # fmt: skip


def with_prologue(x: Tensor, y: Tensor | None, act: str, slope: float) -> Tensor:
    """x * act'(y), or x where there is no prologue."""
    return x if y is None or act == "none" else act_grad(x, layout.like(y, x), act, slope)


def _strides(image: Tensor) -> tuple[int, ...]:
    """Of sample, channel, row and column; a line is one row."""
    strides = image.stride()
    return (*strides[:2], 0, strides[2]) if image.dim() == 3 else tuple(strides)
