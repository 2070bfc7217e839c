"""What the tests of the Triton kernels share: the interpreter, errors against float64, and their record.

The kernels run in Triton's interpreter on CPU tensors; `make gpu-proof` makes the environments for that and gathers the
records. Elsewhere (no triton, or not interpreted) these tests are skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tolerance import Errors, assert_as_good, errors
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import _triton
from gan_fast.ops._triton import Tile

pytest.importorskip("triton", reason="triton is not installed here; make gpu-proof runs this with it")
if not backends.triton_is_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1, as make gpu-proof sets it", allow_module_level=True)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Few iterations of the (slow) interpreter; and several tiles and steps along every axis.
ONE_TILE, MANY_TILES = Tile(64, 64, 64, 4, 1), Tile(16, 16, 16, 4, 1)

_record: dict[str, dict[str, float]] = {}


def check(kernel: str, what: str, ours: Tensor, truth: Tensor, theirs: Tensor) -> None:
    """As near to float64 as twice PyTorch's own error in this type, and a floor for what PyTorch gets exactly."""
    if truth.numel() == 0:
        return
    scale = float(truth.abs().max())
    allowed = errors(theirs, truth)
    # One rounding of the result: PyTorch's is 0 now and then on a few elements. The interpreter turns float32 into
    # bfloat16 by cutting bits off, which a device does not.
    rounding = torch.finfo(ours.dtype).eps / (1 if ours.dtype == torch.bfloat16 else 2) * scale
    on_average = rounding if truth.numel() < 8 else rounding / 2
    allowed = Errors(max(allowed.largest, rounding), max(allowed.mean_square, on_average))
    assert_as_good(ours, truth, allowed, f"{kernel}, {what}")
    entry = _record.setdefault(kernel, {"checks": 0, "worst": 0.0})
    entry["checks"] += 1
    entry["worst"] = max(entry["worst"], errors(ours, truth).largest / max(allowed.largest, 1e-30))


@contextlib.contextmanager
def tile(forced: Tile | None) -> Iterator[None]:
    """The configuration under test; None: the one that the shapes choose."""
    with contextlib.nullcontext() if forced is None else _triton.tile(forced):
        yield


@pytest.fixture(scope="module", autouse=True)
def record() -> Iterator[None]:
    """Adds this module's checks to the file that GAN_FAST_PROOF names."""
    _record.clear()
    yield
    path = os.environ.get("GAN_FAST_PROOF")
    if path:
        known = json.loads(Path(path).read_text()) if Path(path).exists() else {}
        Path(path).write_text(json.dumps({**known, **_record}))
