"""Random calls of the compiled kernels, every tensor in memory of exactly its size, against numpy in float64.

    python fuzz_kernels.py MODULE SEED CALLS

Made for a module built with -fsanitize=address,undefined (test_fuzz_kernels.py), where a byte read or written outside a
tensor, or outside of what a driver asked scratch() for, ends the process. Exits with 1 at the first wrong result.
"""

from __future__ import annotations

import ctypes
import importlib.util
import random
import sys
from typing import Any

import numpy as np

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

DTYPES = (np.float32, np.float64, np.uint16)
BFLOAT16 = 2
#: Largest difference from the truth, relative to its largest element: what wrong sums exceed by far.
BOUNDS = (1e-4, 1e-4, 2.0**-6)
NONE, RELU, LEAKY_RELU, TANH, SIGMOID = range(5)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Their bits as bfloat16, cut off: any bfloat16 numbers do."""
    return (np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


class Memory:
    """An array at the end of a block of its own, `offset` elements behind a 16-byte boundary."""

    def __init__(self, values: np.ndarray, dtype: type, offset: int) -> None:
        item = np.dtype(dtype).itemsize
        self.block = libc.malloc(values.size * item + offset * item)
        self.address = self.block + offset * item
        raw = (ctypes.c_char * (values.size * item)).from_address(self.address)
        self.stored = np.frombuffer(raw, dtype=dtype).reshape(values.shape)
        self.stored[...] = to_bfloat16(values) if dtype is np.uint16 else values

    @property
    def array(self) -> np.ndarray:
        """The numbers in it, as they were rounded."""
        if self.stored.dtype == np.uint16:
            return (self.stored.astype(np.uint32) << 16).view(np.float32)
        return self.stored

    def __del__(self) -> None:
        libc.free(self.block)


class Call:
    """The random choices of one call, written down for the message."""

    def __init__(self, module: Any, rng: random.Random, bfloat16: bool) -> None:
        self.module = module
        self.rng = rng
        self.numbers = np.random.default_rng(rng.getrandbits(32))
        self.dtype = rng.choices((0, 1, BFLOAT16), (0.5, 0.15, 0.35 if bfloat16 else 0.0))[0]
        self.threads = rng.choice((1, 2, 2, 3))
        self.level = rng.choice(module.isa_levels())
        module.set_isa(self.level)
        self.pairs = rng.random() < 0.5
        module.set_emulated_pairs(self.pairs)
        self.about: dict[str, Any] = {
            "level": self.level,
            "dtype": self.dtype,
            "threads": self.threads,
            "pairs": self.pairs,
        }
        self.kept: list[Memory] = []

    def memory(self, values: np.ndarray, offset: int | None = None) -> Memory:
        made = Memory(values, DTYPES[self.dtype], self.rng.choice((0, 0, 1)) if offset is None else offset)
        self.kept.append(made)
        return made

    def random(self, *shape: int) -> Memory:
        return self.memory(self.numbers.standard_normal(shape))

    def unwritten(self, *shape: int, offset: int | None = None) -> Memory:
        return self.memory(np.full(shape, np.nan), offset)

    def check(self, what: str, got: np.ndarray, truth: np.ndarray, sums: np.ndarray | None = None) -> None:
        """``sums``: what the activation was applied to. bfloat16 operands lose a share of those, however flat it is."""
        largest = truth if sums is None or self.dtype != BFLOAT16 else sums
        scale = max(1.0, float(np.abs(largest).max(initial=0.0)))
        error = np.abs(got.astype(np.float64) - truth)
        if not (error <= BOUNDS[self.dtype] * scale).all():
            raise SystemExit(f"{what} is wrong by {error.max()} of {scale}: {self.about}")


def activate(x: np.ndarray, act: int, slope: float) -> np.ndarray:
    if act == RELU:
        return np.maximum(x, 0)
    if act == LEAKY_RELU:
        return np.where(x > 0, x, slope * x)
    if act == TANH:
        return np.tanh(x)
    return 1 / (1 + np.exp(-x)) if act == SIGMOID else x


def act_slope(y: np.ndarray, act: int, slope: float) -> np.ndarray:
    if act == RELU:
        return (y > 0).astype(np.float64)
    if act == LEAKY_RELU:
        return np.where(y > 0, 1.0, slope)
    if act == TANH:
        return 1 - y * y
    return y * (1 - y) if act == SIGMOID else np.ones_like(y)


def random_geometry(call: Call, transposed: bool) -> tuple[int, ...]:
    """The kernels' sixteen numbers."""
    rng = call.rng
    flavour = rng.choice(("small", "small", "small", "wide", "wide", "large", "few"))
    groups = rng.choice((1, 1, 1, 2, 3, 4))

    def channels() -> int:
        if flavour == "wide":
            return rng.randint(32, 70)
        return rng.choice((1, 2, 3, 4, 5, rng.randint(1, 20), rng.randint(1, 70 // groups)))

    inner, outer = channels(), channels()
    if flavour == "few":
        outer, inner = rng.randint(1, 8), rng.randint(4, 70)
        if rng.random() < 0.5 and not transposed:
            inner, outer = outer, inner
    batch = rng.choice((0, 1, 1, 2, 3, 4, 5))
    rank = rng.choice((1, 2, 2))
    axes = []
    for axis in range(2):
        if axis < 2 - rank:
            axes.append((1, 1, 1, 1, 0, 1))
            continue
        kernel = rng.choice((1, 2, 3, 3, 3, 4, 5, 6, 7))
        stride, dilation = rng.choice((1, 1, 2, 2, 3, 4)), rng.choice((1, 1, 1, 2, 3))
        if flavour == "wide" and rng.random() < 0.7:
            kernel, stride, dilation = rng.choice(((3, 1, 1), (4, 2, 1), (5, 2, 1), (6, 2, 1)))
        most = {"small": 9, "wide": 21, "large": 45, "few": 21}[flavour]
        if rank == 1:
            most *= 30
        size = rng.randint(1, most)
        reach = (kernel - 1) * dilation + 1
        begin, end = rng.randint(-3, reach), rng.randint(-3, reach)
        if transposed:
            out = (size - 1) * stride + reach - begin - end + rng.randint(0, stride)
        else:
            out = (size + begin + end - reach) // stride + 1
        out = min(max(out, 1), 3 * most)
        axes.append((size, out, kernel, stride, begin, dilation))
    (ih, oh, kh, sh, ph, dh), (iw, ow, kw, sw, pw, dw) = axes
    return (batch, inner * groups, ih, iw, outer * groups, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw, groups)


def taps(geometry: tuple[int, ...], large: tuple[int, int], small: tuple[int, int]) -> Any:
    """(ky, kx, matrix_y, matrix_x): 1 where the tap joins a pixel of the small operand, a row, to one of the large."""
    kernel, stride, pad, dilation = geometry[7:9], geometry[9:11], geometry[11:13], geometry[13:15]

    def matrix(axis: int, k: int) -> np.ndarray:
        at = np.arange(small[axis]) * stride[axis] - pad[axis] + k * dilation[axis]
        return (at[:, None] == np.arange(large[axis])[None, :]).astype(np.float64)

    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            yield ky, kx, matrix(0, ky), matrix(1, kx)


def shape_of(geometry: tuple[int, ...], output: bool) -> tuple[int, int, int, int]:
    n, ic, ih, iw, oc, oh, ow = geometry[:7]
    return (n, oh, ow, oc) if output else (n, ih, iw, ic)


def convolution(call: Call, transposed: bool) -> None:
    rng = call.rng
    g = random_geometry(call, transposed)
    if rng.random() < 0.01 and not transposed:  # stores around the cache
        g = (1, 1, 260, 256, 64, 260, 256, 3, 3, 1, 1, 1, 1, 1, 1, 1)
    groups = g[15]
    inner, outer = g[1] // groups, g[4] // groups
    x, y = call.random(*shape_of(g, False)), call.unwritten(*shape_of(g, True), offset=0 if g[2] == 260 else None)
    rows, columns = (inner, outer) if transposed else (outer, inner)
    weight = call.random(rows * groups, columns, g[7], g[8])
    bias = call.random(outer * groups) if rng.random() < 0.6 else None
    prologue = call.random(*shape_of(g, False)) if rng.random() < 0.4 else None
    act, prologue_act = rng.randrange(5), rng.randrange(5) if prologue else 0
    call.about.update(op="conv_transpose" if transposed else "conv", geometry=g, act=act, bias=bias is not None,
                      prologue=prologue_act if prologue else None)  # fmt: skip
    function = call.module.conv_transpose if transposed else call.module.conv
    function(call.dtype, g, x.address, weight.address, bias.address if bias else 0, y.address, act, 0.2,
             prologue.address if prologue else 0, prologue_act, 0.3, call.threads)  # fmt: skip
    xs = x.array.astype(np.float64)
    if prologue:
        xs = xs * act_slope(prologue.array.astype(np.float64), prologue_act, 0.3)
    xs = xs.reshape(*xs.shape[:3], groups, inner)
    ws = weight.array.astype(np.float64).reshape(groups, rows, columns, g[7], g[8])
    truth = np.zeros((*shape_of(g, True)[:3], groups, outer))
    sizes = (g[2:4], g[5:7])
    for ky, kx, my, mx in taps(g, *(sizes[::-1] if transposed else sizes)):
        if transposed:
            moved = np.einsum("ai,bj,nabgc->nijgc", my, mx, xs, optimize=True)
            truth += np.einsum("nijgc,gco->nijgo", moved, ws[..., ky, kx], optimize=True)
        else:
            moved = np.einsum("ia,jb,nabgc->nijgc", my, mx, xs, optimize=True)
            truth += np.einsum("nijgc,goc->nijgo", moved, ws[..., ky, kx], optimize=True)
    truth = truth.reshape(y.array.shape)
    if bias:
        truth = truth + bias.array
    call.check("the output", y.array, activate(truth, act, 0.2), truth)


def weight_grad(call: Call, transposed: bool) -> None:
    rng = call.rng
    g = random_geometry(call, transposed)
    groups = g[15]
    inner, outer = g[1] // groups, g[4] // groups
    x, grad = call.random(*shape_of(g, False)), call.random(*shape_of(g, True))
    rows, columns = (inner, outer) if transposed else (outer, inner)
    result = call.unwritten(rows * groups, columns, g[7], g[8])
    bias = call.unwritten(outer * groups) if rng.random() < 0.6 else None
    prologue = call.random(*shape_of(g, True)) if rng.random() < 0.4 else None
    act = rng.randrange(5) if prologue else 0
    call.about.update(op="conv_weight_grad", transposed=transposed, geometry=g, prologue=act if prologue else None,
                      bias=bias is not None)  # fmt: skip
    call.module.conv_weight_grad(call.dtype, g, transposed, x.address, grad.address, result.address,
                                 bias.address if bias else 0, prologue.address if prologue else 0, act, 0.3,
                                 call.threads)  # fmt: skip
    xs, gs = x.array.astype(np.float64), grad.array.astype(np.float64)
    if prologue:
        gs = gs * act_slope(prologue.array.astype(np.float64), act, 0.3)
    if bias:
        call.check("the bias' gradient", bias.array, gs.sum((0, 1, 2)))
    xs, gs = xs.reshape(*xs.shape[:3], groups, inner), gs.reshape(*gs.shape[:3], groups, outer)
    large, small = (gs, xs) if transposed else (xs, gs)
    truth = np.zeros((groups, rows, columns, g[7], g[8]))
    for ky, kx, my, mx in taps(g, large.shape[1:3], small.shape[1:3]):
        moved = np.einsum("ia,jb,nabgc->nijgc", my, mx, large, optimize=True)
        truth[..., ky, kx] = np.einsum("nijgr,nijgc->grc", small, moved, optimize=True)
    call.check("the weight's gradient", result.array, truth.reshape(result.array.shape))


def size(call: Call) -> int:
    return call.rng.choice((0, 1, call.rng.randint(1, 40), call.rng.randint(1, 5000), call.rng.randint(1, 90_000)))


def bias_act(call: Call) -> None:
    rng = call.rng
    outer, channels, inner = rng.choice(((size(call), 1, 1), (rng.randint(0, 40), rng.randint(1, 70), 1),
                                         (rng.randint(0, 5), rng.randint(1, 20), rng.randint(1, 900))))  # fmt: skip
    x, bias = call.random(outer, channels, inner), call.random(channels) if rng.random() < 0.7 else None
    act = rng.randrange(5)
    truth = x.array.astype(np.float64) + (bias.array.astype(np.float64)[:, None] if bias else 0.0)
    y = x if rng.random() < 0.3 else call.unwritten(outer, channels, inner)
    call.about.update(op="bias_act", sizes=(outer, channels, inner), act=act, bias=bias is not None)
    b = bias.address if bias else 0
    call.module.bias_act(call.dtype, outer, channels, inner, x.address, b, y.address, act, 0.2, call.threads)
    call.check("the output", y.array, activate(truth, act, 0.2))


def act_grad(call: Call) -> None:
    n, act = size(call), call.rng.randrange(5)
    grad, y, out = call.random(n), call.random(n), call.unwritten(n)
    call.about.update(op="act_grad", n=n, act=act)
    call.module.act_grad(call.dtype, n, grad.address, y.address, out.address, act, 0.2, call.threads)
    call.check("the gradient", out.array, grad.array * act_slope(y.array.astype(np.float64), act, 0.2))


def bce_with_logits(call: Call) -> None:
    rng = call.rng
    n, reduction = size(call), rng.randrange(3)
    x = call.random(n)
    target, weight, positive = (call.memory(call.numbers.random(n)) if rng.random() < 0.5 else None for _ in range(3))
    loss = call.unwritten(n if reduction == 0 else 1)
    grad = call.unwritten(n) if rng.random() < 0.8 else None
    call.about.update(op="bce_with_logits", n=n, reduction=reduction)
    addresses = [tensor.address if tensor else 0 for tensor in (weight, positive)]
    call.module.bce_with_logits(call.dtype, n, x.address, target.address if target else 0, 0.9, *addresses, reduction,
                                loss.address, grad.address if grad else 0, call.threads)  # fmt: skip
    if n == 0:
        return
    v = x.array.astype(np.float64)
    t, w, p = (
        m.array.astype(np.float64) if m else default for m, default in ((target, 0.9), (weight, 1.0), (positive, 1.0))
    )
    losses = w * ((1 - t) * v + (1 + (p - 1) * t) * np.log1p(np.exp(-v)))
    call.check("the loss", loss.array, (losses, losses.mean(keepdims=True), losses.sum(keepdims=True))[reduction])
    if grad:
        s = 1 / (1 + np.exp(-v))
        call.check("the gradient", grad.array, w * ((1 - t) * s - p * t * (1 - s)) / (n if reduction == 1 else 1))


def run(module: Any, seed: int, calls: int) -> None:
    kinds = [
        lambda call: convolution(call, transposed=False),
        lambda call: convolution(call, transposed=True),
        lambda call: weight_grad(call, transposed=False),
        lambda call: weight_grad(call, transposed=True),
        lambda call: call.rng.choice((bias_act, act_grad, bce_with_logits))(call),
    ]
    for index in range(calls):
        kind = index % len(kinds)
        call = Call(module, random.Random(f"{seed}.{index}"), bfloat16=kind < 4)
        call.about["call"] = (seed, index)
        kinds[kind](call)


def load(path: str) -> Any:
    """The compiled module at this path, without the package around it."""
    spec = importlib.util.spec_from_file_location("_C", path)
    assert spec is not None and spec.loader is not None
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    return extension


if __name__ == "__main__":
    run(load(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
