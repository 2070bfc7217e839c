"""One training step of a GAN: gan_fast's two ways against the programs of :mod:`gan_fast.suite.peers`.

All programs start from the same weights and do the same mathematics; the losses of their first step are compared
before any time is taken.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import gan_fast
from gan_fast.bench import interleaved
from gan_fast.suite import peers
from gan_fast.suite.results import Row

__all__ = ["BASELINE", "MODELS", "NETWORKS", "inputs", "measure", "networks", "recipes"]

BASELINE = "textbook NCHW"
#: Another mathematics: its G descends against D before the update, so that g_loss differs by what D learns in a step.
SIMULTANEOUS = "gan_fast.Trainer, simultaneous"
#: Networks of gan_fast.models, and all that have a name.
MODELS = ("dcgan28", "dcgan64")
NETWORKS = (*sorted(peers.NETWORKS), *MODELS)
#: Shapes of an image and of a latent, where they are not the article's.
SHAPES = {"dcgan64": ((3, 64, 64), (100, 1, 1)), "pytorch_gan_dcgan": ((1, 32, 32), (100,))}
#: In a discriminator, these layers rule the frozen programs out.
OF_ONE_BATCH = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
#: Losses of the first step, program against BASELINE: the same mathematics in another order of sums.
LARGEST_DIFFERENCE = {"fp32": 1e-3, "bf16": 2e-2}

Networks = tuple[nn.Module, nn.Module]


def networks(name: str) -> Networks:
    """(G, D) of a name in `NETWORKS`, in plain torch layers."""
    torch.manual_seed(0)
    return gan_fast.models.build(name, accelerate=False) if name in MODELS else peers.NETWORKS[name]()


def inputs(name: str, batch: int) -> tuple[Tensor, Tensor]:
    """Real images and latents for a network in `NETWORKS`."""
    images, latent = SHAPES.get(name, ((1, 28, 28), (100,)))
    torch.manual_seed(1)
    return torch.rand(batch, *images) * 2 - 1, torch.randn(batch, *latent)


def recipes(
    original: Networks, real: Tensor, z: Tensor, *, bf16: bool = False, compiled: bool = False
) -> dict[str, Callable[[], Callable[[], Any]]]:
    """name -> what makes the program, networks and optimisers included; a program does one step and returns
    (d_loss, g_loss).

    Args:
        original: (G, D) in plain torch layers; every program gets a copy.
        real, z: its batch.
        bf16: add eager PyTorch under bfloat16 autocast, and the Trainer in bf16.
        compiled: add eager PyTorch with both networks under torch.compile.
    """
    together = any(isinstance(layer, OF_ONE_BATCH) for layer in original[1].modules())
    steps = {name: step for name, step in peers.STEPS.items() if not together or name == "textbook"}

    def eager(step: Any, accelerate: bool = False, compile: bool = False, **settings: Any) -> Any:
        made = copy.deepcopy(original)
        if accelerate:
            gan_fast.accelerate(*made)
        program = step(*made, **settings)
        if compile:
            for network in made:
                network.compile()
        return lambda: program.step(real, z)

    def ours(**settings: Any) -> Any:
        return trained(copy.deepcopy(original), real, z, **settings)

    layouts = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
    found: dict[str, Callable[[], Any]] = {}
    for step_name, step in steps.items():
        for layout, memory_format in layouts.items():
            found[f"{step_name} {layout}"] = functools.partial(eager, step, memory_format=memory_format)
    step_name, step = list(steps.items())[-1]  # the best there is for this network
    low: dict[str, Any] = {"memory_format": torch.channels_last, "autocast": torch.bfloat16}
    if compiled:
        last: dict[str, Any] = {"memory_format": torch.channels_last, "compile": True}
        found[f"{step_name} channels_last compiled"] = functools.partial(eager, step, **last)
    if bf16:
        found[f"{step_name} channels_last bf16"] = functools.partial(eager, step, **low)
    found["gan_fast.accelerate, textbook"] = functools.partial(eager, peers.Textbook, accelerate=True)
    found["gan_fast.Trainer"] = ours
    if not together:
        found[SIMULTANEOUS] = functools.partial(ours, update="simultaneous")
    if bf16:
        found["gan_fast.Trainer bf16"] = functools.partial(ours, precision="bf16")
    return found


def trained(pair: Networks, real: Tensor, z: Tensor, **settings: Any) -> Callable[[], Any]:
    """A step of the Trainer, as `recipes` has them."""
    trainer = gan_fast.Trainer(
        *pair, latent_dim=tuple(z.shape[1:]), batch_size=len(z), outdir=None, progress=False, **settings
    )

    def step() -> tuple[Tensor, Tensor]:
        metrics = trainer.train_step(real, z)
        return metrics.d_loss, metrics.g_loss

    return step


def first_losses(programs: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Losses of each program's first step."""
    losses = {}
    for name, run in programs.items():
        torch.manual_seed(2)  # the same masks of dropout for all
        losses[name] = [float(value) for value in run()]
    return losses


def differences(losses: Mapping[str, list[float]]) -> dict[str, str]:
    """What is wrong with a program's first losses, by its name; the programs that agree with BASELINE are left out."""
    wrong = {}
    for name, values in losses.items():
        allowed = LARGEST_DIFFERENCE["bf16" if "bf16" in name else "fp32"]
        compared = values[:1] if name == SIMULTANEOUS else values
        worst = max(abs(a - b) for a, b in zip(compared, losses[BASELINE], strict=False))
        if not worst <= allowed:
            wrong[name] = f"the first step's losses {values} differ from {BASELINE}'s {losses[BASELINE]}"
    return wrong


def measure(
    name: str,
    programs: Mapping[str, Callable[[], Any]],
    batch: int,
    rounds: int,
    calibration: interleaved.Calibration | None = None,
) -> tuple[list[Row], dict[str, list[float]]]:
    """Rows of the programs, and their first losses. A program with other losses than BASELINE gets no time."""
    losses = first_losses(programs)
    wrong = differences(losses)
    times = interleaved.measure(
        {program: run for program, run in programs.items() if program not in wrong}, rounds, calibration=calibration
    )
    rows = []
    for program in programs:
        dtype = "bfloat16" if "bf16" in program else "float32"
        row = Row("step", f"{name} b{batch}", program, dtype=dtype, family=name, images=batch)
        row.wrong = wrong.get(program, "")
        if program in times:
            row.take(times[program])
        rows.append(row)
    return rows, losses
