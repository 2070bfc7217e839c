"""A linear layer as a convolution, and back.

The rows of a matrix (N, C) are the pixels of one image (1, C, 1, N) whose channels-last memory is the matrix itself, so
both directions are views. A 1x1 convolution of it multiplies the matrix by the weight, the transposed one by the weight
without its transpose, and the weight gradient is the product of two such matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def image(rows: Tensor) -> Tensor:
    """(N, C) -> (1, C, 1, N)."""
    return rows.view(1, 1, *rows.shape).permute(0, 3, 1, 2) if rows.is_contiguous() else rows.t()[None, :, None]


def matrix(image: Tensor) -> Tensor:
    """(1, C, 1, N) -> (N, C)."""
    return image.squeeze(2).squeeze(0).t()  # an index's gradient would be a copy


def is_product(
    input: Sequence[int],
    output: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    pad_begin: Sequence[int],
    groups: int,
) -> bool:
    """Whether a convolution, or a transposed one, between images of these shapes is a product of matrices."""
    one_row = len(input) == 4 and input[0] == 1 and input[2] == 1 and tuple(input[2:]) == tuple(output)
    return one_row and groups == 1 and max(*kernel, *stride) == 1 and not any(pad_begin)
