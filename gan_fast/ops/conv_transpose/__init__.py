"""gan_fast::conv_transpose, the transposed strided convolution with a fused activation.

    y[n, o, q] = act( b[o] + sum over c, p, k of w[c, o, k] * x'[n, c, p]  where p * stride - pad_begin + k * dilation
    = q ) x' = x, or x * act'(prologue_y) where a prologue is given

Shapes: input (N, IC, spatial...), weight (IC, OC / groups, kernel...), bias (OC), output (N, OC, *out_size); 1 to 3
spatial axes. Any out_size is allowed: what no input reaches is act(b), what lies beyond is cut (PyTorch's
output_padding and Keras' crop are both cases of it). Differentiable any number of times in input, weight, bias and
prologue_y. Plain PyTorch: :mod:`gan_fast.ops.conv_transpose.reference`.
"""

from gan_fast.ops.conv_transpose.op import conv_transpose

__all__ = ["conv_transpose"]
