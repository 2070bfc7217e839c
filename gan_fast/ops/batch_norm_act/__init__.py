"""gan_fast::batch_norm_act, batch normalisation and activation in one operator.

    z = (x - mean) / sqrt(var + eps) * weight + bias        y = act(z)

mean and var are those of each channel over all other axes, var divided by their number; or, in evaluation, the two
tensors that are given. Shapes: input (N, C), (N, C, L) or (N, C, H, W); weight, bias, mean, var (C) or None. Returns
(y, mean, var): y like input in PyTorch's memory order, the statistics that were used as float64 (C), without
derivative. Running statistics are the caller's (:func:`gan_fast.functional.batch_norm`): the operator changes nothing.

Differentiable any number of times in input, weight and bias, in training through the statistics too. Plain PyTorch:
:mod:`gan_fast.ops.batch_norm_act.reference`.
"""

from gan_fast.ops.batch_norm_act.op import batch_norm_act

__all__ = ["batch_norm_act"]
