"""gan_fast::act_grad, the derivative of an activation by its output: out = grad_output * act'(y).

Shapes: grad_output and y are equal in shape, so is out. act' is written by the output y = act(x) (table in
:mod:`gan_fast.ops.activation`). Differentiable any number of times in grad_output and y. Plain PyTorch:
:mod:`gan_fast.ops.act_grad.reference`.
"""

from gan_fast.ops.act_grad.op import act_grad

__all__ = ["act_grad"]
