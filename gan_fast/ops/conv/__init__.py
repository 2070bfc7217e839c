"""gan_fast::conv, the strided convolution with a fused activation.

    y[n, o, p] = act( b[o] + sum over c, k of w[o, c, k] * x'[n, c, p * stride - pad_begin + k * dilation] )
    x' = x, or x * act'(prologue_y) where a prologue is given; 0 outside of x

Shapes: input (N, IC, spatial...), weight (OC, IC / groups, kernel...), bias (OC), output (N, OC, *out_size); 1 to 3
spatial axes. The padding at the end follows from out_size and may be negative (input that no output reads).
Differentiable any number of times in input, weight, bias and prologue_y. Plain PyTorch:
:mod:`gan_fast.ops.conv.reference`.
"""

from gan_fast.ops.conv.op import conv

__all__ = ["conv"]
