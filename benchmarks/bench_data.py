"""Batches of images: gan_fast's feeds against torch's DataLoader over the same images; images/s stand beside the times.

Each benchmark draws one batch of 128: float32 in [-1, 1], in an order that is shuffled anew each epoch. The sources:

* idx: MNIST's files, 4096 digits of 28x28, read into memory; the DataLoader converts item by item, as torchvision's
  MNIST does with its usual transforms. No DataLoader here has workers.
* folder: 512 PNG files of 64x64 in colour. The feed decodes a folder that fits into memory once; "gan_fast files" is
  what it does with one that does not, decoding for each batch, as the DataLoader does.
* loader: what the feed adds to a DataLoader that a user brings.

Before anything is timed, one epoch of each is compared with the images that were written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frame import time_images
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gan_fast import data

BATCH = 128
DIGITS, PICTURES = 32 * BATCH, 4 * BATCH

Source = Callable[[], Iterator[Tensor]]


class Items(Dataset[Tensor]):
    """A map-style data set of float images in [-1, 1], as users write them."""

    def __init__(self, length: int, image: Callable[[int], Tensor]) -> None:
        self._length, self._image = length, image

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Tensor:
        return self._image(index).float().div(127.5).sub(1.0)


def random_images(count: int, *shape: int) -> Tensor:
    """uint8, no two alike."""
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """(folder with MNIST's two files, the images in them)."""
    folder, images = tmp_path_factory.mktemp("digits"), random_images(DIGITS, 1, 28, 28)
    header = struct.pack(">4B3I", 0, 0, 8, 3, DIGITS, 28, 28)
    (folder / "train-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, DIGITS) + bytes(DIGITS))
    return folder, images


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """(folder with PNG files, the images in them)."""
    folder, images = tmp_path_factory.mktemp("pictures"), random_images(PICTURES, 3, 64, 64)
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:04d}.png")
    return folder, images


def endless(loader: DataLoader[Any]) -> Iterator[Tensor]:
    """Epoch after epoch."""
    while True:
        yield from loader


def loader(items: Dataset[Any]) -> DataLoader[Any]:
    """As users make one."""
    order = torch.Generator().manual_seed(0)
    return DataLoader(items, BATCH, shuffle=True, drop_last=True, generator=order)


def measure(benchmark: Any, group: str, provider: str, source: Source, images: Tensor) -> None:
    """Compare one epoch with the images, then time the batches."""
    batches = source()
    epoch = torch.cat([next(batches) for _ in range(len(images) // BATCH)])
    assert epoch.dtype == torch.float32 and epoch.shape == images.shape, f"{epoch.dtype}, {tuple(epoch.shape)}"
    assert not torch.equal(epoch, images.float().div(127.5).sub(1.0)), "not shuffled"
    bytes_ = epoch.add(1).mul(127.5).round().to(torch.uint8)
    got, written = (sorted(image.numpy().tobytes() for image in each) for each in (bytes_, images))
    assert got == written, "other images than were written"
    benchmark.group = group
    benchmark.extra_info.update({"provider": provider, "shape": list(images.shape[1:])})
    time_images(benchmark, lambda: next(batches), BATCH)


@pytest.mark.parametrize("provider", ["gan_fast", "torch"])
def test_idx(benchmark: Any, digits: tuple[Path, Tensor], provider: str) -> None:
    """MNIST's files, in memory."""
    folder, images = digits

    def feed() -> Iterator[Tensor]:
        return iter(data.feed("mnist", BATCH, data_dir=folder, download=False))

    def plain() -> Iterator[Tensor]:
        return endless(loader(Items(DIGITS, lambda index: images[index])))

    measure(benchmark, "data idx", provider, feed if provider == "gan_fast" else plain, images)


@pytest.mark.parametrize("provider", ["gan_fast", "gan_fast files", "torch"])
def test_folder(benchmark: Any, pictures: tuple[Path, Tensor], provider: str) -> None:
    """A folder of PNG files."""
    folder, images = pictures
    names = sorted(folder.iterdir())

    def feed() -> Iterator[Tensor]:
        if provider == "gan_fast":
            return iter(data.feed(folder, BATCH))
        return iter(data.MapFeed(data.ImageFiles(folder), BATCH))

    def picture(index: int) -> Tensor:
        with Image.open(names[index]) as opened:
            return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)

    def plain() -> Iterator[Tensor]:
        return endless(loader(Items(PICTURES, picture)))

    measure(benchmark, "data folder", provider, plain if provider == "torch" else feed, images)


@pytest.mark.parametrize("provider", ["gan_fast", "gan_fast items", "torch"])
def test_loader(benchmark: Any, digits: tuple[Path, Tensor], provider: str) -> None:
    """A DataLoader of the user's; "items" is the feed over its data set, without the loader."""
    images = digits[1]
    items = Items(DIGITS, lambda index: images[index])

    def source() -> Iterator[Tensor]:
        if provider == "torch":
            return endless(loader(items))
        return iter(data.feed(loader(items) if provider == "gan_fast" else items, BATCH))

    measure(benchmark, "data loader", provider, source, images)
