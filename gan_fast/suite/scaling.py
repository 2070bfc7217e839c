"""A training step's cost for one image along four axes: batch, side of the images, channels, threads.

The networks are a fully convolutional pair of the DCGAN kind, so that every axis can be moved alone. Each place on an
axis is a `Cell`; the programs of a cell are gan_fast's Trainer and eager PyTorch's textbook loop in both memory
formats, checked and timed in turns like all steps (:mod:`gan_fast.suite.steps`). One more cell has the same layers with
next to no arithmetic: what is left is the fixed cost of a step's calls. :mod:`gan_fast.suite.exponents` says what comes
out.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gan_fast import tuning
from gan_fast.bench import interleaved
from gan_fast.suite import steps
from gan_fast.suite.exponents import FIXED
from gan_fast.suite.results import Row

__all__ = ["AXES", "PROGRAMS", "Cell", "Work", "cells", "convolutional", "measure", "recipes", "work"]

#: Programs of every cell; the first is what the others' losses are compared with.
PROGRAMS = (steps.BASELINE, "textbook channels_last", "gan_fast.Trainer")
CHANNELS, LATENT = 3, 16
#: Where each axis is measured; threads are 1, 2, 4 and so on up to all.
AXES: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    "side": (28, 32, 64, 128, 192, 256),
    "width": (16, 32, 64, 128, 256),
    "threads": (),
}
#: What stays the same along an axis: (batch, side, width).
STANDING = {"batch": (32, 32, 64), "side": (4, 32, 64), "width": (16, 32, 64), "threads": (32, 32, 64)}
#: Seconds for the turns of one cell; large ones take FEWEST rounds all the same.
BUDGET, FEWEST = 4.0, 3
#: A turn lasts at least this long, by repeating what is shorter.
SHORTEST_TURN = 2e-3


@dataclasses.dataclass(frozen=True)
class Cell:
    """One place on an axis."""

    axis: str
    at: int
    batch: int
    side: int
    width: int
    threads: int

    @property
    def name(self) -> str:
        """What a row of it is called."""
        return self.axis if self.axis == FIXED else f"{self.axis} {self.at}"


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step comes to: operations of the convolutions by their definition, and the bytes of input, weight and
    output of the largest layer."""

    flops: int
    largest: int


def convolutional(width: int) -> tuple[nn.Sequential, nn.Sequential]:
    """(G, D) for images of any side that is a multiple of 4: latents (N, 16, side / 4, side / 4), a map of logits.

    Args:
        width: channels of the layers at half the images' side; those at a quarter have twice as many.
    """
    generator = nn.Sequential(
        nn.Conv2d(LATENT, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, CHANNELS, 4, 2, 1, bias=False),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(CHANNELS, width, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 1, 3, padding=1, bias=False),
    )
    return generator, discriminator


def cells(axes: Iterable[str] = AXES) -> list[Cell]:
    """The cells of these axes at the present number of threads, which is the most that any has.

    Raises:
        ValueError: no such axis.
    """
    most = torch.get_num_threads()
    counts = sorted({*(1 << power for power in range(most.bit_length()) if 1 << power < most), most})
    found = [Cell(FIXED, 1, 1, 8, 4, most)]
    for axis in axes:
        if axis not in AXES:
            raise ValueError(f"axis {axis!r}: expected one of {', '.join(AXES)}")
        standing = dict(zip(("batch", "side", "width"), STANDING[axis], strict=True))
        for at in AXES[axis] or counts:
            found.append(Cell(axis, at, **{**standing, "threads": most, axis: at}))
    return found


def inputs(cell: Cell) -> tuple[Tensor, Tensor]:
    """Real images and latents."""
    torch.manual_seed(1)
    real = torch.rand(cell.batch, CHANNELS, cell.side, cell.side) * 2 - 1
    return real, torch.randn(cell.batch, LATENT, cell.side // 4, cell.side // 4)


def recipes(cell: Cell) -> dict[str, Callable[[], Callable[[], Any]]]:
    """What makes each of `PROGRAMS`, as :func:`gan_fast.suite.steps.recipes` has it."""
    torch.manual_seed(0)
    found = steps.recipes(convolutional(cell.width), *inputs(cell))
    return {name: found[name] for name in PROGRAMS}


def work(cell: Cell) -> Work:
    """The work of a cell's step, from its layers' shapes; nothing is computed."""
    generator: list[int] = []
    discriminator: list[int] = []
    largest = 0

    def seen(products: list[int], layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        assert isinstance(layer.weight, Tensor)
        # Every pixel of the small side meets every weight of its channel once.
        pixels = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        products.append(pixels.numel() * layer.weight.numel() // pixels.shape[1])
        elements = inputs[0].numel() + layer.weight.numel() + output.numel()
        largest = max(largest, elements * inputs[0].element_size())

    with torch.device("meta"):
        pair = convolutional(cell.width)
        values = torch.empty(cell.batch, LATENT, cell.side // 4, cell.side // 4)
    for products, network in zip((generator, discriminator), pair, strict=True):
        for layer in network:
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                layer.register_forward_hook(functools.partial(seen, products))
        values = network(values)
    # G: forward, both gradients. D: the same on real and on fake images, then forward and input gradient for G's
    # update. No update needs the gradient of its network's own input.
    total = 3 * sum(generator) - generator[0] + 8 * sum(discriminator) - 2 * discriminator[0]
    return Work(2 * total, largest)


def measure(
    chosen: Iterable[Cell], rounds: int = 9, calibration: interleaved.Calibration | None = None
) -> Iterator[list[Row]]:
    """The rows of each cell as soon as they are known; a program with other losses than the first gets no time.

    Args:
        chosen: the cells.
        rounds: turns of each program that must count; fewer in cells that would take longer than `BUDGET`.
        calibration: of earlier measurements at the present number of threads.
    """
    before = torch.get_num_threads()
    calibrations = {} if calibration is None else {before: calibration}
    try:
        for cell in chosen:
            torch.set_num_threads(cell.threads)
            if cell.threads not in calibrations:
                calibrations[cell.threads] = tuning.calibration()
            yield _measure(cell, rounds, calibrations[cell.threads])
    finally:
        torch.set_num_threads(before)


def _measure(cell: Cell, rounds: int, calibration: interleaved.Calibration) -> list[Row]:
    programs, _ = steps.make(recipes(cell))
    wrong = steps.differences(steps.first_losses(programs))
    found = work(cell)
    right = {name: run for name, run in programs.items() if name not in wrong}
    seconds = {}
    for name, run in right.items():
        start = time.perf_counter()
        run()
        seconds[name] = time.perf_counter() - start
    repeats = max(1, math.ceil(SHORTEST_TURN / min(seconds.values())))
    affordable = int(BUDGET / (repeats * sum(seconds.values())))
    times = interleaved.measure(right, min(rounds, max(FEWEST, affordable)), 0, repeats, calibration)
    rows = []
    for name in programs:
        row = Row("scaling", cell.name, name, family=cell.axis, images=cell.batch, at=float(cell.at))
        row.gflop, row.working_set, row.wrong = 1e-9 * found.flops, found.largest, wrong.get(name, "")
        if name in times:
            row.take(times[name])
        rows.append(row)
    return rows
