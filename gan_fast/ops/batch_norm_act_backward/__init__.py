"""gan_fast::batch_norm_act_backward, the derivative of batch_norm_act, itself an operator for higher orders.

With r = 1 / sqrt(var + eps), h = (x - mean) r, z = h weight + bias and g = grad_output act'(z), per channel:

    grad_bias = sum g        grad_weight = sum g h
    grad_input = weight r (g - mean(g) - h mean(g h))        in training, where mean and var are those of input
               = weight r g                                  in evaluation

Shapes: grad_output like input, (N, C), (N, C, L) or (N, C, H, W); weight, bias (C) or None; mean, var float64 (C), as
batch_norm_act returns them; in training they count as functions of input. Returns (grad_input, grad_weight,
grad_bias), the latter two also without weight and bias. Differentiable any number of times in grad_output, input,
weight and bias. Plain PyTorch: :mod:`gan_fast.ops.batch_norm_act_backward.reference`.
"""

from gan_fast.ops.batch_norm_act_backward.op import batch_norm_act_backward

__all__ = ["batch_norm_act_backward"]
