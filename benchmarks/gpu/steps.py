"""One training step, by PyTorch's programs and by ours, on the same networks, weights, images and latents.

Before a program is timed, the losses of its first step and the directions of both networks' gradients are compared with
the careful loop of peers.py in float64 (exact float32 above FLOAT64_BATCH). Times are wall times of steps back to back:
what a training loop has, gaps between launches included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import gan_fast
from gan_fast.precision import autocast_dtype
from gan_fast.suite import peers

from .device import (
    FORMATS,
    Settings,
    capture,
    few_programs,
    peak_memory,
    precision,
    step_time,
    synchronise,
    tidy,
)
from .journal import Row, row
from .verdicts import uses_kernels

#: Most important first.
BATCHES = (128, 1024, 64, 4096, 16, 8192)
#: Larger batches are compared with float32: float64 would take the memory and the time.
FLOAT64_BATCH = 128
#: Distance of the first losses, and cosine between gradients, that every program may have; more, where eager PyTorch's
#: own distance in the same precision is over half of it (bfloat16 with statistics over a small batch).
LOSSES = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 3e-2, "fp16": 1e-2}
COSINES = {"fp32": 0.9999, "tf32": 0.999, "bf16": 0.99}
#: No program may have less than this, whatever eager PyTorch has.
LEAST_COSINE = 0.9


@dataclasses.dataclass(frozen=True)
class Network:
    """A pair of networks: how to make it, what it takes, and whether D has statistics over the batch."""

    name: str
    make: Callable[..., tuple[nn.Module, nn.Module]]
    image: tuple[int, ...]
    latent: tuple[int, ...]
    width: int
    statistics: bool


NETWORKS = {
    "article": Network("article", peers.article, (1, 28, 28), (100,), 128, False),
    "dcgan64": Network("dcgan64", peers.dcgan64, (3, 64, 64), (100, 1, 1), 64, True),
}


@dataclasses.dataclass(frozen=True)
class Program:
    """How a step is run.

    Attributes:
        name: for the table.
        precision: "fp32", "tf32" or "bf16".
        layout: of weights and images.
        compiled: mode of torch.compile, or None.
        graph: the whole step captured as a CUDA graph.
        trainer: gan_fast.Trainer instead of the careful loop.
        backend: of gan_fast's operators, for a Trainer and for `accelerate`.
        accelerate: the careful loop on networks passed through gan_fast.accelerate.
        update: the Trainer's.
        cuda_graph: the Trainer records its step itself.
    """

    name: str
    precision: str
    layout: str = "channels_last"
    compiled: str | None = None
    graph: bool = False
    trainer: bool = False
    backend: str | None = None
    accelerate: bool = False
    update: str = "alternating"
    cuda_graph: bool = False

    @property
    def ours(self) -> bool:
        """Whether our kernels are in it."""
        return self.backend == "triton"

    @property
    def key(self) -> str:
        """Part of a task's key."""
        return f"{self.name}/{self.precision}/{self.layout}".replace(" ", "-")


MAX_AUTOTUNE = "max-autotune-no-cudagraphs"  # inductor's own graphs cannot hold two passes of D before a backward pass
#: (importance, program). The eager programs come first: without them no other figure says anything.
PEERS: tuple[tuple[int, Program], ...] = (
    (1, Program("eager", "bf16")),
    (1, Program("eager", "tf32")),
    (1, Program("eager", "fp32", "NCHW")),
    (1, Program("eager graph", "bf16")),
    (2, Program("compile", "bf16", compiled="default")),
    (3, Program("compile max-autotune graph", "bf16", compiled=MAX_AUTOTUNE, graph=True)),
    (4, Program("eager", "bf16", "NCHW")),
    (4, Program("eager graph", "tf32")),
    (5, Program("compile", "tf32", compiled="default")),
    (5, Program("compile max-autotune graph", "tf32", compiled=MAX_AUTOTUNE, graph=True)),
)
PEERS = tuple((rank, dataclasses.replace(p, graph=p.graph or p.name.endswith("graph"))) for rank, p in PEERS)
OURS: tuple[tuple[int, Program], ...] = (
    (1, Program("Trainer triton", "bf16", trainer=True, backend="triton")),
    (1, Program("Trainer triton", "tf32", trainer=True, backend="triton")),
    (1, Program("Trainer triton graph", "bf16", trainer=True, backend="triton", cuda_graph=True)),
    (1, Program("Trainer triton graph", "tf32", trainer=True, backend="triton", cuda_graph=True)),
    (2, Program("Trainer triton", "fp32", trainer=True, backend="triton")),
    (2, Program("Trainer auto", "bf16", trainer=True, backend="auto")),
    (2, Program("Trainer auto graph", "bf16", trainer=True, backend="auto", cuda_graph=True)),
    (3, Program("Trainer triton simultaneous", "bf16", trainer=True, backend="triton", update="simultaneous")),
    (4, Program("accelerate triton", "bf16", accelerate=True, backend="triton")),
)


