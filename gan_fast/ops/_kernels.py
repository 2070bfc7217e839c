"""What every ``cpu.py`` needs to call a compiled kernel."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from gan_fast import backends

#: dtype -> its code in the kernels' signatures.
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}


def module() -> ModuleType:
    """``gan_fast._C``; RuntimeError with the import's failure where it is absent."""
    extension = backends.extension()
    if extension is None:
        raise RuntimeError(f"the CPU kernels are not available: {backends.extension_error()}")
    return extension


def pointer(x: Tensor | None) -> int:
    """Address of x's first element, 0 for None. The caller keeps x alive through the kernel's call."""
    return 0 if x is None else x.data_ptr()
