"""The step as one graph: recorded once, replayed for every batch of the usual size.

What a recording has to keep to (PyTorch's notes on CUDA graphs):

- Nothing in it may wait for the device, and a recording that breaks off leaves torch's memory and generators unfit for
  use. So the step is rehearsed first, on the stream of the recording; in the last rehearsal waiting is an error.
  Rehearsals also make what is made once: Adam's moments, loss scales, libraries' handles, the kernels' first checks.
- A recording does nothing, and a rehearsal is undone: each step of a training is a replay, the first one too. So a
  resumed run, which records anew, gives the bits of an undisturbed one.
- Addresses are part of a recording: batches and latents are copied into the graph's own, gradients are made inside it,
  and parameters, buffers and moments must stay where they are; if one has moved, the step is recorded again.
- Random numbers go on from replay to replay as they would from step to step: those of torch's own generator by
  themselves, the latents' because their generator is registered.
- The step's autocast keeps no copies of parameters: one from before the recording would stay as it was.
- Results are overwritten by the next replay, so each step's are copied out.
"""

from __future__ import annotations

import dataclasses
import logging
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from gan_fast import backends

from .cuda import Device, Waits
from .latent import Latent
from .rehearsal import undone
from .step import GanStep, StepMetrics
from .uploads import Uploads

__all__ = ["StepGraph"]

logger = logging.getLogger(__name__)

_REHEARSALS = 3
_LIBRARY = str(Path(torch.__file__).parent)


@dataclasses.dataclass(frozen=True)
class _Recording:
    """One recorded step.

    Attributes:
        real, z: where it reads the real samples and the latents; z is None if it draws them itself.
        replay: does the step.
        metrics: where it writes its results.
        gradients: where it writes those of the parameters.
    """

    real: Tensor
    z: Tensor | None
    replay: Callable[[], None]
    metrics: StepMetrics
    gradients: list[tuple[nn.Parameter, Tensor | None]]


class _Basis:
    """What a recording stands on: the kinds and modes of layers, addresses, learning rates, the backend asked for."""

    def __init__(self, step: GanStep) -> None:
        self._step = step
        networks = (step.generator, step.discriminator)
        self._modules = [module for network in networks for module in network.modules()]
        self._tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
        self.facts = self._now()

    def _now(self) -> tuple[object, ...]:
        step = self._step
        return (
            backends.requested(),
            step.loads,
            [group["lr"] for optimizer in (step.g_optimizer, step.d_optimizer) for group in optimizer.param_groups],
            [(type(module), module.training) for module in self._modules],
            [(tensor.data_ptr(), tensor.requires_grad) for tensor in self._tensors],
        )

    def holds(self) -> bool:
        """Whether all is as it was."""
        return self._now() == self.facts


class StepGraph:
    """The step of two networks by a graph where that can be, operation by operation where not; a line in the log says
    which batches or modules were in the way.

    Python code in the networks and the loss (a counter, a choice by ``random``) runs while the step is rehearsed and
    recorded, and never again.

    Args:
        step: what is recorded; its optimisers are capturable.
        latent: the trainer's own latents.
        batch_size: of the batches that are worth a graph.
        device: records, replays and copies.

    Attributes:
        upload: brings a batch from the host to the device beside the step at hand.
        replays: how many steps a recording did.
    """

    def __init__(self, step: GanStep, latent: Latent, batch_size: int, device: Device) -> None:
        self._step = step
        self._latent = latent
        self._batch_size = batch_size
        self._device = device
        self.upload = Uploads(device)
        self.replays = 0
        self._recordings: dict[bool, _Recording] = {}  # by whether latents are given
        self._basis: _Basis | None = None
        self._last: _Recording | None = None
        self._refused = False
        self._other_size = False

    def __call__(self, real: Tensor, z: Tensor | None) -> StepMetrics:
        """One step on ``real`` (N, ...) and ``z`` (N, ...), both on the training's device; None for z draws it."""
        if z is None and self._latent.source is not None:  # a user's function may do what no recording can
            z = self._latent.draw(len(real))
        recording = None if self._refused else self._recording_for(real, z)
        if recording is None:
            self._last = None
            return self._step(real, self._latent.draw(len(real)) if z is None else z)
        recording.real.copy_(real)
        if recording.z is not None and z is not None:
            recording.z.copy_(z)
        self._step.halfway = True
        recording.replay()
        self._step.halfway = False
        self.replays += 1
        if self._last is not recording:  # the parameters may have another step's gradients
            for parameter, gradient in recording.gradients:
                parameter.grad = gradient
            self._last = recording
        return recording.metrics.copied()

    def _recording_for(self, real: Tensor, z: Tensor | None) -> _Recording | None:
        if len(real) != self._batch_size:
            if not self._other_size:
                self._other_size = True
                logger.info(
                    "cuda_graph: batches that are not of batch_size=%d, such as this one of %d, run operation by "
                    "operation", self._batch_size, len(real),
                )  # fmt: skip
            return None
        self._step.enter_train_mode()
        if self._basis is None or not self._basis.holds():
            self._recordings.clear()
        found = self._recordings.get(z is not None)
        return self._record(real, z) if found is None else found

    def _record(self, real: Tensor, z: Tensor | None) -> _Recording | None:
        step, latent = self._step, self._latent
        own_real, own_z = real.clone(), None if z is None else z.clone()

        def work() -> StepMetrics:
            return step(own_real, latent.draw(self._batch_size) if own_z is None else own_z)

        try:
            with undone(step, latent):
                with self._device.aside(), warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message=".*(capturable=True|Synchronization debug mode)")
                    for _ in range(_REHEARSALS - 1):
                        work()
                    with self._device.no_waiting():
                        work()
                basis = _Basis(step)
                replay, metrics = self._capture(work, [] if own_z is not None else [latent.generator])
        except Waits as error:
            self._refuse(f"a step waits for the device at {_place(error)}")
            return None
        if _Basis(step).facts != basis.facts:
            self._refuse("a module replaces its parameters or buffers by new tensors instead of writing to them")
            return None
        self._basis = basis
        gradients = [(parameter, parameter.grad) for parameter in (*step.g_parameters, *step.d_parameters)]
        found = _Recording(own_real, own_z, replay, metrics, gradients)
        self._recordings[own_z is not None] = found
        logger.info("cuda_graph: recorded the step of %d samples", self._batch_size)
        return found

    def _capture(
        self, work: Callable[[], StepMetrics], generators: list[torch.Generator]
    ) -> tuple[Callable[[], None], StepMetrics]:
        try:
            return self._device.capture(work, generators)
        except RuntimeError as error:
            raise RuntimeError(
                f"cuda_graph=True: the step could not be recorded though it could be rehearsed ({error}); the training "
                "is unharmed, but torch can do no more in this process: begin again with cuda_graph=False"
            ) from error

    def _refuse(self, reason: str) -> None:
        self._refused = True
        self._recordings.clear()
        logger.warning("cuda_graph=True, but the steps run operation by operation: %s", reason)


def _place(error: Waits) -> str:
    """The line of Python that made a step wait: the innermost one outside torch."""
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    frame = next((f for f in reversed(frames) if not f.filename.startswith(_LIBRARY)), frames[-1])
    return f"{frame.filename}:{frame.lineno}: {frame.line}"
