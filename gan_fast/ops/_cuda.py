"""What every ``cuda.py`` needs to call a kernel of ``gan_fast._cuda``: codes, the stream, scratch, errors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import _triton

#: dtype -> its code in the kernels' signatures; float32 has a second one, for TF32.
_PRODUCTS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 3}
_TF32 = 2

#: (device, stream) -> a 32-bit zero, to which kernels that count their blocks return.
_counters: dict[tuple[torch.device, int], Tensor] = {}


def product(dtype: torch.dtype) -> int:
    """The kernels' code for elements of ``dtype``, multiplied as torch's setting for convolutions says."""
    return _TF32 if _triton.precision(dtype) == "tf32" else _PRODUCTS[dtype]


def storage(dtype: torch.dtype) -> int:
    """The same for kernels without a matrix product."""
    return _PRODUCTS[dtype]


def stream(device: torch.device) -> int:
    """The handle of the caller's current stream on ``device``."""
    return torch.cuda.current_stream(device).cuda_stream


def call(op: str, device: torch.device, *arguments: Any) -> None:
    """Start the kernel of ``op`` on the caller's current stream of ``device``.

    Raises:
        RuntimeError: what the kernel cannot do, or the CUDA call that failed.
    """
    module = backends.cuda_extension()
    if module is None:
        raise RuntimeError(f"the CUDA kernels are not available: {backends.cuda_extension_error()}")
    index = device.index or 0
    # The launch makes `index` the current device; PyTorch gets back the one that it had.
    with torch.cuda.device(index):
        try:
            getattr(module, op)(*arguments, index, stream(device))
        except ValueError as error:
            raise RuntimeError(f"backend 'cuda' cannot run this {op}: {error}") from error


def counter(device: torch.device) -> Tensor:
    """A 32-bit zero for the next kernel on the current stream: while a graph is captured a new one, in the graph's own
    memory; else one for each stream, where kernels run in turn."""
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=device)
    key = (device, stream(device))
    if key not in _counters:
        _counters[key] = torch.zeros(1, dtype=torch.int32, device=device)
    return _counters[key]
