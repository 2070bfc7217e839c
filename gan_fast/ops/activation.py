"""The activations that operators can fuse: names, codes in the kernels, values and derivatives.

Every derivative is expressed by the *output* y = act(x), the only tensor that a fused forward pass keeps:

========== ====================== ======================= ==================
name       y                      dy/dx                   d(dy/dx)/dy
========== ====================== ======================= ==================
none       x                      1                       0
relu       max(x, 0)              y > 0                   0
leaky_relu x if x > 0 else s x    1 if y > 0 else s       0
tanh       tanh(x)                1 - y^2                 -2 y
sigmoid    1 / (1 + exp(-x))      y (1 - y)               1 - 2 y
========== ====================== ======================= ==================

The sign of y tells the sign of x for leaky_relu only while s > 0; other slopes run unfused.
"""

from __future__ import annotations

import difflib

import torch
from torch import Tensor

#: Name -> the code that the kernels take.
CODES = {"none": 0, "relu": 1, "leaky_relu": 2, "tanh": 3, "sigmoid": 4}


def check(activation: str | None) -> str:
    """The activation's name as the operators take it (None -> "none"); ValueError for an unknown one."""
    if activation is None:
        return "none"
    if activation in CODES:
        return activation
    near = difflib.get_close_matches(str(activation), CODES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"activation: unknown {activation!r}, expected None or one of {', '.join(CODES)}{hint}")


def fusable(activation: str, negative_slope: float) -> bool:
    """Whether the derivative can be had from the output alone (see the module's text)."""
    return activation != "leaky_relu" or negative_slope > 0


def fuses(activation: str, negative_slope: float) -> bool:
    """Whether there is an activation, and the operators compute it inside."""
    return activation != "none" and fusable(activation, negative_slope)


def check_fusable(activation: str, negative_slope: float, name: str = "activation") -> None:
    """ValueError unless the operators can take this activation."""
    if activation not in CODES:
        raise ValueError(f"{name}: unknown {activation!r}, expected one of {', '.join(CODES)}")
    if not fusable(activation, negative_slope):
        raise ValueError(
            f"{name}: leaky_relu needs a slope > 0 inside an operator (its derivative is read off the output), "
            f"got {negative_slope}"
        )


def apply(x: Tensor, activation: str, negative_slope: float, *, inplace: bool = False) -> Tensor:
    """act(x) by PyTorch's own functions; ``inplace`` overwrites x (only a fresh tensor whose value nobody else
    needs).
    """
    if activation == "none":
        return x
    if activation == "relu":
        return torch.relu_(x) if inplace else torch.relu(x)
    if activation == "leaky_relu":
        leaky = torch.nn.functional.leaky_relu
        return leaky(x, negative_slope, inplace=inplace)
    if activation == "tanh":
        return torch.tanh_(x) if inplace else torch.tanh(x)
    return torch.sigmoid_(x) if inplace else torch.sigmoid(x)


def grad(gy: Tensor, y: Tensor, activation: str, negative_slope: float) -> Tensor:
    """gy * act'(x), by the output y, with PyTorch's own backward formulas (also in what they do to NaN)."""
    if activation == "none":
        return gy
    if activation == "relu":
        return torch.ops.aten.threshold_backward(gy, y, 0)
    if activation == "leaky_relu":
        return torch.ops.aten.leaky_relu_backward(gy, y, negative_slope, True)
    if activation == "tanh":
        return torch.ops.aten.tanh_backward(gy, y)
    return torch.ops.aten.sigmoid_backward(gy, y)


def slope_wrt_output(y: Tensor, activation: str) -> Tensor | None:
    """d act'/dy as a tensor of y's shape, differentiable; None where it is 0 everywhere (piecewise linear)."""
    if activation == "tanh":
        return -2 * y
    if activation == "sigmoid":
        return 1 - 2 * y
    return None
