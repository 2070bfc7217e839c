"""Batches on their way from the host to the device."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .cuda import Device

__all__ = ["Uploads"]


def _nothing() -> None:
    """There was no copy yet."""


class Uploads:
    """Copies batches through two buffers of page-locked memory in turn: while one is read by the device, beside the
    step at hand, the host fills the other. It waits only for the copy of the last batch but one."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffers: list[tuple[Tensor | None, Callable[[], None]]] = [(None, _nothing), (None, _nothing)]

    def __call__(self, batch: Tensor) -> Tensor:
        """The batch on the device, in memory of its own."""
        staged, wait = self._buffers.pop(0)
        wait()
        if staged is None or staged.shape != batch.shape or staged.dtype != batch.dtype:
            staged = self._device.staging(batch)
        staged.copy_(batch)
        sent, wait = self._device.send(staged)
        self._buffers.append((staged, wait))
        return sent
