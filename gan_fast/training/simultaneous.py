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

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Seeds", "generator_gradient", "refusal", "seeds", "smallest"]


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


def seeds(
    logits: Tensor,
    d_loss: Callable[[Tensor, Tensor], Tensor],
    g_loss: Callable[[Tensor], Tensor],
) -> Seeds:
    """Differentiate both losses with respect to the logits (2 N, ...), N real and N generated samples."""
    half = logits.dtype in (torch.bfloat16, torch.float16)
    leaf = (logits.detach().float() if half else logits.detach()).requires_grad_()
    real, fake = leaf.chunk(2)
    of_d, of_g = d_loss(real, fake), g_loss(fake)
    (d_slopes,) = torch.autograd.grad(of_d, leaf, retain_graph=True)
    (g_slopes,) = torch.autograd.grad(of_g, leaf)
    count = len(logits) // 2
    start = d_slopes.to(logits.dtype)
    least = smallest(logits.dtype)
    fakes = start[count:]
    start = torch.cat((start[:count], torch.where(fakes.abs() < least, torch.full_like(fakes, least), fakes)))
    quotients = g_slopes[count:] / start[count:].to(g_slopes.dtype)
    return Seeds(of_d.detach(), of_g.detach(), start, quotients.flatten())


def generator_gradient(samples: Tensor, quotients: Tensor) -> Tensor:
    """G's gradient with respect to its samples (N, ...), from D's and the quotients (N)."""
    shape = (-1, *[1] * (samples.dim() - 1))
    return (samples.to(quotients.dtype) * quotients.view(shape)).to(samples.dtype)
