"""From the operators' geometry to the padding arguments of PyTorch's convolutions; used by the reference backends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gan_fast.ops.geometry import extent, pad_end


def pad_or_crop(x: Tensor, widths: Sequence[int]) -> Tensor:
    """torch.nn.functional.pad with zeros, last axis first, negative widths cut; they may also cut everything away."""
    cut, fill = [], []
    for axis, (begin, end) in enumerate(zip(widths[::2], widths[1::2], strict=True)):
        size = x.shape[-1 - axis]
        if size + min(begin, 0) + min(end, 0) <= 0:
            shape = list(x.shape)
            for i, (b, e) in enumerate(zip(widths[::2], widths[1::2], strict=True)):
                shape[-1 - i] += b + e
            return x.new_zeros(shape)
        cut += [min(begin, 0), min(end, 0)]
        fill += [max(begin, 0), max(end, 0)]
    return torch.nn.functional.pad(torch.nn.functional.pad(x, cut), fill)


def input_padding(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    pad_begin: Sequence[int],
    dilation: Sequence[int],
    out_size: Sequence[int],
) -> tuple[list[int], list[int] | None]:
    """(padding for PyTorch's convolution, widths to pad or crop its input with): together they give exactly out_size.

    Equal padding on both sides, the usual case, needs no pass over the input (None): PyTorch's convolution does it.
    """
    begin = list(pad_begin)
    ends = [
        pad_end(n, k, s, p, d, out)
        for n, k, s, p, d, out in zip(size, kernel, stride, begin, dilation, out_size, strict=True)
    ]
    # An end up to stride - 1 short of the beginning gives the same outputs: PyTorch rounds their number down.
    if all(p >= 0 and e <= p < e + s for p, e, s in zip(begin, ends, stride, strict=True)):
        return begin, None
    widths = [w for p, e in zip(reversed(begin), reversed(ends), strict=True) for w in (p, e)]
    return [0] * len(begin), widths


def output_padding(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    pad_begin: Sequence[int],
    dilation: Sequence[int],
    out_size: Sequence[int],
) -> tuple[list[int], list[int] | None]:
    """(padding, output_padding) for PyTorch's transposed convolution; (zeros, None) where it has no such form."""
    extra = [
        out - ((n - 1) * s - 2 * p + extent(k, d))
        for n, k, s, p, d, out in zip(size, kernel, stride, pad_begin, dilation, out_size, strict=True)
    ]
    limits = [max(s, d) for s, d in zip(stride, dilation, strict=True)]
    if all(p >= 0 and 0 <= e < limit for p, e, limit in zip(pad_begin, extra, limits, strict=True)):
        return list(pad_begin), extra
    return [0] * len(stride), None


def crop_widths(full: Sequence[int], pad_begin: Sequence[int], out_size: Sequence[int]) -> list[int]:
    """Widths for torch.nn.functional.pad that take the unpadded result of size ``full`` to out_size (negative: cut)."""
    pairs = [(-p, p + out - n) for n, p, out in zip(full, pad_begin, out_size, strict=True)]
    return [width for pair in reversed(pairs) for width in pair]
