"""Checks of the real images that enter a step."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_fast.data.images import RANGE_SLACK

__all__ = ["check_form", "check_values"]


def check_form(real: object, sample_shape: tuple[int, ...], what: str = "real") -> Tensor:
    """Type, rank and size of a batch of real samples: (N, *sample_shape), floating point, N >= 1. Costs no pass over
    the data. ``what``: the batch's name in messages."""
    expected = f"(N, {', '.join(map(str, sample_shape))})"
    if not isinstance(real, Tensor):
        raise TypeError(f"{what} must be a tensor of shape {expected} in [-1, 1], got {type(real).__name__}")
    if not real.is_floating_point():
        hint = "; uint8 images become floats with images.float() / 127.5 - 1" if real.dtype == torch.uint8 else ""
        raise TypeError(f"{what} must be floating point in [-1, 1], got {real.dtype}{hint}")
    if real.dim() != len(sample_shape) + 1:
        raise ValueError(f"{what} must have shape {expected}, as the generator's samples have; got {tuple(real.shape)}")
    if real.shape[1:] != sample_shape:
        channels, wanted = real.shape[1], sample_shape[0]
        part = f"{channels} channels instead of {wanted}" if channels != wanted else "another size"
        raise ValueError(
            f"{what} must have shape {expected}, as the generator's samples have; got {tuple(real.shape)}: {part}"
        )
    if real.shape[0] == 0:
        raise ValueError(f"{what} is an empty batch, shape {tuple(real.shape)}")
    return real


def check_values(real: Tensor, what: str = "real") -> None:
    """Refuse NaN, infinities and values outside [-1, 1]. One pass over the batch, and on CUDA a wait for the device."""
    lowest, highest = (float(value) for value in torch.aminmax(real.detach()))
    if lowest != lowest or highest != highest:
        count = int(torch.isnan(real).sum())
        raise ValueError(f"{what} holds {count} NaN values; expected finite images in [-1, 1]")
    if lowest < -1 - RANGE_SLACK or highest > 1 + RANGE_SLACK:
        hint = ""
        if lowest >= 0 and 1 < highest <= 255:
            hint = "; images in [0, 255] become right with images / 127.5 - 1"
        raise ValueError(f"{what} must lie in [-1, 1], got values from {lowest:.4g} to {highest:.4g}{hint}")
