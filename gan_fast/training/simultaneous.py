"""The simultaneous update: one forward and one backward pass of the discriminator serve both losses.

In a discriminator without statistics over the batch, sample i has its own logit l_i, and a loss reaches the sample
through that logit alone: the gradient with respect to sample i is L'(l_i) * dl_i/dx_i. The backward pass of D's loss d
gives d'(l_i) * dl_i/dx_i for every generated sample; that times g'(l_i) / d'(l_i) is the gradient of G's loss g, for
any two losses on logits. G then descends against D before its update, not after it.

Where D is so sure of a sample that d'(l_i) vanishes, g'(l_i) need not ("bce": d' = s(l), g' = s(l) - 1), and the
quotient would be 0 / 0. So d'(l_i) counts at least `smallest` in size: the square root of the smallest normal number,
which leaves as many orders of magnitude below for D's own factors as the quotient needs above. What that adds to D's
gradient is 1e-19 of one sample's in fp32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Seeds", "generator_gradient", "refusal", "seeds", "smallest", "unit_seed"]


def refusal(batch_statistics: bool, logits_per_sample: int) -> str | None:
    """Why a discriminator cannot be updated together with its generator, or None."""
    if batch_statistics:
        return (
            "update='simultaneous' needs a discriminator whose logit for a sample depends on that sample alone; this "
            "one takes statistics over the batch (BatchNorm, minibatch features). Use update='alternating', or a "
            "normalisation of single samples"
        )
    if logits_per_sample != 1:
        return (
            "update='simultaneous' needs a discriminator with one logit for each sample; this one gives "
            f"{logits_per_sample}, whose gradients cannot be told apart in the sample's. Use update='alternating'"
        )
    return None


def smallest(dtype: torch.dtype) -> float:
    """Least size of d'(l_i) for a generated sample."""
    return float(torch.finfo(dtype).tiny ** 0.5)


class Seeds(NamedTuple):
    """Both losses, and what the passes start from.

    Attributes:
        d_loss, g_loss: (), with no gradient.
        logits: gradient of d_loss with respect to all logits, real ones first; in their dtype and shape.
        quotients: (N), g'(l_i) / d'(l_i) of the generated samples.
    """

    d_loss: Tensor
    g_loss: Tensor
    logits: Tensor
    quotients: Tensor


def unit_seed(loss: Tensor) -> Tensor:
    """What the backward pass of a scalar starts from; autograd would fill a new tensor each time."""
    return _constant(1.0, loss.dtype, loss.device)


@functools.cache
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A scalar that is made once."""
    return torch.full((), value, dtype=dtype, device=device)


def seeds(
    logits: Tensor,
    d_loss: Callable[[Tensor, Tensor], Tensor],
    g_loss: Callable[[Tensor], Tensor],
) -> Seeds:
    """Differentiate both losses with respect to the logits (2 N, ...), N real and N generated samples."""
    half = logits.dtype in (torch.bfloat16, torch.float16)
    known = logits.detach().float() if half else logits.detach()
    real, fake = (part.requires_grad_() for part in known.chunk(2))
    of_d, of_g = d_loss(real, fake), g_loss(fake)
    of_real, of_fake = torch.autograd.grad(
        of_d, (real, fake), unit_seed(of_d), retain_graph=True, materialize_grads=True
    )
    (g_slopes,) = torch.autograd.grad(of_g, fake, unit_seed(of_g))
    of_real, of_fake = of_real.to(logits.dtype), of_fake.to(logits.dtype)
    least = smallest(logits.dtype)
    of_fake = torch.where(of_fake.abs() < least, _constant(least, of_fake.dtype, of_fake.device), of_fake)
    quotients = g_slopes / of_fake.to(g_slopes.dtype)
    return Seeds(of_d.detach(), of_g.detach(), torch.cat((of_real, of_fake)), quotients.flatten())


def generator_gradient(samples: Tensor, quotients: Tensor) -> Tensor:
    """G's gradient with respect to its samples (N, ...), from D's and the quotients (N)."""
    shape = (-1, *[1] * (samples.dim() - 1))
    return (samples.to(quotients.dtype) * quotients.view(shape)).to(samples.dtype)
