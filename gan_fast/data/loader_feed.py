"""A feed around a user's DataLoader, which keeps its own order, and `feed`, which picks the feed for a source."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from .errors import DataError
from .feed import Feed, MapFeed, MemoryFeed
from .folder import ImageFiles
from .images import ImageData
from .items import batch_of, warn_if_unit_range
from .sources import load, resolve

__all__ = ["LoaderFeed", "feed"]

# Folders beyond this many bytes of pixels are decoded per batch instead of being held in memory.
_MEMORY_BYTES = 1 << 30


class LoaderFeed(Feed):
    """Batches from a DataLoader (or anything that can be iterated again and again and gives batches).

    It continues exactly (`exact`) in three cases: the loader has ``state_dict`` and ``load_state_dict``; or it runs
    without workers in sequential order; or without workers in an order drawn from a generator of its own. In the latter
    two the passed part of the epoch is replayed, so whoever also restores the global random state does that afterwards.

    Args:
        loader: the loader.
        name: what to call it in messages.

    Raises:
        DataError: a loader that gives no batch.
    """

    def __init__(self, loader: Any, name: str = "DataLoader") -> None:
        self.loader = loader
        self.name = name
        sized = not isinstance(getattr(loader, "dataset", None), IterableDataset) and hasattr(loader, "__len__")
        self.steps_per_epoch = len(loader) if sized else None
        size = getattr(loader, "batch_size", None)
        if size is None:
            size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
        self.batch_size = int(size or 0)
        if self.steps_per_epoch == 0:
            samples = len(getattr(loader, "dataset", ()))
            raise DataError(
                f"{name} gives no batch: batch_size={self.batch_size} with drop_last, but there are {samples} samples"
            )
        self._generator: torch.Generator | None = None
        self._mode, self.inexact_reason = self._order_of(loader)
        self.exact = not self.inexact_reason
        self._iterator: Iterator[Any] | None = None
        self._epoch_start: Tensor | None = None  # the generator's state before this pass
        self._looked = False

    def _order_of(self, loader: Any) -> tuple[str, str]:
        """("stateful" | "replay" | "none", why it is not exact)."""
        if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
            return "stateful", ""
        if not isinstance(loader, DataLoader):
            return "none", f"a {type(loader).__name__} has no state_dict"
        if isinstance(loader.dataset, IterableDataset):
            return "none", "its data set is an IterableDataset"
        if loader.num_workers:
            return "none", f"it has {loader.num_workers} workers"
        if type(loader.batch_sampler) not in (BatchSampler, type(None)):
            return "none", f"its batch sampler is a {type(loader.batch_sampler).__name__}"
        if type(loader.sampler) is SequentialSampler:
            return "replay", ""
        if type(loader.sampler) is RandomSampler and loader.sampler.generator is not None:
            self._generator = loader.sampler.generator
            return "replay", ""
        if type(loader.sampler) is RandomSampler:
            return "none", "it shuffles with the global generator (give it generator=torch.Generator())"
        return "none", f"its sampler is a {type(loader.sampler).__name__}"

    def _start_pass(self) -> Iterator[Any]:
        if self._generator is not None:
            self._epoch_start = self._generator.get_state()
        self._iterator = iter(self.loader)
        return self._iterator

    def next(self) -> Tensor:
        iterator = self._start_pass() if self._iterator is None else self._iterator
        for _ in range(2):
            try:
                batch = batch_of(next(iterator), self.name)
            except StopIteration:
                self.epoch, self.position = self.epoch + 1, 0
                iterator = self._start_pass()
                continue
            self.position += 1
            self.batch_size = self.batch_size or len(batch)
            if not self._looked:
                warn_if_unit_range(batch, self.name)
                self._looked = True
            return batch
        raise DataError(f"{self.name} gives no batch in a whole pass (an iterator that can be used only once?)")

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "loader",
            "name": self.name,
            "batch_size": self.batch_size,
            "steps_per_epoch": self.steps_per_epoch,
            "exact": self.exact,
        }

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "kind": "loader",
            "mode": self._mode,
            "epoch": self.epoch,
            "position": self.position,
            "batch_size": self.batch_size,
            "steps_per_epoch": self.steps_per_epoch,
        }
        if self._mode == "stateful":
            state["loader"] = self.loader.state_dict()
        if self._generator is not None:
            state["generator"] = self._generator.get_state() if self._epoch_start is None else self._epoch_start
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        mine = {"kind": "loader", "mode": self._mode, "steps_per_epoch": self.steps_per_epoch}
        if self.batch_size and state.get("batch_size"):
            mine["batch_size"] = self.batch_size
        different = [
            f"{key} was {state.get(key)!r}, is {value!r}" for key, value in mine.items() if state.get(key) != value
        ]
        if different:
            raise DataError(f"{self.name}: the saved position is of another loader: {'; '.join(different)}")
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._iterator = None
        if self._mode == "stateful":
            self.loader.load_state_dict(state["loader"])
        elif self._mode == "replay":
            if self._generator is not None:
                self._generator.set_state(state["generator"])
            if self.position:
                iterator = self._start_pass()
                for _ in range(self.position):
                    next(iterator)
        else:
            self.position = 0


def feed(
    source: Any,
    batch_size: int = 128,
    seed: int = 0,
    *,
    data_dir: str | Path | None = None,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    download: bool = True,
    drop_last: bool = True,
    device: torch.device | str = "cpu",
) -> Feed:
    """The feed for whatever a user trains on.

    Args:
        source: a name, image folder or zip (see `load`); a tensor, array or `ImageData`; a map-style data set; an
            IterableDataset; a DataLoader, which keeps its own batch size and order; or a `Feed`, which is handed back.
        batch_size: samples in a batch.
        seed: of the order.
        data_dir, split, image_size, channels, download: see `load`; for names, folders, zips, tensors and arrays.
        drop_last: leave out the rest of each epoch that does not fill a batch.
        device: where images held in memory are kept and converted; other feeds give CPU batches.

    Raises:
        DataError: see `load`; a batch larger than the data set (both numbers are given).
        TypeError: a source of no known kind.
    """
    if isinstance(source, Feed):
        return source
    own_images = isinstance(source, (str, os.PathLike, Tensor, np.ndarray, ImageData, TensorDataset))
    if not own_images and (image_size is not None or channels is not None):
        raise DataError(
            f"image_size={image_size}, channels={channels}: a {type(source).__name__} brings its images to size itself"
        )
    if isinstance(source, (DataLoader, IterableDataset)):
        loader = source
        if isinstance(source, IterableDataset):
            loader = DataLoader(source, batch_size=batch_size, drop_last=drop_last)
        made = LoaderFeed(loader, type(source).__name__)
        if not made.exact:
            warnings.warn(
                f"a resumed run will not see the same batches as an undisturbed one, because of the {made.name}: "
                f"{made.inexact_reason}",
                stacklevel=2,
            )
        return made
    if type(source) is TensorDataset:
        source = source.tensors[0]
    if isinstance(source, os.PathLike):
        source = Path(source)
    if isinstance(source, (str, Path)) and resolve(source) == "path":
        files = ImageFiles(Path(source), image_size, channels)
        if len(files) * int(np.prod(files.shape)) > _MEMORY_BYTES:
            return MapFeed(files, batch_size, seed, name=files.root.name, drop_last=drop_last)
        source, image_size, channels = files.load(), None, None
    if isinstance(source, (str, Path, Tensor, np.ndarray, ImageData)):
        data = load(source, data_dir=data_dir, split=split, image_size=image_size, channels=channels, download=download)
        return MemoryFeed(data, batch_size, seed, drop_last=drop_last, device=device)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, dict):
        return MapFeed(source, batch_size, seed, name=type(source).__name__, drop_last=drop_last)
    if hasattr(source, "state_dict") and hasattr(source, "load_state_dict") and hasattr(source, "__iter__"):
        return LoaderFeed(source, type(source).__name__)
    raise TypeError(
        f"data is a {type(source).__name__}, expected a name, a folder or zip, a tensor or array (N, C, H, W), "
        "a Dataset or a DataLoader"
    )
