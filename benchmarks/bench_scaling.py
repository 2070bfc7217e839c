"""A training step along batch, side of the images, channels and threads; `gan-fast bench scaling` fits exponents to the
same cells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from frame import measure_step, some

from gan_fast.suite import scaling

CELLS = scaling.cells()
#: Without GAN_FAST_BENCH=all: quick places of each axis.
SHORT = [cell for cell in CELLS if (cell.axis, cell.at) in {("batch", 1), ("batch", 32), ("side", 28), ("side", 64)}]
SHORT += [cell for cell in CELLS if (cell.axis, cell.at) in {("width", 16), ("width", 64), ("threads", 1)}]


@pytest.mark.parametrize("program", scaling.PROGRAMS)
@pytest.mark.parametrize("cell", some(CELLS, SHORT), ids=lambda cell: cell.name.replace(" ", ""))
def test_scaling(benchmark: Any, cell: scaling.Cell, program: str) -> None:
    """One place on one axis."""
    before = torch.get_num_threads()
    torch.set_num_threads(cell.threads)
    try:
        work = scaling.work(cell)
        measure_step(
            benchmark, f"scaling {cell.name}", program, scaling.recipes(cell), cell.batch, axis=cell.axis, at=cell.at,
            threads=cell.threads, flops=work.flops, largest_layer=work.largest,
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)
