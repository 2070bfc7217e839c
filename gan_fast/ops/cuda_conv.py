"""conv to 1 to 4 channels and conv_transpose from as few, on the CUDA kernels of the same names (csrc/cuda/conv*).

With the same arguments one is the other's input gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gan_fast.ops import _cuda, _kernels, _triton, activation, geometry, layout
from gan_fast.ops.convolution import as_geometry, kernel_code


def make_cuda(op: str) -> Any:
    """conv or conv_transpose on the compiled kernel of the same name."""
    transposed = op == "conv_transpose"

    def cuda(
        input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pad_begin: Sequence[int],
        dilation: Sequence[int], groups: int, out_size: Sequence[int], act: str, slope: float,
        prologue_y: Tensor | None, prologue_activation: str, prologue_slope: float,
    ) -> Tensor:  # fmt: skip
        """Same arguments as the reference; float32, bfloat16 or float16, 1-D and 2-D, without groups.

        A prologue is conv_transpose's own; before conv it runs as an operation by itself.
        """
        prologue: tuple[Any, ...] = ()
        x = input
        if transposed:
            y = None if prologue_y is None else _triton.dense(prologue_y)
            prologue = (_kernels.pointer(y), activation.CODES[prologue_activation], prologue_slope)
        elif prologue_y is not None:
            x = activation.grad(input, prologue_y, prologue_activation, prologue_slope)
        shape = (input.shape[0], geometry.out_channels(weight.shape, groups, transposed), *out_size)
        x, w = _triton.dense(x), _triton.dense(weight)
        b = None if bias is None else bias.contiguous()
        out = _triton.empty_dense(shape, input)
        if out.numel():
            form = as_geometry(stride, pad_begin, dilation, groups, out_size)
            _cuda.call(
                op,
                x.device,
                _cuda.product(x.dtype),
                kernel_code(input.shape, torch.Size(shape), weight.shape[2:], form),
                _kernels.pointer(x),
                _kernels.pointer(w),
                _kernels.pointer(b),
                _kernels.pointer(out),
                activation.CODES[act],
                slope,
                *prologue,
            )
        return layout.from_kernel(out, input.dim() - 2, layout.output_format(input, weight))

    return cuda
