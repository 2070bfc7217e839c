"""How far a kernel may be from the truth: at most twice as far as PyTorch's own operation in the same dtype.

The bound scales itself: it knows nothing of shapes, and it is the same on every machine. A floor serves results that
PyTorch happens to get right beyond what float32 promises: single elements, and means over a few of them. The mean
square over many elements leaves nothing to luck, so there the floor is a fraction of a rounding. Where a sum's terms
cancel, each partial sum is rounded as the large number that it is: the floor of single elements knows how large the
terms are together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FACTOR = 2.0
#: Floor of the largest error, in units of the last place of the largest element of the truth. A float32 result is the
#: end of many roundings, a bfloat16 one of float32 arithmetic and one rounding.
FLOOR_ULPS = {torch.float32: 4.0, torch.bfloat16: 1.0}
#: The same in units of the last place of the terms' magnitudes, added up. The partial sums of terms with both signs are
#: a fraction of that, and their roundings go both ways; a term too many or too few is far above.
TERMS_ULPS = 0.125
#: Floor of the mean square's root over at least MANY elements, in units of the last place of the truth's own.
MEAN_FLOOR_ULPS = {torch.float32: 0.25, torch.bfloat16: 0.125}
MANY = 256


class Errors(NamedTuple):
    """Distance from the truth: of the worst element, and in the mean square."""

    largest: float
    mean_square: float


def errors(value: Tensor, truth: Tensor) -> Errors:
    """How far ``value`` is from ``truth`` (float64)."""
    if truth.numel() == 0:
        return Errors(0.0, 0.0)
    difference = (value.double() - truth).abs()
    return Errors(float(difference.max()), float(difference.square().mean().sqrt()))


def assert_as_good(
    ours: Tensor, truth: Tensor, theirs: Tensor | Errors, what: str, factor: float = FACTOR, terms: float = 0.0
) -> None:
    """``ours`` is as near to ``truth`` (float64) as ``factor`` times ``theirs``: PyTorch's result or errors.

    ``terms``: the magnitudes of an element's terms, added up; of the element with the largest sum.
    """
    assert ours.shape == truth.shape, f"{what}: shape {tuple(ours.shape)}, expected {tuple(truth.shape)}"
    if truth.numel() == 0:
        return
    assert bool(torch.isfinite(ours).all()), f"{what}: not finite where the truth is"
    yardstick = errors(theirs, truth) if isinstance(theirs, Tensor) else theirs
    # The smallest normal number, so that denormal results are held to their own absolute spacing.
    # Results in float64 (statistics) are held to float32's precision: they are what float32 arithmetic gave.
    precision = torch.bfloat16 if ours.dtype == torch.bfloat16 else torch.float32
    smallest, ulp = torch.finfo(torch.float32).tiny, torch.finfo(precision).eps
    scale = max(float(truth.abs().max()), smallest)
    floors = [ulp * max(FLOOR_ULPS[precision] * scale, TERMS_ULPS * terms)] * 2
    if truth.numel() >= MANY:
        floors[1] = MEAN_FLOOR_ULPS[precision] * ulp * max(float(truth.square().mean().sqrt()), smallest)
    for name, mine, reference, floor in zip(Errors._fields, errors(ours, truth), yardstick, floors, strict=True):
        assert mine <= factor * reference + floor, (
            f"{what}: {name} error {mine:.3g} against float64, PyTorch's is {reference:.3g} (scale {scale:.3g})"
        )
