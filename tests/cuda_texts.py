"""The CUDA kernels' texts (csrc/cuda/*-inl.h) on the CPU, thread by thread; no GPU is needed or used.

tests/cuda_emulation.h stands in for the device: every index, mask and fragment of the kernels is executed, with memory
that is watched; what only a device can show (its compiler's bugs, races between warps, speed) is not.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from native import compiler
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
#: Product's code -> what tensors are stored in, by name.
PRODUCTS = {"bfloat16": 0, "float16": 1, "tf32": 2, "ieee": 3}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}
#: Shared memory of a block that every device since compute capability 8.0 has.
MOST_SHARED = 99 * 1024


class Form(NamedTuple):
    """A convolution: batch, channels, size; outputs, kernel; stride, begin padding, dilation; its output's size."""

    batch: int
    channels: int
    size: tuple[int, int]
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    out: tuple[int, int] | None = None

    @property
    def out_size(self) -> tuple[int, int]:
        """``out``, or what symmetric padding gives."""
        if self.out is not None:
            return self.out
        axes = zip(self.size, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        h, w = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
        return h, w

    def numbers(self) -> Any:
        """As the kernels take a geometry."""
        return (ctypes.c_int64 * 16)(
            self.batch, self.channels, *self.size, self.outputs, *self.out_size, *self.kernel, *self.stride, *self.pad,
            *self.dilation, 1,
        )  # fmt: skip


@functools.cache
def emulation() -> ctypes.CDLL:
    """The kernels' texts, compiled for the CPU: once in a process."""
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "emulation.so"
        subprocess.run([compiler(), *flags, ROOT / "tests" / "cuda_emulation.cpp", "-o", library], check=True)
        loaded = ctypes.CDLL(str(library))
    for name in ("conv", "conv_plan", "conv_transpose", "conv_transpose_plan", "conv_weight_grad", "bce_with_logits"):
        getattr(loaded, name).restype = ctypes.c_char_p
    return loaded


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def both_ways(run: Callable[[int], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The result with the threads first to last and last to first: the same bits, or threads did not wait."""
    forwards, backwards = run(0), run(1)
    for one, other in zip(forwards, backwards, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), "the result depends on the threads' order"
    return forwards


def numbers(shape: tuple[int, ...], seed: int, product: str, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DTYPES[product])


def rounded(tensor: Tensor, product: str) -> Tensor:
    """What the matrix unit multiplies."""
    if product != "tf32":
        return tensor
    return ((tensor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
