"""The compiled module for tests that call its functions directly, and the float64 yardstick they share."""

from __future__ import annotations

import os
import shutil
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from gan_fast import backends

ACT_CODES = {"none": 0, "relu": 1, "leaky_relu": 2, "tanh": 3, "sigmoid": 4}
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
#: Every level that exists; what this CPU lacks is skipped by name, so a report shows what was not seen.
LEVELS = ("amx_bf16", "avx512_bf16", "avx512", "avx2", "portable")


def kernels() -> ModuleType:
    """``gan_fast._C``; skips where it was not built, fails where GAN_FAST_REQUIRE_EXT=1 says that it must be."""
    module = backends.extension()
    if module is None:
        reason = f"gan_fast._C is not available: {backends.extension_error()}"
        if os.environ.get("GAN_FAST_REQUIRE_EXT") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return module


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def ulps(got: Tensor, truth: Tensor) -> Tensor:
    """Distance of float32 values from float64 ones, in float32 spacings at the truth; 0 for equal infinities."""
    spacing = torch.from_numpy(np.spacing(truth.abs().float().numpy()).astype(np.float64))
    distance = (got.double() - truth).abs() / spacing
    return torch.where(got.double() == truth, torch.zeros_like(distance), distance)


def unaligned(x: Tensor) -> Tensor:
    """A copy of x that starts one element past a 64-byte boundary."""
    lanes = 64 // x.element_size()
    room = torch.empty(x.numel() + 2 * lanes, dtype=x.dtype)
    start = (-room.data_ptr() // x.element_size()) % lanes + 1
    copy = room[start : start + x.numel()].view(x.shape)
    assert x.numel() == 0 or copy.data_ptr() % 64 == x.element_size()
    return copy.copy_(x)


def compiler() -> str:
    """A C++ compiler; skips or fails as :func:`kernels` where there is none."""
    found = next((path for name in ("g++", "c++", "clang++") if (path := shutil.which(name))), None)
    if found is None:
        reason = "no C++ compiler here"
        if os.environ.get("GAN_FAST_REQUIRE_EXT") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found