def networks_of(network: Network, settings: Settings, layout: str = "channels_last") -> tuple[nn.Module, nn.Module]:
    """(G, D) on the device, always with the same weights."""
    torch.manual_seed(0)
    made = network.make(width=4 if settings.tiny else network.width)
    for net in made:
        net.to(settings.device, memory_format=FORMATS[layout])  # type: ignore[call-overload]  # torch types 4-D only
    return made


def trainer_of(
    network: Network, name: str, batch: int, settings: Settings, layout: str = "channels_last",
    around: nn.Module | None = None, **more: Any,
) -> gan_fast.Trainer:  # fmt: skip
    """A Trainer in a precision; ``around`` comes before its discriminator, ``more`` goes to it."""
    generator, discriminator = networks_of(network, settings, layout)
    return gan_fast.Trainer(
        generator, discriminator if around is None else nn.Sequential(around, discriminator), latent_dim=network.latent,
        batch_size=batch, outdir=None, progress=False, precision=name, device=settings.device, **more,
    )  # fmt: skip


def replays(trainer: gan_fast.Trainer) -> int | None:
    """Steps that a graph did; None where there are no graphs."""
    return None if trainer._graph is None else trainer._graph.replays


class Run:
    """A program made ready: networks, optimisers, fixed images and latents, and `step`, which returns the losses."""

    def __init__(self, network: Network, program: Program, batch: int, settings: Settings) -> None:
        self.settings = settings
        generator = torch.Generator().manual_seed(1)
        real = torch.rand(batch, *network.image, generator=generator) * 2 - 1
        z = torch.randn(batch, *network.latent, generator=generator)
        self.real = real.to(settings.device).contiguous(memory_format=FORMATS[program.layout])
        self.z = z.to(settings.device)
        self.program = program
        self.trainer: gan_fast.Trainer | None = None
        self.step: Callable[[], tuple[Tensor, Tensor]] = (
            self._trainer(network, batch) if program.trainer else self._loop(network)
        )

    def _loop(self, network: Network) -> Callable[[], tuple[Tensor, Tensor]]:
        program = self.program
        self.networks = networks_of(network, self.settings, program.layout)
        if program.accelerate:
            gan_fast.accelerate(*self.networks)
        made = peers.Frozen(
            *self.networks, apart=network.statistics, memory_format=FORMATS[program.layout],
            autocast=autocast_dtype(program.precision), capturable=program.graph and self.settings.cuda,
        )  # fmt: skip
        if program.compiled is not None:
            options = {"mode": program.compiled} if self.settings.cuda else {"backend": "eager"}
            made.generator, made.discriminator = (
                torch.compile(net, dynamic=False, **options) for net in (made.generator, made.discriminator)
            )
        return self._on_backend(lambda: made.step(self.real, self.z))

    def _trainer(self, network: Network, batch: int) -> Callable[[], tuple[Tensor, Tensor]]:
        program = self.program
        trainer = self.trainer = trainer_of(
            network, program.precision, batch, self.settings, program.layout, update=program.update,
            cuda_graph=program.cuda_graph,
        )  # fmt: skip
        self.networks = trainer.generator, trainer.discriminator

        def step() -> tuple[Tensor, Tensor]:
            metrics = trainer.train_step(self.real, self.z)
            return metrics.d_loss, metrics.g_loss

        return self._on_backend(step)

    def _on_backend(self, step: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], tuple[Tensor, Tensor]]:
        backend = self.program.backend
        if backend is None:
            return step

        def inside() -> tuple[Tensor, Tensor]:
            with gan_fast.use_backend(backend), few_programs(self.settings):
                return step()

        return inside

    def double(self) -> Run:
        """The same in float64."""
        for net in self.networks:
            net.double()
        self.real, self.z = self.real.double(), self.z.double()
        return self

    def first(self) -> tuple[list[float], list[Tensor]]:
        """Losses of the next step, and the gradients of both networks as vectors."""
        losses = [float(loss) for loss in self.step()]
        gradients = [
            torch.cat([p.grad.flatten().double() for p in net.parameters() if p.grad is not None])
            for net in self.networks
        ]
        return losses, gradients

    def graph(self) -> Callable[[], Any]:
        """The step captured; steps before it have made everything that is made once."""
        for _ in range(3):
            self.step()
        return capture(self.step).replay


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a first step must come to, and how far from it a program may be.

    Attributes:
        losses, gradients: of D and G; of G and D, as vectors.
        distances: largest of the losses from these.
        cosines: least between the gradients and these.
    """

    losses: list[float]
    gradients: list[Tensor]
    distances: list[float]
    cosines: list[float]


def cosine(left: Tensor, right: Tensor) -> float:
    """Of the angle between two vectors; NaN where one has a NaN."""
    return float(left @ right / (left.norm() * right.norm()).clamp_min(1e-30))


def reference(network: Network, batch: int, settings: Settings, name: str) -> Wanted:
    """The first step of the careful loop; what eager PyTorch loses in the precision `name` counts twice as allowed."""
    with precision("fp32"):
        exact = Run(network, Program("reference", "fp32", "NCHW"), batch, settings)
        losses, gradients = (exact.double() if batch <= FLOAT64_BATCH else exact).first()
    del exact
    with precision(name):
        eager = Run(network, Program("eager", name), batch, settings).first()
    distances = [
        max(LOSSES[name] * max(1.0, abs(right)), 2 * abs(mine - right))
        for mine, right in zip(eager[0], losses, strict=True)
    ]
    # Twice the error is four times the distance of the cosine from 1.
    own = [1 - cosine(mine, right) for mine, right in zip(eager[1], gradients, strict=True)]
    cosines = [max(LEAST_COSINE, min(COSINES[name], 1 - 4 * distance)) for distance in own]
    return Wanted(losses, gradients, distances, cosines)


def difference(found: tuple[list[float], list[Tensor]], wanted: Wanted, program: Program) -> str | None:
    """What is wrong with a program's first step, if anything."""
    compared = 1 if program.update == "simultaneous" else 2  # its generator descends against another discriminator
    for i, name in list(enumerate(("d_loss", "g_loss")))[:compared]:
        mine, right = found[0][i], wanted.losses[i]
        if not abs(mine - right) <= wanted.distances[i]:
            return f"{name} of the first step is {mine:.6g}, expected {right:.6g} within {wanted.distances[i]:.2g}"
    # The generator's gradients come first, and are those that differ.
    for i, name in list(enumerate(("G", "D")))[2 - compared :]:
        value = cosine(found[1][i], wanted.gradients[i])
        if not value >= wanted.cosines[i]:
            return f"cosine between {name}'s gradients and the right ones is {value:.6f}, below {wanted.cosines[i]:.6f}"
    return None


