"""The Trainer's step as one CUDA graph: the same training as operation by operation, in memory that stays flat, without
waiting for the device, and out of the way where it cannot be.

A resumed run and one that nothing disturbed must agree bit by bit, unless the device does not repeat itself even
operation by operation. Single operations are run without autocast's kept copies of parameters, as the graph is; they
then should give the graph's bits, and may differ by rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import gan_fast

from .device import Settings, held_memory, no_waiting, tidy
from .journal import Row, row
from .steps import LOSSES, Network, cosine, networks_of, replays, trainer_of

#: Steps that are compared, and those over which memory must stay as it is.
STEPS, LONG = 20, 10_000
BATCH = 64
#: What single operations and the graph may differ by after STEPS steps, where their bits do: losses, in multiples of
#: what a first step may; cosine between the ways that the parameters went.
GROWTH = 10
LEAST_COSINE = 0.99


@dataclasses.dataclass
class Told:
    """Losses of some steps; the parameters after them, and those with the buffers."""

    losses: Tensor
    weights: Tensor
    state: Tensor

    def same_bits(self, other: Told) -> bool:
        """Whether nothing differs."""
        return torch.equal(self.losses, other.losses) and torch.equal(self.state, other.state)

    def distance(self, other: Told) -> float:
        """Largest between losses; NaN where one is."""
        return float((self.losses - other.losses).abs().div(other.losses.abs().clamp_min(1.0)).amax())


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """As one vector."""
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def weights(trainer: gan_fast.Trainer) -> Tensor:
    """Of both networks."""
    return flat((*trainer.generator.parameters(), *trainer.discriminator.parameters()))


def batches(network: Network, batch: int, settings: Settings, count: int) -> Tensor:
    """(count, batch, *image) on the device."""
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(count, batch, *network.image, generator=generator) * 2 - 1).to(settings.device)


def run(trainer: gan_fast.Trainer, real: Tensor) -> Told:
    """Steps on these batches, with latents of the trainer's own; read at the end."""
    metrics = [trainer.train_step(batch) for batch in real]
    losses = torch.stack([torch.stack((m.d_loss, m.g_loss)) for m in metrics]).double()
    states = (trainer.generator.state_dict(), trainer.discriminator.state_dict())
    return Told(losses, weights(trainer), flat(value for state in states for value in state.values()))


