"""gan_fast::bias_act, bias and activation in one pass: y[n, c, ...] = act(x[n, c, ...] + b[c]).

Shapes: input (N, C, ...) with any number of further axes, bias (C) or None, output like input (also in memory order).
Keeps only y for the derivative. Differentiable any number of times in input and bias. Plain PyTorch:
:mod:`gan_fast.ops.bias_act.reference`.
"""

from gan_fast.ops.bias_act.op import bias_act

__all__ = ["bias_act"]
