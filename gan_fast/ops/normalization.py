"""What the operators of batch normalisation share: checks, facts, a channel's shape, the rows that the kernels read.

The kernels see a table of rows with one element of each channel: (N * spatial..., C), dense.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_fast.ops import activation, layout, memory
from gan_fast.ops.convolution import check_same


def check(op: str, input: Tensor, act: str, slope: float, **by_channel: Tensor | None) -> None:
    """ValueError unless input is (N, C), (N, C, L) or (N, C, H, W) and the others are (C), all of one dtype; beside
    bfloat16 the others may be float32, as autocast has it."""
    activation.check_fusable(act, slope)
    if input.dim() not in (2, 3, 4):
        raise ValueError(f"{op}: input must be (N, C), (N, C, L) or (N, C, H, W), got shape {tuple(input.shape)}")
    if input.numel() == 0:
        raise ValueError(f"{op}: input must not be empty, got shape {tuple(input.shape)}")
    given = {name: tensor for name, tensor in by_channel.items() if tensor is not None}
    first = next(iter(given.values()), input)
    if first.dtype != input.dtype and first.device == input.device and dtypes_fit(input.dtype, first.dtype):
        check_same(op, **given)
    else:
        check_same(op, input=input, **given)
    check_channels(op, input, **by_channel)


def check_channels(op: str, input: Tensor, **by_channel: Tensor | None) -> None:
    """ValueError unless every given tensor has one element for each channel of input."""
    for name, tensor in by_channel.items():
        if tensor is not None and tuple(tensor.shape) != (input.shape[1],):
            raise ValueError(f"{op}: {name} must have shape ({input.shape[1]},), got {tuple(tensor.shape)}")


#: What weight, bias and running statistics may be beside an image: PyTorch's own rule on the CPU.
_PARAMETERS = {
    torch.float32: (torch.float32,),
    torch.float64: (torch.float64,),
    torch.bfloat16: (torch.bfloat16, torch.float32),
}


def dtypes_fit(image: torch.dtype, parameters: torch.dtype) -> bool:
    """Whether the operators take such tensors together."""
    return parameters in _PARAMETERS.get(image, ())


def parameter_dtype(input: Tensor, *parameters: Tensor | None) -> torch.dtype:
    """Of weight, bias and running statistics: that of the first that is there, else of input."""
    return next((t.dtype for t in parameters if t is not None), input.dtype)


def widened(x: Tensor | None) -> Any:
    """x, in float32 if it is bfloat16: what PyTorch's operations compute a second derivative in."""
    return x.float() if x is not None and x.dtype == torch.bfloat16 else x


def facts(input: Tensor) -> dict[str, Any]:
    """What the choice of a backend may ask about a call."""
    return {
        "device": input.device.type,
        "dtype": input.dtype,
        "elements": input.numel(),
        "channels": input.shape[1],
        "channels_last": _rows_are_dense(input),
    }


def reduced(input: Tensor) -> list[int]:
    """The axes over which statistics are taken."""
    return [0, *range(2, input.dim())]


def per_channel(values: Tensor, input: Tensor) -> Tensor:
    """values (C) in input's dtype, in a shape that broadcasts along input's channels."""
    return values.to(input.dtype).view(-1, *[1] * (input.dim() - 2))


def _rows_are_dense(x: Tensor) -> bool:
    if x.dim() == 2:
        return x.is_contiguous()
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def to_rows(x: Tensor) -> Tensor:
    """x as the kernels read it; a copy only where needed."""
    return x.contiguous() if x.dim() == 2 else layout.to_kernel(x)


def empty_rows(pattern: Tensor) -> Tensor:
    """Uninitialised rows of pattern's shape and dtype."""
    if pattern.dim() == 2:
        return memory.empty(pattern.shape, memory.contiguous_stride(pattern.shape), pattern.dtype)
    return layout.empty_for_kernel(pattern.shape, pattern.dtype)


def from_rows(rows: Tensor, pattern: Tensor) -> Tensor:
    """A kernel's output in pattern's shape, with the strides of PyTorch's batch normalisation."""
    return rows if pattern.dim() == 2 else layout.from_kernel(rows, pattern.dim() - 2, layout.output_format(pattern))
