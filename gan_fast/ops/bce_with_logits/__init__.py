"""gan_fast::bce_with_logits, binary cross entropy of logits: value and gradient in one pass.

    loss = w * ((1 - t) x + (1 + (p - 1) t) softplus(-x))        w: weight, p: pos_weight, t: target
    grad = w * ((1 - t) - (1 + (p - 1) t) sigmoid(-x)) * scale   scale: 1 / elements for reduction="mean", else 1

Shapes: input x any; target of x's shape, or None for the constant ``target_value``; weight and pos_weight broadcast
to x. Returns (loss reduced as asked, grad of x's shape). grad is an output in its own right: differentiating it again
gives the true second derivative w p' s (1 - s), not 0. Differentiable any number of times in input and target; a
weight or pos_weight that requires grad is refused (the functional form leaves those to PyTorch). Plain PyTorch:
:mod:`gan_fast.ops.bce_with_logits.reference`.
"""

from gan_fast.ops.bce_with_logits.op import bce_with_logits

__all__ = ["bce_with_logits"]
