"""Feeds: endless, resumable sources of float batches in [-1, 1] for the trainer.

A feed that owns the order of its samples is exact: the permutation of each epoch is a function of (seed, epoch) and the
place in it an integer, so a checkpoint needs a few numbers and no generator state. A DataLoader keeps its own order,
which can be taken up again only in the cases that `LoaderFeed` knows.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import DataError
from .images import ImageData, positive, to_float
from .items import stack, warn_if_unit_range

__all__ = ["Feed", "MapFeed", "MemoryFeed", "home", "mix_seed", "permutation"]

logger = logging.getLogger(__name__)


def mix_seed(*numbers: int) -> int:
    """One 63-bit seed from several integers, different for every tuple in practice.

    Hashed, because torch's CPU generator uses the low 32 bits only and neighbouring seeds must not give related
    streams.
    """
    digest = hashlib.blake2b(",".join(str(int(n)) for n in numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """The order of `n` samples in `epoch`: int64 (n), a function of the arguments only (for one version of torch)."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(mix_seed(seed, epoch)))


class Feed(ABC):
    """An endless source of batches.

    Attributes:
        name: what the data is called in messages.
        batch_size: samples in a batch; the last of an epoch may be smaller where drop_last is off.
        steps_per_epoch: batches in one pass, or None if unknown.
        exact: whether `load_state_dict` continues with exactly the batches that would have come.
        inexact_reason: why not, or "".
        epoch: passes begun before this one.
        position: batches handed out in this pass.
    """

    name: str
    batch_size: int
    steps_per_epoch: int | None
    exact: bool = True
    inexact_reason: str = ""
    epoch: int = 0
    position: int = 0

    @abstractmethod
    def next(self) -> Tensor:
        """The next batch: float32 (batch_size, C, H, W) in [-1, 1], in memory of its own.

        After an error the feed still stands before that batch: whoever goes on is given it again.
        """

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        return self.next()

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What is fed, as plain values that fit into JSON: kind, name, samples, shape, fingerprint, batch size, ..."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Where the feed stands: plain values and tensors, loadable with torch.load(weights_only=True)."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            DataError: the state is of other data, another seed or batch size; the differences are listed.
        """


class _OwnedFeed(Feed):
    """A feed that decides the order itself."""

    _kind: str

    def __init__(self, name: str, samples: int, batch_size: int, seed: int, drop_last: bool) -> None:
        batch_size = positive("batch_size", batch_size)
        if batch_size > samples:
            raise DataError(f"batch_size={batch_size} is larger than the data set: {name} has {samples} samples")
        self.name, self.samples, self.drop_last = name, samples, drop_last
        self.batch_size, self.seed = batch_size, int(seed)
        self.steps_per_epoch: int = samples // batch_size if drop_last else -(-samples // batch_size)
        self._order: tuple[int, Tensor] | None = None  # (epoch, its permutation)

    def next(self) -> Tensor:
        batch = self._gather(self._indices())
        self.position += 1
        return batch

    @abstractmethod
    def _gather(self, indices: Tensor) -> Tensor:
        """The samples of these numbers as a batch."""

    def _indices(self) -> Tensor:
        if self.position >= self.steps_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        if self._order is None or self._order[0] != self.epoch:
            self._order = (self.epoch, self._permutation())
        start = self.position * self.batch_size
        return self._order[1][start : start + self.batch_size]

    def _permutation(self) -> Tensor:
        """The order of this epoch, where the samples are picked."""
        return permutation(self.samples, self.seed, self.epoch)

    def _identity(self) -> dict[str, Any]:
        return {
            "kind": self._kind,
            "name": self.name,
            "samples": self.samples,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "drop_last": self.drop_last,
        }

    def describe(self) -> dict[str, Any]:
        return {**self._identity(), "steps_per_epoch": self.steps_per_epoch, "exact": self.exact}

    def state_dict(self) -> dict[str, Any]:
        return {**self._identity(), "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        mine = self._identity()
        different = [
            f"{key} was {state.get(key)!r}, is {mine[key]!r}"
            for key in mine
            if key != "name" and state.get(key) != mine[key]
        ]
        if different:
            raise DataError(f"{self.name}: the saved position is of other data or settings: {'; '.join(different)}")
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position <= self.steps_per_epoch:
            raise DataError(
                f"{self.name}: saved epoch {epoch}, position {position}; expected 0..{self.steps_per_epoch} batches"
            )
        self.epoch, self.position = epoch, position


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a device; that of the CPU is not asked for, the images lie there already."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


def home(images: Tensor, device: torch.device) -> torch.device:
    """Where a set of images is kept."""
    if 2 * images.nbytes <= free_memory(device):
        return device
    logger.info("%.2g GB of images would take over half of the free memory of %s: the host keeps them",
                images.nbytes / 1e9, device)  # fmt: skip
    return torch.device("cpu")


class MemoryFeed(_OwnedFeed):
    """Batches from images in memory: rows are gathered as they are stored (uint8) and converted per batch.

    Args:
        data: the images.
        batch_size: samples in a batch.
        seed: of the order.
        drop_last: leave out the rest of each epoch that does not fill a batch (another rest every epoch).
        device: where the images are kept and the batches made, if they take at most half of the memory that is free
            there; else the CPU. There no step waits for the host: the order of an epoch goes to the device at once.

    Raises:
        DataError: batch larger than the data set.
    """

    _kind = "memory"

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        seed: int = 0,
        *,
        drop_last: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(data.name, len(data), batch_size, seed, drop_last)
        warn_if_unit_range(data.images[: 4 * batch_size], data.name)
        self.data = data
        self.device = home(data.images, torch.device(device))
        self._rows = data.images.to(self.device).contiguous().view(len(data), -1)
        # Gathering into one buffer spares an allocation a step; the float batch is new each time, the caller may keep
        # it.
        self._buffer = torch.empty((batch_size, self._rows.shape[1]), dtype=self._rows.dtype, device=self.device)

    def _permutation(self) -> Tensor:
        return super()._permutation().to(self.device)

    def _gather(self, indices: Tensor) -> Tensor:
        if self._rows.dtype == torch.uint8:
            rows = torch.index_select(self._rows, 0, indices, out=self._buffer[: len(indices)])
            return to_float(rows).view(-1, *self.data.shape)
        return self._rows.index_select(0, indices).to(torch.float32).view(-1, *self.data.shape)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "shape": list(self.data.shape), "fingerprint": self.data.fingerprint}


class MapFeed(_OwnedFeed):
    """Batches from a map-style data set, whose items are images or tuples that start with one (see `items.image_of`).

    The order is the feed's own. A data set with a ``fingerprint`` (a text or number that changes with its contents) is
    known again on a resume; of others only the length is compared. Random transforms inside the data set draw from the
    global generators, which whoever saves a run must save as well.

    Args:
        dataset: has ``__len__`` and ``__getitem__`` (and maybe ``__getitems__``).
        batch_size: samples in a batch.
        seed: of the order.
        name: what to call it in messages.
        drop_last: as in `MemoryFeed`.

    Raises:
        DataError: batch larger than the data set; from `next`, items that are no images or unlike each other.
    """

    _kind = "dataset"

    def __init__(
        self, dataset: Any, batch_size: int, seed: int = 0, *, name: str = "dataset", drop_last: bool = True
    ) -> None:
        super().__init__(name, len(dataset), batch_size, seed, drop_last)
        self.dataset = dataset
        self._looked = False
        self._fingerprint = getattr(dataset, "fingerprint", None)

    def _identity(self) -> dict[str, Any]:
        known = {} if self._fingerprint is None else {"fingerprint": str(self._fingerprint)}
        return {**super()._identity(), **known}

    def _gather(self, indices: Tensor) -> Tensor:
        numbers: Sequence[int] = indices.tolist()
        many = getattr(self.dataset, "__getitems__", None)
        items = many(numbers) if many is not None else [self.dataset[i] for i in numbers]
        batch = stack(items, numbers, self.name)
        if not self._looked:
            warn_if_unit_range(batch, self.name)
            self._looked = True
        return batch
