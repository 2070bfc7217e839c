"""Layers, pass by pass: gan_fast's operators and PyTorch's, in turns.

A row is one layer in one pass (forward, input gradient, weight gradient), one memory format of the input and one
program. Backward passes are timed through autograd, since that is how they run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gan_fast import functional, tuning
from gan_fast.bench import interleaved
from gan_fast.suite.results import AGAIN, Row
from gan_fast.suite.shapes import LayerShape
from gan_fast.suite.sweeps import Piece, sweep

__all__ = ["FORMATS", "PASSES", "measure", "pieces", "run_of"]

PASSES = ("forward", "input_grad", "weight_grad")
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
#: Of each program in a visit.
TURNS = 4
#: A turn lasts at least this long, by repeating what is shorter.
SHORTEST_TURN = 4e-3
#: Largest difference from PyTorch's result, relative to its norm: rounding, and nothing else.
LARGEST_DIFFERENCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def call(shape: LayerShape, provider: str, **fused: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(input, weight, bias) -> output; provider: "torch", or a backend of gan_fast ("auto", "cpu"), which may be given
    an activation."""
    form: dict[str, Any] = {"stride": shape.stride, "padding": shape.padding, "dilation": shape.dilation}
    if shape.op == "conv_transpose":
        form["output_padding"] = shape.output_padding
    name = f"{shape.op}{shape.rank}d"
    if provider == "torch" and shape.op == "upsample_conv":
        plain = getattr(torch.nn.functional, f"conv{shape.rank}d")
        return lambda x, w, b: plain(torch.nn.functional.interpolate(x, scale_factor=2), w, b, **form)
    if provider == "torch":
        plain = getattr(torch.nn.functional, name)
        return lambda x, w, b: plain(x, w, b, **form)
    ours = getattr(functional, name)
    return lambda x, w, b: ours(x, w, b, backend=provider, **form, **fused)


def run_of(
    shape: LayerShape,
    provider: str,
    which: str,
    memory_format: torch.memory_format,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Callable[[], Any]:
    """What is timed: one pass of the layer by one provider."""
    generator = torch.Generator().manual_seed(0)
    x, w, b = (
        (torch.randn(size, generator=generator) * 0.1).to(device, dtype)
        for size in (shape.input_shape, shape.weight_shape, (shape.out_channels,))
    )
    if shape.rank == 2:
        x, w = x.to(memory_format=memory_format), w.to(memory_format=memory_format)
    function = call(shape, provider)
    if which == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return function(x, w, b)

        return forward
    for leaf in [x] if which == "input_grad" else [w, b]:
        leaf.requires_grad_()
    # No leaves: the gradients of those would be copied into their layout, and torch.autograd.grad has each node asked
    # whether its leaf is wanted, which PyTorch answers with an exception that takes as long as a small pass. A view
    # would change the stride of an axis of 1, with which PyTorch's bfloat16 convolution without AVX-512 fails.
    inputs = tuple(torch.ops.aten.alias(t) for t in (x, w, b))
    asked = [t for t in inputs if t.requires_grad]
    function(*inputs)  # the backward pass of a first call works out what that of all others finds
    output = function(*inputs)
    # Not ones: a gradient of ones hides a wrong order of pixels.
    upstream = torch.randn(output.shape, generator=generator).to(device, dtype)
    upstream = upstream.to(memory_format=memory_format) if shape.rank == 2 else upstream
    return lambda: torch.autograd.grad(output, asked, upstream, retain_graph=True)


def difference(got: Any, expected: Any) -> float:
    """Largest relative difference of the results of one pass by two programs."""
    pairs = zip(*((value,) if isinstance(value, Tensor) else value for value in (got, expected)), strict=True)
    worst = 0.0
    for ours, theirs in pairs:
        norm = theirs.float().norm().item()
        distance = (ours.float() - theirs.float()).norm().item()
        apart = distance / norm if norm else distance
        if not math.isfinite(apart):  # max() would pass a NaN over
            return math.inf
        worst = max(worst, apart)
    return worst


def pieces(
    shapes: Iterable[LayerShape],
    *,
    provider: str = "auto",
    formats: Iterable[str] = FORMATS,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    only: Container[tuple[str, str]] | None = None,
    again: bool = False,
) -> list[Piece]:
    """A piece for each layer and pass: programs "gan_fast" and "torch" in each format.

    Where a result is not PyTorch's, the row of "gan_fast" says so in `wrong`, and no program of the piece has times.

    Args:
        shapes: the layers.
        provider: the backend that "gan_fast" runs on.
        formats: names of `FORMATS`; layers of rank 1 have the one format that there is.
        dtype: of all tensors.
        device: where they are.
        only: (layer's name, pass) of what to measure; all if None.
        again: measure PyTorch in the last format twice, the second time as the program `results.AGAIN`.
    """
    found = []
    for shape in shapes:
        named = {name: FORMATS[name] for name in formats} if shape.rank == 2 else {"NCL": torch.contiguous_format}
        programs = [(name, layout) for layout in named for name in ("torch", "gan_fast")]
        if again:
            programs.append((AGAIN, list(named)[-1]))
        for which in PASSES:
            if only is None or (shape.name, which) in only:
                found.append(_piece(shape, which, programs, provider, dtype, device))
    return found


def _piece(
    shape: LayerShape, which: str, programs: Sequence[tuple[str, str]], provider: str, dtype: torch.dtype, device: str
) -> Piece:
    rows = {
        " ".join(key): Row("layer", shape.name, key[0], which, key[1], str(dtype).removeprefix("torch."), shape.family)
        for key in programs
    }
    for row in rows.values():
        row.gflop, row.gbyte = 2e-9 * shape.macs, 1e-9 * shape.elements * dtype.itemsize

    def made() -> dict[str, Callable[[], Any]]:
        formats = {"NCL": torch.contiguous_format, **FORMATS}
        backends = {"gan_fast": provider}
        return {
            " ".join((name, layout)): run_of(shape, backends.get(name, "torch"), which, formats[layout], dtype, device)
            for name, layout in programs
        }

    def checked() -> dict[str, Callable[[], Any]]:
        runs = made()
        found = {}
        for key, run in runs.items():
            found[key], kernels = tuning.served(run)
            if rows[key].program == "gan_fast":
                rows[key].served = bool(kernels)
        for key, row in rows.items():
            if row.program == "gan_fast":
                apart = difference(found[key], found[f"torch {row.format}"])
                if apart > LARGEST_DIFFERENCE[dtype]:
                    row.wrong = f"differs from PyTorch's result by {apart:.1e} of its norm"
        return {} if any(row.wrong for row in rows.values()) else runs

    return Piece(rows, checked, made, turns=TURNS, shortest=SHORTEST_TURN)


def measure(
    shapes: Iterable[LayerShape], *, rounds: int = 9, calibration: interleaved.Calibration | None = None, **options: Any
) -> list[list[Row]]:
    """The rows of each layer and pass.

    Args:
        shapes: the layers.
        rounds: turns of each program at least.
        calibration: of earlier measurements.
        options: of :func:`pieces`.
    """
    made = pieces(shapes, **options)
    sweep(made, rounds, interleaved.Calibration() if calibration is None else calibration)
    return [piece.rows for piece in made]
