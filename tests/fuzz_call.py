"""One random call of a compiled kernel, for fuzz_kernels.py: its tensors, each in memory of exactly its size, its
random choices, and the check of its results."""

from __future__ import annotations

import ctypes
import random
from typing import Any

import numpy as np

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

#: By the kernels' code; the last is bfloat16, which numpy does not know.
DTYPES = (np.float32, np.float64, np.uint16)
NONE, RELU, LEAKY_RELU, TANH, SIGMOID = range(5)


class Memory:
    """An array at the end of a block of its own, `offset` elements behind a 16-byte boundary."""

    def __init__(self, values: np.ndarray, dtype: type, offset: int) -> None:
        item = np.dtype(dtype).itemsize
        self.block = libc.malloc(values.size * item + offset * item)
        self.address = self.block + offset * item
        raw = (ctypes.c_char * (values.size * item)).from_address(self.address)
        self.array = np.frombuffer(raw, dtype=dtype).reshape(values.shape)
        self.array[...] = to_bfloat16(values) if dtype is np.uint16 else values

    @property
    def wide(self) -> np.ndarray:
        """The numbers in float64."""
        if self.array.dtype != np.uint16:
            return self.array.astype(np.float64)
        return (self.array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)

    def __del__(self) -> None:
        libc.free(self.block)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


class Call:
    """The random choices of one call, written down for the message. ``again``: the same one with other threads."""

    def __init__(self, module: Any, rng: random.Random, again: bool = False) -> None:
        self.module = module
        self.again = again
        self.rng = rng
        self.numbers = np.random.default_rng(rng.getrandbits(32))
        self.dtype = 1 if rng.random() < 0.15 else 0
        self.threads = rng.choice((1, 2, 2, 3)) + again
        self.level = rng.choice(module.isa_levels())
        module.set_isa(self.level)
        self.near_cache = rng.choice((0, 2 << 20))
        module.set_near_cache(self.near_cache)
        self.pairs = rng.random() < 0.5
        self.matrix = self.pairs and rng.random() < 0.5  # where pairs are not emulated, matrix registers are not
        module.set_emulated_pairs(self.pairs)
        module.set_emulated_matrix(self.matrix)
        self.about: dict[str, Any] = {
            "level": self.level,
            "near_cache": self.near_cache,
            "dtype": self.dtype,
            "threads": self.threads,
            "pairs": self.pairs,
            "matrix": self.matrix,
        }
        self.kept: list[Memory] = []

    def bfloat16(self) -> None:
        """For the operators that have it: let some of their calls be in bfloat16."""
        if self.rng.random() < 0.4:
            self.dtype = self.about["dtype"] = 2

    def memory(self, values: np.ndarray, offset: int | None = None, dtype: int | None = None) -> Memory:
        dtype = DTYPES[self.dtype if dtype is None else dtype]
        made = Memory(values, dtype, self.rng.choice((0, 0, 1)) if offset is None else offset)
        self.kept.append(made)
        return made

    def random(self, *shape: int) -> Memory:
        return self.memory(self.numbers.standard_normal(shape))

    def unwritten(self, *shape: int, offset: int | None = None) -> Memory:
        return self.memory(np.full(shape, np.nan), offset)

    def check(
        self, what: str, got: Memory, truth: np.ndarray, factor: float = 1.0, sums: np.ndarray | None = None
    ) -> None:
        """``sums``: those before the activation. Where operands may have been rounded to bfloat16 they lose a share of
        the largest, however flat the activation is."""
        if self.again:
            return
        scale = factor * max(1.0, float(np.abs(truth).max(initial=0.0)))
        if sums is not None:  # 5e-6 of them: an activation that is steep at 0 hands the roundings of large sums on
            scale = max(scale, 0.05 * float(np.abs(sums).max(initial=0.0)))
        error = np.abs(got.wide - truth)
        rounding: Any = 0.0
        if got.array.dtype == np.uint16:
            largest = 1.0 if sums is None else max(1.0, float(np.abs(sums).max(initial=0.0)))
            rounding = 2.0**-8 * np.abs(truth) if sums is None else 2.0**-6 * largest
        if not (error <= 1e-4 * scale + rounding).all():
            raise SystemExit(f"{what} is wrong by {error.max()} of {scale}: {self.about}")
