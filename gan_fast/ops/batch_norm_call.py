"""The way of a batch normalisation's call: straight to torch.nn.functional, or into gan_fast::batch_norm_act.

:func:`gan_fast.functional.batch_norm` has the signature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import activation as activations
from gan_fast.ops import dispatch, normalization
from gan_fast.ops.registry import OPERATORS

Pair = tuple[Tensor | None, Tensor | None]


def batch_norm(
    input: Tensor,
    running: Pair,
    affine: Pair,
    parameters: tuple[bool, float, float],
    activation: str | None,
    negative_slope: float,
    backend: str | None,
) -> Tensor:
    """The result; ``running``: mean and variance, ``affine``: weight and bias, ``parameters``: training, momentum,
    eps."""
    training, momentum, eps = parameters
    running_mean, running_var = running
    act = activations.check(activation)
    asked = backends.requested(backend)

    def by_torch() -> Tensor:
        out = F.batch_norm(input, *running, *affine, training, momentum, eps)
        return activations.apply(out, act, negative_slope)

    if not fits(input, running, affine, training, asked):
        exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()
        return by_torch() if exporting else dispatch.served_by_torch(by_torch(), asked, "this form of normalisation")
    if dispatch.choose("batch_norm_act", asked, **normalization.facts(input)).backend == "torch":
        return by_torch()
    fused = act if activations.fusable(act, negative_slope) else "none"
    slope = float(negative_slope) if fused == "leaky_relu" else 0.01
    given = (None, None) if training else running
    out, mean, var = OPERATORS["batch_norm_act"](input, *affine, *given, float(eps), fused, slope, asked)
    if training and running_mean is not None and running_var is not None:
        count = input.numel() // input.shape[1]
        with torch.no_grad():
            for kept, batch, factor in ((running_mean, mean, 1.0), (running_var, var, count / (count - 1))):
                # In float64, since batch is, and rounded once. Past the version counter, as PyTorch does: a graph of
                # PyTorch's own batch normalisation may hold the very tensor, and would refuse to be differentiated.
                torch.add(batch * (momentum * factor), kept, alpha=1 - momentum, out=kept.data)
    return out if fused == act else activations.apply(out, act, negative_slope)


def fits(
    input: Tensor,
    running: Pair,
    affine: Pair,
    training: bool,
    asked: str,
) -> bool:
    """Whether the operator takes this call; the rest, errors included, is PyTorch's."""
    if dispatch.only_torch(asked, input, *running, *affine):
        return False
    if asked == "auto" and torch._C._are_functorch_transforms_active():
        return False
    dtype = normalization.parameter_dtype(input, *affine, *running)
    if input.dim() not in (2, 3, 4) or input.numel() == 0 or not normalization.dtypes_fit(input.dtype, dtype):
        return False
    if (running[0] is None) != (running[1] is None) or (running[0] is None and not training):
        return False
    if training and input.numel() == input.shape[1]:  # one value for each channel: PyTorch raises
        return False
    if any(t is not None and t.requires_grad for t in running):
        return False
    return all(
        t.shape == input.shape[1:2] and (t.dtype, t.device, t.layout) == (dtype, input.device, input.layout)
        for t in (*running, *affine)
        if t is not None
    )
