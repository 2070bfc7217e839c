"""gan_fast::conv_weight_grad, the gradients of a convolution's weight and bias.

    gw[o, c, k] = sum over n, p of g'[n, o, p] * x[n, c, p * stride - pad_begin + k * dilation]      (transposed=False)
    gw[c, o, k] = sum over n, p of x[n, c, p] * g'[n, o, p * stride - pad_begin + k * dilation]      (transposed=True)
    gb[o]       = sum over n, p of g'[n, o, p]                      g' = g, or g * act'(prologue_y)

Shapes: input x (N, IC, spatial...) and grad_output g (N, OC, spatial...) are the forward operation's input and the
gradient of its output; the results are (weight gradient in the forward operation's layout, bias gradient (OC)).
Without ``want_bias`` the second is an empty tensor. ``channels_last`` (2-D) asks for the weight gradient in that memory
format, as autograd wants it of a weight that lies so; it is contiguous otherwise, on every backend. Differentiable any
number of times in input, grad_output and prologue_y. Plain PyTorch: :mod:`gan_fast.ops.conv_weight_grad.reference`.
"""

from gan_fast.ops.conv_weight_grad.op import conv_weight_grad

__all__ = ["conv_weight_grad"]
