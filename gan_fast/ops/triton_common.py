"""Device code that the Triton kernels share: activations, their derivatives, the matrix product, phases of a stride.

Importing this module imports triton: only the ``triton.py`` of an operator does so, on the first call.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

#: Whether kernels run in Triton's interpreter, on CPU tensors; it multiplies bfloat16 as if it were an integer.
INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")

# Activations by the codes of gan_fast.ops.activation.CODES.
RELU = tl.constexpr(1)
LEAKY_RELU = tl.constexpr(2)
TANH = tl.constexpr(3)
SIGMOID = tl.constexpr(4)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) from exp(-|x|): no overflow, full relative accuracy for large negative x."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (e + 1.0)


@triton.jit
def tanh(x):
    """The polynomial of csrc/cpu/vec_math.h near zero, where 1 - 2 / (exp(2|x|) + 1) cancels; that beyond."""
    a = tl.abs(x)
    u = a * a
    p = u * 1.59202245e-4 - 9.67640022e-4
    p = p * u + 3.25032650e-3
    p = p * u - 8.71583540e-3
    p = p * u + 2.18312964e-2
    p = p * u - 5.39626814e-2
    p = p * u + 1.33332938e-1
    p = p * u - 3.33333313e-1
    near_zero = (p * u) * a + a
    # exp(2a) is infinite from 44.4 on: 2 / inf = 0, and NaN stays NaN.
    far = 1.0 - 2.0 / (tl.exp(a + a) + 1.0)
    y = tl.where(a < 0.9, near_zero, far)
    return tl.where(x < 0, -y, tl.where(x == 0, x, y))


@triton.jit
def activate(x, slope, ACT: tl.constexpr):
    """y = act(x) in float32; relu and leaky_relu let NaN through, as torch does."""
    if ACT == RELU:
        x = tl.where(x <= 0, 0.0, x)
    elif ACT == LEAKY_RELU:
        x = tl.where(x > 0, x, x * slope)
    elif ACT == TANH:
        x = tanh(x)
    elif ACT == SIGMOID:
        x = sigmoid(x)
    return x


@triton.jit
def act_backward(g, y, slope, ACT: tl.constexpr):
    """g * act'(y) in float32, by the output y. Where relu is shut an infinite g gives 0, as in torch, not NaN."""
    if ACT == RELU:
        g = tl.where(y <= 0, 0.0, g)
    elif ACT == LEAKY_RELU:
        g = tl.where(y > 0, g, g * slope)
    elif ACT == TANH:
        g = g * (1.0 - y * y)
    elif ACT == SIGMOID:
        g = g * ((1.0 - y) * y)
    return g


@triton.jit
def load_gradient(g, y, offsets, mask, slope, ACT: tl.constexpr):
    """Elements of g, times act'(y) where there is an activation; in g's own type, as the matrix product takes it."""
    value = tl.load(g + offsets, mask=mask, other=0.0)
    if ACT != 0:
        # Outside of the mask g is 0, and so is the product: no derivative at y = 0 is infinite.
        out = tl.load(y + offsets, mask=mask, other=0.0)
        value = act_backward(value.to(tl.float32), out.to(tl.float32), slope, ACT).to(value.dtype)
    return value


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b with float32 sums."""
    if INTERPRET:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def phase_of_stride(
    f, K: tl.constexpr, S: tl.constexpr, PAD: tl.constexpr, D: tl.constexpr, G: tl.constexpr, OFF: tl.constexpr
):
    """(first output, first tap, its input, number of taps) of the f-th phase of a transposed convolution's axis.

    Output q * S + r is reached by the taps k with (r + PAD - k D) divisible by S: first, first + S / G, ..., where G is
    the greatest common divisor of S and D. Tap j of them reads input q + base - j D / G. Counting phases by their first
    tap puts those with most taps in front, so that the short ones fill the device at the end.
    """
    first = f % (S // G)
    unreached = f // (S // G)  # of every G neighbouring outputs one has taps
    r = (first * D + unreached + OFF) % S  # OFF = -PAD modulo S
    base = (r + PAD - first * D) // S
    taps = tl.where(unreached == 0, (K - first + (S // G) - 1) // (S // G), 0)
    return r, first, base, taps