def measure(network: Network, program: Program, batch: int, settings: Settings) -> list[Row]:
    """Check a program's first step, then time its steps."""
    wanted = reference(network, batch, settings, program.precision)
    tidy(settings)
    facts: dict[str, Any] = {
        "dtype": program.precision, "batch": batch, "network": network.name, "program": program.name,
        "layout": program.layout,
    }  # fmt: skip
    what = f"{network.name} step, {program.name}"
    with precision(program.precision):
        run = Run(network, program, batch, settings)
        with uses_kernels() as used:
            reason = difference(run.first(), wanted, program)
        del wanted
        if not program.cuda_graph:  # whose launches come from Python in its first step alone, while it is recorded
            with uses_kernels() as used:
                run.step()
        elif reason is None and settings.cuda and run.trainer is not None and not replays(run.trainer):
            reason = "its steps ran operation by operation"
        if reason is None and program.ours and not used.clean:
            reason = f"PyTorch served {', '.join(used.served) or 'everything'}"
        if reason is not None:
            return [row(what, check="red", state="failed", reason=reason, **facts)]
        step = run.graph() if program.graph and settings.cuda else run.step
        timing = step_time(step, settings)
        synchronise(settings)
    check = "baseline" if program.backend is None and program.name == "eager" else "green"
    launches = {"launches": used.launches} if program.ours and not program.cuda_graph else {}
    rate = {"per_second": batch / timing.seconds}
    rows = [row(what, check=check, peak_memory=peak_memory(settings), **timing.fields(), **facts, **launches, **rate)]
    del run, step
    tidy(settings)
    return rows


def flops(network: Network, settings: Settings) -> list[Row]:
    """Floating-point operations of a step for one sample, as PyTorch's own counter has them."""
    from torch.utils.flop_counter import FlopCounterMode

    batch = 2
    run = Run(network, Program("count", "fp32", "NCHW"), batch, settings)
    with FlopCounterMode(display=False) as counter:
        run.step()
    total = counter.get_total_flops() / batch
    return [row(f"{network.name} step, operations per sample", check="baseline", network=network.name, flops=total)]
