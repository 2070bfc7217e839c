"""The operators ``torch.ops.gan_fast.*``, one folder each: formula, registration, plain-PyTorch reference, backends.

Importing this package registers all of them. Users call them through :mod:`gan_fast.functional` and :mod:`gan_fast.nn`.
"""

from gan_fast.ops.act_grad import act_grad
from gan_fast.ops.batch_norm_act import batch_norm_act
from gan_fast.ops.batch_norm_act_backward import batch_norm_act_backward
from gan_fast.ops.bce_with_logits import bce_with_logits
from gan_fast.ops.bias_act import bias_act
from gan_fast.ops.conv import conv
from gan_fast.ops.conv_transpose import conv_transpose
from gan_fast.ops.conv_weight_grad import conv_weight_grad
from gan_fast.ops.registry import OPERATORS

__all__ = [
    "OPERATORS",
    "act_grad",
    "batch_norm_act",
    "batch_norm_act_backward",
    "bce_with_logits",
    "bias_act",
    "conv",
    "conv_transpose",
    "conv_weight_grad",
]
