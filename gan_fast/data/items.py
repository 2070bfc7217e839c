"""Turn what data sets and loaders hand out (pictures, arrays, tensors, with or without a label) into float batches."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .images import check_range, to_float

__all__ = ["batch_of", "image_of", "stack", "warn_if_unit_range"]


def image_of(item: Any, where: str) -> Tensor:
    """The image of one item as a tensor (C, H, W), uint8 or floating point.

    Args:
        item: an image, or a sequence whose first element is one. A picture or an array is (H, W) or (H, W, C), a tensor
            (C, H, W).
        where: how to call the item in messages.

    Raises:
        TypeError, DataError: not an image, or of a wrong rank or type.
    """
    if isinstance(item, (tuple, list)) and item:
        item = item[0]
    pillow: Any = sys.modules.get("PIL.Image")  # whoever has a picture has loaded it
    if pillow is not None and isinstance(item, pillow.Image):
        item = np.array(item if item.mode in ("L", "RGB") else item.convert("L" if item.mode == "1" else "RGB"))
    if isinstance(item, np.ndarray):
        if item.ndim not in (2, 3):
            raise DataError(f"{where} is an array of shape {item.shape}, expected (H, W) or (H, W, C)")
        tensor = torch.from_numpy(np.ascontiguousarray(item))
        tensor = tensor.unsqueeze(0) if item.ndim == 2 else tensor.permute(2, 0, 1)
    elif isinstance(item, Tensor):
        tensor = item
    else:
        raise TypeError(
            f"{where} is a {type(item).__name__}, expected an image (Pillow, array, tensor) or a tuple led by one"
        )
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise DataError(f"{where} has dtype {tensor.dtype}, expected torch.uint8 (0..255) or floating point in [-1, 1]")
    if tensor.ndim not in (2, 3, 4) or (tensor.ndim != 3 and tensor.dtype == torch.uint8):
        raise DataError(f"{where} has shape {tuple(tensor.shape)}, expected (C, H, W)")
    return tensor


def stack(items: Sequence[Any], indices: Sequence[int], name: str) -> Tensor:
    """Items of a data set as one float32 batch in [-1, 1].

    Raises:
        DataError: shapes that differ, values that are not finite or out of range.
    """
    images = [image_of(item, f"{name}[{index}]") for item, index in zip(items, indices, strict=True)]
    for image, index in zip(images, indices, strict=True):
        if image.shape != images[0].shape or image.dtype != images[0].dtype:
            raise DataError(
                f"{name}[{indices[0]}] is {tuple(images[0].shape)} {images[0].dtype} but {name}[{index}] is "
                f"{tuple(image.shape)} {image.dtype}; all samples must be alike"
            )
    batch = torch.stack(images)
    check_range(batch, f"a batch of {name}")
    return to_float(batch)


def batch_of(batch: Any, name: str) -> Tensor:
    """The images of a loader's batch as float32 in [-1, 1]: the batch itself, or the first element of a sequence.

    Raises:
        TypeError, DataError: no tensor, wrong rank or type, values that are not finite or out of range.
    """
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(images, Tensor):
        raise TypeError(
            f"{name} gave a batch of type {type(images).__name__}, expected a tensor (N, C, H, W) or a sequence "
            "that starts with one"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise DataError(f"{name} gave a batch of {images.dtype}, expected torch.uint8 or floating point in [-1, 1]")
    if images.ndim < 3 or (images.ndim != 4 and images.dtype == torch.uint8):
        raise DataError(f"{name} gave a batch of shape {tuple(images.shape)}, expected (N, C, H, W)")
    check_range(images, f"a batch of {name}")
    return to_float(images)


def warn_if_unit_range(images: Tensor, name: str) -> None:
    """Warn where float images use [0, 1], which is inside [-1, 1] and yet almost always a forgotten scaling."""
    if images.is_floating_point() and images.numel():
        low, high = (float(v) for v in torch.aminmax(images))
        if low >= 0.0 and high > 0.5:
            warnings.warn(
                f"{name}: all values lie in [{low:g}, {high:g}]; generators give [-1, 1], so scale with x * 2 - 1 "
                "unless that is meant",
                stacklevel=3,
            )