@contextlib.contextmanager
def no_kept_casts() -> Iterator[None]:
    """Autocast keeps no copies of parameters within the block."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def facts_of(network: Network, name: str, backend: str) -> dict[str, Any]:
    """For a row."""
    return {"dtype": name, "network": network.name, "backend": backend}


def judged(what: str, reasons: list[str], done: bool, **facts: Any) -> list[Row]:
    """The row of a check: red with its reasons; green only where replays were made."""
    if reasons:
        return [row(what, check="red", state="failed", reason="; ".join(reasons), **facts)]
    if not done:
        return [row(what, check="unchecked", state="skipped", reason="graphs need a CUDA device", **facts)]
    return [row(what, check="green", **facts)]


def check_same(network: Network, name: str, settings: Settings, backend: str, update: str = "alternating") -> list[Row]:
    """STEPS steps as a graph against single operations, and against a run that was saved and loaded in its middle (or,
    where checkpoints cannot be written, went on)."""
    saved = importlib.util.find_spec("safetensors") is not None
    batch, steps = (2, 2) if settings.tiny else (BATCH, STEPS)
    real = batches(network, batch, settings, steps)
    tidy(settings)

    def trainer(cuda_graph: bool) -> gan_fast.Trainer:
        return trainer_of(network, name, batch, settings, update=update, cuda_graph=cuda_graph)

    with gan_fast.use_backend(backend), tempfile.TemporaryDirectory() as folder:
        start = weights(trainer(False))
        with no_kept_casts():
            eager, again = run(trainer(False), real), run(trainer(False), real)
        whole = trainer(True)
        graph = run(whole, real)
        part = trainer(True)
        first = run(part, real[: steps // 2])
        loaded = part
        if saved:
            part.save(Path(folder) / "here")
            here = Path(folder) / "here"
            loaded = gan_fast.Trainer.load(here, *networks_of(network, settings), device=settings.device)
        second = run(loaded, real[steps // 2 :])
    resumed = dataclasses.replace(second, losses=torch.cat((first.losses, second.losses)))
    made = [replays(t) for t in ((whole, part, loaded) if saved else (whole, part))]
    expected = [steps, steps // 2, steps - steps // 2] if saved else [steps, steps]
    repeatable = eager.same_bits(again)
    allowed = max(GROWTH * LOSSES[name], 2 * again.distance(eager))
    distance = graph.distance(eager)
    direction = cosine(graph.weights - start, eager.weights - start)
    reasons = []
    if None not in made and made != expected:
        reasons.append(f"replays: {made}, expected every step to be one")
    if not graph.same_bits(eager) and not (distance <= allowed and direction >= LEAST_COSINE):
        reasons.append(f"losses differ by {distance:.3g} (allowed {allowed:.3g}), cosine of the ways {direction:.5f}")
    if not resumed.same_bits(graph) and repeatable:
        reasons.append(f"a resumed run differs by {resumed.distance(graph):.3g} in its losses")
    return judged(
        f"{network.name} step as a graph, {update}, {backend}", reasons, None not in made, batch=batch,
        error=distance, allowed=allowed, same_bits=graph.same_bits(eager), repeatable=repeatable,
        saved="yes" if saved else "no: safetensors is not installed", **facts_of(network, name, backend),
    )  # fmt: skip


def check_long(network: Network, name: str, settings: Settings, backend: str) -> list[Row]:
    """LONG steps fed from images on the device: memory as after the first ones, and no step that waits."""
    batch, steps = (2, 8) if settings.tiny else (BATCH, LONG)
    images = (batches(network, 32 * batch, settings, 1)[0].cpu() * 127.5 + 127.5).to(torch.uint8)
    tidy(settings)
    reasons = []
    with gan_fast.use_backend(backend):
        trainer = trainer_of(network, name, batch, settings, cuda_graph=True, log_every=steps)
        feed = trainer.prepare(images)

        def some(count: int) -> None:
            for _ in range(count):
                trainer.train_step(trainer.send(feed.next()))

        some(steps // 2)
        before = held_memory(settings)
        try:
            with no_waiting(settings):
                some(min(16, steps // 4))  # inside an epoch, whose order comes from the host at its beginning
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            reasons.append(f"a step waits for the device: {error}")
        some(steps - steps // 2 - min(16, steps // 4))
        after = held_memory(settings)
    if any(now > then for now, then in zip(after, before, strict=True)):
        reasons.append(f"memory was {before} after {steps // 2} steps and is {after} after {steps}")
    made = replays(trainer)
    what = f"{network.name} step as a graph, {steps} steps, {backend}"
    return judged(what, reasons, made is not None, batch=batch, **facts_of(network, name, backend))


class Pictures(Dataset[Tensor]):
    """Images that lie on the host, one by one."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def check_uploads(network: Network, name: str, settings: Settings, backend: str) -> list[Row]:
    """Batches from the host, a short one at each epoch's end: the same training as without a graph."""
    batch, steps = (2, 4) if settings.tiny else (BATCH, STEPS)
    images = batches(network, 3 * batch + 1, settings, 1)[0].cpu()
    found = []
    with gan_fast.use_backend(backend), no_kept_casts():
        for cuda_graph in (False, False, True):
            trainer = trainer_of(network, name, batch, settings, cuda_graph=cuda_graph)
            trainer.fit(Pictures(images), steps=steps, data_options={"drop_last": False})
            found.append(weights(trainer))
    eager, again, graph = found
    made = replays(trainer)
    reasons = []
    if made is not None and made != steps - steps // 4:
        reasons.append(f"{made} replays, expected {steps - steps // 4}: all but the short batches")
    distance = float((graph - eager).norm() / eager.norm())
    allowed = max(1e-6 if name == "fp32" else 1e-3, 2 * float((again - eager).norm() / eager.norm()))
    if not distance <= allowed:
        reasons.append(f"the parameters differ by {distance:.3g} of their size, allowed {allowed:.3g}")
    return judged(
        f"{network.name} step as a graph, from the host, {backend}", reasons, made is not None, batch=batch,
        error=distance, allowed=allowed, **facts_of(network, name, backend),
    )  # fmt: skip


class Reads(nn.Module):
    """Reads a value in its forward pass, which no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.0 if float(x.detach().abs().amax()) < 1e9 else 0.0)


@contextlib.contextmanager
def warnings_of(logger: str) -> Iterator[list[str]]:
    """The warnings that a logger gives within the block."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]  # smaller than a class
    logging.getLogger(logger).addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger(logger).removeHandler(handler)


def check_refusal(network: Network, name: str, settings: Settings, backend: str) -> list[Row]:
    """A network that waits runs operation by operation, says so once, and costs the process nothing."""
    batch, steps = (2, 2) if settings.tiny else (BATCH, 4)
    real = batches(network, batch, settings, steps)
    with gan_fast.use_backend(backend), no_kept_casts():
        with warnings_of("gan_fast.training.step_graph") as said:
            refused = trainer_of(network, name, batch, settings, around=Reads(), cuda_graph=True)
            told = run(refused, real)
        plain = run(trainer_of(network, name, batch, settings, around=Reads()), real)
        after = trainer_of(network, name, batch, settings, cuda_graph=True)
        run(after, real)
    made = [replays(refused), replays(after)]
    reasons = []
    if None not in made and (made != [0, steps] or len(said) != 1 or "waits for the device" not in said[0]):
        reasons.append(f"{made} replays and {said}, expected 0, {steps} and one line")
    if not told.distance(plain) <= GROWTH * LOSSES[name]:
        reasons.append(f"losses differ by {told.distance(plain):.3g}: the rehearsal left a trace")
    what = f"{network.name} step with a network that waits, {backend}"
    return judged(what, reasons, None not in made, batch=batch, **facts_of(network, name, backend))
