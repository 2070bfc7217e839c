"""What every ``triton.py`` needs to launch a kernel. Nothing here imports triton: that is for the first call."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gan_fast import backends

#: Most positions or rows that a kernel numbers with 32 bits, with room for the last tile's overhang.
MOST_ROWS = 2**31 - 2**16


class Tile(NamedTuple):
    """One configuration of a kernel with a matrix product: the block that a program computes, and how."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


class Launch(NamedTuple):
    """One launch: the kernel, the number of its programs, its arguments and compile-time constants; and the tiles that
    its own was chosen from, for kernels with a matrix product."""

    kernel: Any
    programs: int
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    warps: int
    stages: int
    tiles: tuple[Tile, ...] = ()


class _Forced(threading.local):
    """What :func:`tile` asks for, of each thread: a backward pass runs in one of its own."""

    tile: Tile | None = None


_recorder: Callable[[Launch], None] | None = None
_forced = _Forced()


def launch(
    kernel: Any, programs: int, device: torch.device, arguments: Mapping[str, Any], constants: Mapping[str, Any],
    warps: int, stages: int, tiles: tuple[Tile, ...] = (),
) -> None:  # fmt: skip
    """Start a kernel on the caller's current stream of ``device``; under :func:`recording` only note it."""
    if _recorder is not None:
        _recorder(Launch(kernel, programs, arguments, constants, warps, stages, tiles))
        return
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](**arguments, **constants, num_warps=warps, num_stages=stages)


@contextlib.contextmanager
def recording(recorder: Callable[[Launch], None]) -> Iterator[None]:
    """Within the ``with`` block nothing is launched; ``recorder`` gets what would have been (meta tensors will do)."""
    global _recorder
    before, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = before


def launches(kernel: Callable[..., Any], arguments: Sequence[Any]) -> list[Launch]:
    """What a call would launch."""
    found: list[Launch] = []
    with recording(found.append):
        kernel(*arguments)
    return found


def is_recording() -> bool:
    """Whether :func:`recording` is in force."""
    return _recorder is not None


@contextlib.contextmanager
def tile(forced: Tile) -> Iterator[None]:
    """Within the ``with`` block kernels with a matrix product take this configuration, cut to their channels, in this
    thread."""
    before, _forced.tile = _forced.tile, forced
    try:
        yield
    finally:
        _forced.tile = before


def forced_tile() -> Tile | None:
    """The configuration that :func:`tile` asks for."""
    return _forced.tile


def precision(dtype: torch.dtype) -> str:
    """How the matrix unit multiplies: "ieee" or, for float32, perhaps "tf32"; half types have one way only."""
    return "tf32" if backends.uses_tf32(dtype) else "ieee"


def dense(x: Tensor) -> Tensor:
    """x (N, C, H, W) or (N, C, W) as a 4-D tensor, dense in channels-last memory; a copy only where needed."""
    four = x.unsqueeze(2) if x.dim() == 3 else x
    return four.contiguous(memory_format=torch.channels_last)


def empty_dense(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uninitialised 4-D tensor in channels-last memory; ``shape`` as :func:`dense` takes it."""
    four = (*shape[:2], 1, shape[2]) if len(shape) == 3 else shape
    return torch.empty(four, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def wide(*tensors: Tensor | None) -> bool:
    """Whether an element of one of the tensors may lie beyond what 32 bits count."""
    return any(t is not None and t.numel() >= MOST_ROWS for t in tensors)


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is neither below n nor below ``least``."""
    return max(least, 1 << max(n - 1, 0).bit_length())


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def two(values: Any, fill: int) -> tuple[int, int]:
    """One entry for each of two spatial axes: a 1-D convolution is one of height 1."""
    return (fill, int(values[0])) if len(values) == 1 else (int(values[0]), int(values[1]))
