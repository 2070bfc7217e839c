"""`ImageData`, the form in which every named set, folder and tensor is held, and the conversions around it."""

from __future__ import annotations

import hashlib
import numbers
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import DataError

__all__ = ["RANGE_SLACK", "ImageData", "check_options", "check_range", "convert", "from_array", "positive", "to_float"]

# ITU-R BT.601 weights of red, green and blue in grey, the ones that Pillow's "L" conversion uses.
_GREY = (0.299, 0.587, 0.114)
#: How far outside [-1, 1] values may lie: resizing with antialiasing or a lossy round trip may step a little over the
#: edge; raw [0, 255] or z-scores go far over it.
RANGE_SLACK = 1e-2
_CHUNK_BYTES = 1 << 25


@dataclass(frozen=True)
class ImageData:
    """A set of images in memory.

    Attributes:
        images: (N, C, H, W) uint8, or floating point in [-1, 1]. Float tensors may also be (N, C, L) or (N, C, D, H,
            W).
        labels: (N) int64, or None.
        name: what it is called in messages.
        split: "train" or "test", or "all" where the source has no parts.
        classes: names of the labels 0, 1, ...; empty if unknown.
    """

    images: Tensor
    labels: Tensor | None = None
    name: str = "tensor"
    split: str = "all"
    classes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.labels is not None and self.labels.shape != (len(self.images),):
            raise DataError(f"{self.name}: {len(self.images)} images but labels of shape {tuple(self.labels.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, (C, H, W)."""
        return tuple(self.images.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the sha256 over shapes, types and content: the same data has the same fingerprint."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            if tensor is not None:
                digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def floats(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Samples start to stop as float32 in [-1, 1]."""
        return to_float(self.images[start:stop])


def to_float(images: Tensor) -> Tensor:
    """uint8 to float32 by x / 127.5 - 1 (0 becomes exactly -1, 255 exactly 1); floating point becomes float32."""
    if images.dtype == torch.uint8:
        out = torch.empty_like(images, dtype=torch.float32)  # named, so that the default dtype has no say
        return torch.div(images, 127.5, out=out).sub_(1.0)
    return images.to(torch.float32)


def check_range(images: Tensor, name: str) -> None:
    """Refuse a floating-point tensor with values that are not finite or lie more than `RANGE_SLACK` outside [-1, 1].

    Raises:
        DataError: naming how many values are wrong, and the range found.
    """
    if images.numel() == 0 or images.dtype == torch.uint8:
        return
    low, high = (float(v) for v in torch.aminmax(images.detach()))
    if -1.0 - RANGE_SLACK <= low and high <= 1.0 + RANGE_SLACK:  # also false for NaN, which aminmax hands through
        return
    finite = torch.isfinite(images)
    bad = images.numel() - int(finite.sum())
    if bad:
        raise DataError(f"{name}: {bad} of {images.numel()} values are NaN or infinite, expected values in [-1, 1]")
    outside = int((images.abs() > 1 + RANGE_SLACK).sum())
    hint = "; for values in 0..255 give uint8, or use x / 127.5 - 1" if high > 2 else ""
    raise DataError(
        f"{name}: {outside} of {images.numel()} values lie outside [-1, 1] (they range from {low:g} to {high:g}){hint}"
    )


def from_array(source: Tensor | np.ndarray, name: str = "tensor", labels: Tensor | None = None) -> ImageData:
    """Check a tensor or array of samples and wrap it (the values are not copied).

    Args:
        source: (N, C, H, W), uint8 or floating point in [-1, 1]; floating point also (N, C, L) and (N, C, D, H, W).
        name: what to call it in messages.
        labels: (N) integers, or None.

    Raises:
        DataError: wrong rank, type, empty, NaN or out of range.
    """
    images = torch.from_numpy(source) if isinstance(source, np.ndarray) else source
    images = images.detach()
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise DataError(f"{name} has dtype {images.dtype}, expected torch.uint8 (0..255) or floating point in [-1, 1]")
    if images.ndim != 4 and not (images.is_floating_point() and images.ndim in (3, 5)):
        hint = "; add the channel dimension with x.unsqueeze(1)" if images.ndim == 3 else ""
        raise DataError(f"{name} has shape {shape}, expected (N, C, H, W){hint}")
    if images.numel() == 0:
        raise DataError(f"{name} is empty: its shape is {shape}")
    check_range(images, name)
    return ImageData(images, None if labels is None else labels.detach().long(), name)


def convert(data: ImageData, image_size: int | None, channels: int | None) -> ImageData:
    """Bring images to `image_size` (short side scaled, then centre crop; bilinear, antialiased) and `channels` (1 or
    3).

    None leaves that property as it is. Grey is repeated to three channels; colour is weighted to grey as BT.601 says.

    Raises:
        DataError: an option that is not possible for this data.
    """
    if image_size is None and channels is None:
        return data
    if data.images.ndim != 4:
        raise DataError(
            f"image_size and channels need images (N, C, H, W), {data.name} has shape {tuple(data.images.shape)}"
        )
    check_options(image_size, channels)
    count, old, height, width = data.images.shape
    if channels not in (None, old) and old not in (1, 3):
        raise DataError(
            f"channels={channels}: {data.name} has {old} channels, only 1 and 3 can be turned into each other"
        )
    new_channels = channels or old
    if (height, width) == (image_size or height, image_size or width) and new_channels == old:
        return data
    size = (image_size, image_size) if image_size else (height, width)
    out = torch.empty((count, new_channels, *size), dtype=data.images.dtype)
    step = max(1, _CHUNK_BYTES // (4 * old * height * width))  # the float copy of a chunk stays small
    for start in range(0, count, step):
        chunk = data.images[start : start + step].float()
        if image_size and (height, width) != size:
            scale = image_size / min(height, width)
            scaled = (max(image_size, round(height * scale)), max(image_size, round(width * scale)))
            chunk = F.interpolate(chunk, size=scaled, mode="bilinear", align_corners=False, antialias=True)
            top, left = (scaled[0] - image_size) // 2, (scaled[1] - image_size) // 2
            chunk = chunk[:, :, top : top + image_size, left : left + image_size]
        if new_channels < old:
            chunk = torch.einsum("nchw,c->nhw", chunk, torch.tensor(_GREY)).unsqueeze(1)
        elif new_channels > old:
            chunk = chunk.expand(-1, new_channels, -1, -1)
        out[start : start + step] = chunk.round() if out.dtype == torch.uint8 else chunk.clamp(-1, 1)
    return ImageData(out, data.labels, data.name, data.split, data.classes)


def check_options(image_size: int | None, channels: int | None) -> None:
    """Refuse options that no image source can follow.

    Raises:
        DataError: image_size no integer above 0, or channels other than 1 and 3.
    """
    if image_size is not None:
        positive("image_size", image_size)
    if channels not in (None, 1, 3):
        raise DataError(f"channels={channels!r}, expected 1 (grey) or 3 (colour)")


def positive(argument: str, value: object) -> int:
    """The value as a plain int above 0; numpy's integers are taken too, which a checkpoint could not hold.

    Raises:
        DataError: anything else.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) > 0:
        return int(value)
    raise DataError(f"{argument}={value!r}, expected a positive integer")
