"""Random calls of the compiled kernels, every tensor in memory of exactly its size, against numpy in float64.

    python tests/fuzz_kernels.py --cases 2000 [--first 0] [--seed 0] [MODULE]

Every third call is made again with another number of threads and must give the same bits. Made for a module built with
-fsanitize=address,undefined (test_fuzz_kernels.py), where a byte read or written outside a tensor, or outside of what a
driver asked scratch() for, ends the process. Exits with 1 at the first wrong result.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_call import LEAKY_RELU, RELU, SIGMOID, TANH, Call


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
    flavour = rng.choice(("small", "small", "small", "wide", "wide", "large", "few", "winograd"))
    groups = 1 if flavour == "winograd" else rng.choice((1, 1, 1, 2, 3, 4))

    def channels() -> int:
        if flavour == "wide":
            return rng.randint(32, 70)
        return rng.choice((1, 2, 3, 4, 5, rng.randint(1, 20), rng.randint(1, 70 // groups)))

    inner, outer = channels(), channels()
    if flavour == "few":
        # Whole blocks of channels are read where they lie, if taps are neighbours enough.
        outer, inner = rng.randint(1, 8), rng.choice((16, 32, 64, rng.randint(4, 70)))
        if rng.random() < 0.5 and not transposed:
            inner, outer = outer, inner
    if flavour == "winograd":
        inner, outer = (rng.choice((rng.randint(32, 70), rng.randint(128, 140))) for _ in range(2))
    batch = rng.choice((0, 1, 1, 2, 3, 4, 5))
    rank = 2 if flavour == "winograd" else rng.choice((1, 2, 2))
    axes = []
    for axis in range(2):
        if axis < 2 - rank:
            axes.append((1, 1, 1, 1, 0, 1))
            continue
        kernel = rng.choice((1, 2, 3, 3, 3, 4, 5, 6, 7))
        stride, dilation = rng.choice((1, 1, 2, 2, 3, 4)), rng.choice((1, 1, 1, 2, 3))
        if flavour == "wide" and rng.random() < 0.7:
            kernel, stride, dilation = rng.choice(((3, 1, 1), (4, 2, 1), (5, 2, 1), (6, 2, 1)))
        if flavour == "winograd":
            kernel, stride, dilation = rng.choice(((3, 1, 1), (3, 2, 1), (4, 2, 1), (5, 2, 1)))
        most = {"small": 9, "wide": 21, "large": 45, "few": 21, "winograd": 30}[flavour]
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
    if flavour == "winograd":  # as many pieces as it takes, if not of the smallest images
        batch = min(48, 1 + 3600 // (ih * iw if transposed else oh * ow))
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


def weight_order(columns: int, geometry: tuple[int, ...], last: bool) -> tuple[int, ...]:
    """The axes of a weight behind its first, as they lie in memory."""
    kernel = geometry[7:9]
    return (*kernel, columns) if last else (columns, *kernel)


def plain_weight(weight: np.ndarray, last: bool) -> np.ndarray:
    return np.moveaxis(weight, -1, 1) if last else weight


def columns(call: Call) -> None:
    """unfold, and fold of random columns, of images in either memory order."""
    rng = call.rng
    transposed, inner, image_last = (rng.random() < 0.5 for _ in range(3))
    g = random_geometry(call, transposed)
    image_shape, other = shape_of(g, transposed), shape_of(g, not transposed)
    n, height, width, channels = image_shape
    image = call.random(*image_shape) if image_last else call.random(n, channels, height, width)
    strides = (height * width * channels, *((1, width * channels, channels) if image_last
                                            else (height * width, width, 1)))  # fmt: skip
    positions, count = n * other[1] * other[2], g[7] * g[8]
    row = (channels, count) if inner else (count, channels)
    made = call.unwritten(positions, *row)
    given, bias = call.random(positions, *row), call.random(channels) if rng.random() < 0.6 else None
    act = rng.randrange(5)
    folded = call.unwritten(*image.array.shape)
    call.about.update(op="columns", transposed=transposed, inner=inner, image_last=image_last, geometry=g, act=act)
    call.module.unfold(call.dtype, g, transposed, image.address, strides, inner, made.address, call.threads)
    if n:
        call.module.fold(call.dtype, g, transposed, given.address, inner, bias.address if bias else 0, act, 0.2,
                         folded.address, strides, call.threads)  # fmt: skip
    pixels = image.wide if image_last else np.moveaxis(image.wide, 1, -1)
    by_tap = np.moveaxis(given.wide, 1, -1) if inner else given.wide  # positions, taps, channels
    unfolded, sums = np.zeros((positions, count, channels)), np.zeros(image_shape)
    for ky, kx, my, mx in taps(g, image_shape[1:3], other[1:3]):
        tap = ky * g[8] + kx
        unfolded[:, tap] = np.einsum("ia,jb,nabc->nijc", my, mx, pixels, optimize=True).reshape(positions, channels)
        sums += np.einsum("ia,jb,nijc->nabc", my, mx, by_tap[:, tap].reshape(*other[:3], channels), optimize=True)
    call.check("the columns", made, np.moveaxis(unfolded, 1, -1) if inner else unfolded)
    truth = activate(sums + (bias.wide if bias else 0.0), act, 0.2)
    call.check("the folded image", folded, truth if image_last else np.moveaxis(truth, -1, 1))


def convolution(call: Call, transposed: bool) -> None:
    rng = call.rng
    call.bfloat16()
    g = random_geometry(call, transposed)
    if rng.random() < 0.01 and not transposed:  # stores around the cache
        g = (1, 1, 260, 256, 64, 260, 256, 3, 3, 1, 1, 1, 1, 1, 1, 1)
    groups = g[15]
    inner, outer = g[1] // groups, g[4] // groups
    x, y = call.random(*shape_of(g, False)), call.unwritten(*shape_of(g, True), offset=0 if g[2] == 260 else None)
    rows, columns = (inner, outer) if transposed else (outer, inner)
    last = rng.random() < 0.4
    weight = call.random(rows * groups, *weight_order(columns, g, last))
    bias = call.random(outer * groups) if rng.random() < 0.6 else None
    prologue = call.random(*shape_of(g, False)) if rng.random() < 0.4 else None
    act, prologue_act = rng.randrange(5), rng.randrange(5) if prologue else 0
    call.about.update(op="conv_transpose" if transposed else "conv", geometry=g, act=act, last=last,
                      bias=bias is not None, prologue=prologue_act if prologue else None)  # fmt: skip
    function = call.module.conv_transpose if transposed else call.module.conv
    function(call.dtype, g, x.address, weight.address, last, bias.address if bias else 0, y.address, act, 0.2,
             prologue.address if prologue else 0, prologue_act, 0.3, call.threads)  # fmt: skip
    xs = x.wide
    if prologue:
        xs = xs * act_slope(prologue.wide, prologue_act, 0.3)
    xs = xs.reshape(*xs.shape[:3], groups, inner)
    ws = plain_weight(weight.wide, last).reshape(groups, rows, columns, g[7], g[8])
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
        truth = truth + bias.wide
    call.check("the output", y, activate(truth, act, 0.2), sums=truth)


def weight_grad(call: Call, transposed: bool) -> None:
    rng = call.rng
    call.bfloat16()
    g = random_geometry(call, transposed)
    groups = g[15]
    inner, outer = g[1] // groups, g[4] // groups
    x, grad = call.random(*shape_of(g, False)), call.random(*shape_of(g, True))
    rows, columns = (inner, outer) if transposed else (outer, inner)
    last = rng.random() < 0.4
    result = call.unwritten(rows * groups, *weight_order(columns, g, last))
    bias = call.unwritten(outer * groups) if rng.random() < 0.6 else None
    prologue = call.random(*shape_of(g, True)) if rng.random() < 0.4 else None
    act = rng.randrange(5) if prologue else 0
    call.about.update(op="conv_weight_grad", transposed=transposed, geometry=g, prologue=act if prologue else None,
                      bias=bias is not None, last=last)  # fmt: skip
    call.module.conv_weight_grad(call.dtype, g, transposed, x.address, grad.address, result.address, last,
                                 bias.address if bias else 0, prologue.address if prologue else 0, act, 0.3,
                                 call.threads)  # fmt: skip
    xs, gs = x.wide, grad.wide
    if prologue:
        gs = gs * act_slope(prologue.wide, act, 0.3)
    if bias:
        call.check("the bias' gradient", bias, gs.sum((0, 1, 2)))
    xs, gs = xs.reshape(*xs.shape[:3], groups, inner), gs.reshape(*gs.shape[:3], groups, outer)
    large, small = (gs, xs) if transposed else (xs, gs)
    truth = np.zeros((groups, rows, columns, g[7], g[8]))
    for ky, kx, my, mx in taps(g, large.shape[1:3], small.shape[1:3]):
        moved = np.einsum("ia,jb,nabgc->nijgc", my, mx, large, optimize=True)
        truth[..., ky, kx] = np.einsum("nijgr,nijgc->grc", small, moved, optimize=True)
    truth = truth.reshape(rows * groups, columns, g[7], g[8])
    if last:
        truth = np.moveaxis(truth, 1, -1)
    call.check("the weight's gradient", result, truth, sums=truth)


def size(call: Call) -> int:
    return call.rng.choice((0, 1, call.rng.randint(1, 40), call.rng.randint(1, 5000), call.rng.randint(1, 90_000)))


def bias_act(call: Call) -> None:
    rng = call.rng
    call.bfloat16()
    outer, channels, inner = rng.choice(((size(call), 1, 1), (rng.randint(0, 40), rng.randint(1, 70), 1),
                                         (rng.randint(0, 5), rng.randint(1, 20), rng.randint(1, 900))))  # fmt: skip
    x, bias = call.random(outer, channels, inner), call.random(channels) if rng.random() < 0.7 else None
    act = rng.randrange(5)
    truth = x.wide + (bias.wide[:, None] if bias else 0.0)
    y = x if rng.random() < 0.3 else call.unwritten(outer, channels, inner)
    call.about.update(op="bias_act", sizes=(outer, channels, inner), act=act, bias=bias is not None)
    b = bias.address if bias else 0
    call.module.bias_act(call.dtype, outer, channels, inner, x.address, b, y.address, act, 0.2, call.threads)
    call.check("the output", y, activate(truth, act, 0.2))


def act_grad(call: Call) -> None:
    call.bfloat16()
    n, act = size(call), call.rng.randrange(5)
    grad, y, out = call.random(n), call.random(n), call.unwritten(n)
    call.about.update(op="act_grad", n=n, act=act)
    call.module.act_grad(call.dtype, n, grad.address, y.address, out.address, act, 0.2, call.threads)
    call.check("the gradient", out, grad.wide * act_slope(y.wide, act, 0.2))


def bce_with_logits(call: Call) -> None:
    rng = call.rng
    call.bfloat16()
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
    v = x.wide
    t, w, p = (m.wide if m else default for m, default in ((target, 0.9), (weight, 1.0), (positive, 1.0)))
    losses = w * ((1 - t) * v + (1 + (p - 1) * t) * np.log1p(np.exp(-v)))
    call.check("the loss", loss, (losses, losses.mean(keepdims=True), losses.sum(keepdims=True))[reduction])
    if grad:
        s = 1 / (1 + np.exp(-v))
        call.check("the gradient", grad, w * ((1 - t) * s - p * t * (1 - s)) / (n if reduction == 1 else 1))


def batch_norm(call: Call) -> None:
    """Forward and backward of one table of rows."""
    rng = call.rng
    call.bfloat16()
    rows, channels = rng.choice(((rng.randint(2, 40), rng.randint(1, 70)), (rng.randint(2, 3000), rng.randint(1, 20)),
                                 (rng.randint(2, 300), rng.randint(1, 1200))))  # fmt: skip
    act, training, parameters = (
        rng.randrange(5),
        rng.random() < 0.7,
        rng.choice((0, 2)) if call.dtype == 2 else call.dtype,
    )
    call.about.update(op="batch_norm_act", rows=rows, channels=channels, act=act, training=training, of=parameters)
    x, g, y, grad = call.random(rows, channels), call.random(rows, channels), *(
        call.unwritten(rows, channels) for _ in range(2))  # fmt: skip
    weight, bias = (
        call.memory(call.numbers.standard_normal(channels), dtype=parameters) if rng.random() < 0.8 else None
        for _ in range(2)
    )
    by_weight, by_bias = (call.memory(np.full(channels, np.nan), dtype=parameters) for _ in range(2))
    mean, var = (call.memory(call.numbers.random(channels) + 0.1, dtype=1) for _ in range(2))
    addresses = weight.address if weight else 0, bias.address if bias else 0
    codes = call.dtype, parameters, rows, channels
    call.module.batch_norm_act(*codes, x.address, *addresses, training, mean.address, var.address, 1e-5, act, 0.2,
                               y.address, call.threads)  # fmt: skip
    call.module.batch_norm_act_backward(*codes, g.address, x.address, *addresses, mean.address, var.address, training,
                                        1e-5, act, 0.2, grad.address, by_weight.address, by_bias.address,
                                        call.threads)  # fmt: skip
    xs, gs = x.wide, g.wide
    w, b = weight.wide if weight else 1.0, bias.wide if bias else 0.0
    if training:
        call.check("the mean", mean, xs.mean(0))
        call.check("the variance", var, xs.var(0))
    r = 1 / np.sqrt(var.wide + 1e-5)
    h = (xs - mean.wide) * r
    z = h * w + b
    out = activate(z, act, 0.2)
    call.check("the output", y, out, factor=float(r.max()))  # a few rows may be nearly equal: what is left is rounding
    if act in (RELU, LEAKY_RELU) and (np.abs(z) < 1e-4 * r.max()).any():
        return  # on which side of 0 float32 has it, nobody knows
    gs = gs * act_slope(out, act, 0.2)
    call.check("the bias' gradient", by_bias, gs.sum(0), factor=float(r.max()))
    call.check("the weight's gradient", by_weight, (gs * h).sum(0), factor=float(r.max()))
    if training:
        gs = gs - gs.mean(0) - h * (gs * h).mean(0)
    call.check("the input's gradient", grad, w * r * gs, factor=float((r * r).max()))


KINDS = [
    lambda call: convolution(call, transposed=False),
    lambda call: convolution(call, transposed=True),
    lambda call: weight_grad(call, transposed=False),
    lambda call: weight_grad(call, transposed=True),
    lambda call: call.rng.choice((bias_act, act_grad, bce_with_logits, batch_norm, columns, columns))(call),
]


def run(module: Any, seed: int, first: int, calls: int) -> dict[str, int]:
    """The random calls ``first`` up to ``first + calls``; how many there were of each operator."""
    counted: collections.Counter[str] = collections.Counter()
    for index in range(first, first + calls):
        made = []
        for again in (False, True)[: 2 if index % 3 == 0 else 1]:
            call = Call(module, random.Random(f"{seed}.{index}"), again)
            call.about["call"] = (seed, index)
            KINDS[index % len(KINDS)](call)
            made.append([memory.array.tobytes() for memory in call.kept])
        if any(other != made[0] for other in made):
            raise SystemExit(f"{call.threads - 1} and {call.threads} threads differ: {call.about}")
        counted[call.about["op"]] += 1
    return dict(counted)


def load(path: str) -> Any:
    """The compiled module at this path, without the package around it."""
    spec = importlib.util.spec_from_file_location("_C", path)
    assert spec is not None and spec.loader is not None
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    return extension


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Random calls of the compiled kernels against numpy in float64.")
    built = sorted((Path(__file__).parent.parent / "gan_fast").glob("_C*.so"))
    parser.add_argument("module", nargs="?", default=str(built[0]) if built else None, help="the one built in place")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--cases", type=int, default=2000)
    given = parser.parse_args()
    if given.module is None:
        parser.error("module: none is built in place, name one")
    counts = run(load(given.module), given.seed, given.first, given.cases)
    sys.stdout.write(f"{given.cases} calls are right: {counts}\n")
