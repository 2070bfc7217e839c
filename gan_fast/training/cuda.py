"""Streams, capture and copies of a CUDA device: all calls of torch.cuda that the step's graph is made of.

What uses them knows only the two protocols, so that the tests can put a stand-in on the CPU in their place. Nothing in
`CudaDevice` has run on a device yet; `benchmarks/gpu/graph_checks.py` is what proves it on one.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["CudaDevice", "Device", "Waits", "device_for"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
_WAITED = "synchronizing CUDA operation"  # in torch's error under set_sync_debug_mode("error")


class Waits(RuntimeError):
    """Something in a step waits for the device (reads a value, copies from ordinary memory)."""


class Device(Protocol):
    """What the step's graph and the copies of batches need."""

    def aside(self) -> AbstractContextManager[None]:
        """The block's work runs on the stream of the captures, after the caller's and before what the caller does
        next."""

    def no_waiting(self) -> AbstractContextManager[None]:
        """Raises `Waits` where the block waits for the device."""

    def capture(self, work: Callable[[], T], generators: Sequence[torch.Generator]) -> tuple[Callable[[], None], T]:
        """Record the work without doing it. Returns what replays it, and what it returned: tensors that each replay
        fills anew. ``generators``: those that the work draws from, besides torch's own."""

    def staging(self, like: Tensor) -> Tensor:
        """Page-locked memory on the host for a batch of this form."""

    def send(self, staged: Tensor) -> tuple[Tensor, Callable[[], None]]:
        """Start a copy to the device beside the work at hand; what the caller does next on the device comes after it.
        Returns the copy, and a function that waits until ``staged`` has been read."""


class CudaDevice:
    """`Device` by torch.cuda."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self._captures = torch.cuda.Stream()
            self._copies = torch.cuda.Stream()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """See `Device`."""
        # Autograd runs a backward pass on the stream of its forward pass, and no capture may reach into the default
        # stream: what is to be captured runs on the captures' stream from the first rehearsal on.
        caller = torch.cuda.current_stream(self.device)
        self._captures.wait_stream(caller)
        try:
            with torch.cuda.stream(self._captures):
                yield
        finally:
            caller.wait_stream(self._captures)

    @contextlib.contextmanager
    def no_waiting(self) -> Iterator[None]:
        """See `Device`."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        except RuntimeError as error:
            if _WAITED not in str(error):
                raise
            raise Waits(str(error)) from error
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def capture(self, work: Callable[[], T], generators: Sequence[torch.Generator]) -> tuple[Callable[[], None], T]:
        """See `Device`."""
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # "thread_local": threads that load data may use the device during the capture.
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, stream=self._captures, capture_error_mode="thread_local"),
        ):
            found = work()
        return graph.replay, found

    def staging(self, like: Tensor) -> Tensor:
        """See `Device`."""
        return torch.empty_like(like, pin_memory=True)

    def send(self, staged: Tensor) -> tuple[Tensor, Callable[[], None]]:
        """See `Device`."""
        caller = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            sent = staged.to(self.device, non_blocking=True)
            done = self._copies.record_event()
        caller.wait_event(done)
        sent.record_stream(caller)  # its memory belongs to the copies' stream, and is used on the caller's
        return sent, done.synchronize


def device_for(device: torch.device) -> Device | None:
    """The `Device` for the steps as one graph; None, with a line that says so, where there is no CUDA."""
    if device.type == "cuda":
        return CudaDevice(device)
    logger.warning("cuda_graph=True needs a CUDA device; on %r the steps run operation by operation", device.type)
    return None
