"""Every layer of shapes.py, pass by pass: our CPU kernels against PyTorch's, interleaved; the evidence for
backends_table.json.

    python benchmarks/layers.py                         # all layers, both memory formats; writes a result file
    python benchmarks/layers.py --family odd --rounds 9 --no-file
    python benchmarks/layers.py --served                # what "auto" runs instead of our kernels everywhere

A cell is one layer in one pass (forward, input gradient, weight gradient) and one memory format of the input.
Backward passes are timed through autograd, since that is how they run. GF/s counts the products of the definition (a
Winograd kernel does fewer), and "of peak" holds it to a loop of pure multiply-adds on the same threads, measured
between the turns.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import machine
import torch
from shapes import FAMILIES, LayerShape, select
from torch import Tensor

from gan_fast import backends, functional, tuning
from gan_fast.bench import interleaved

PASSES = ("forward", "input_grad", "weight_grad")
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
#: Operator that does a pass's work, by (operator of the layer, pass).
OPERATOR_OF = {
    ("conv", "forward"): "conv",
    ("conv", "input_grad"): "conv_transpose",
    ("conv_transpose", "forward"): "conv_transpose",
    ("conv_transpose", "input_grad"): "conv",
    ("upsample_conv", "forward"): "upsample_conv",
    ("upsample_conv", "input_grad"): "upsample_conv",
    ("upsample_conv", "weight_grad"): "upsample_conv",
}
#: A turn lasts at least this long, by repeating what is shorter.
SHORTEST_TURN = 2e-3


def call(shape: LayerShape, provider: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(input, weight, bias) -> output; provider: "torch", or a backend of gan_fast ("cpu", "auto")."""
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
    return lambda x, w, b: ours(x, w, b, backend=provider, **form)


def run_of(shape: LayerShape, provider: str, which: str, memory_format: torch.memory_format) -> Callable[[], Any]:
    """What is timed: one pass of the layer by one provider."""
    generator = torch.Generator().manual_seed(0)
    x, w, b = (
        torch.randn(size, generator=generator) * 0.1
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
    leaves = [x] if which == "input_grad" else [w, b]
    for leaf in leaves:
        leaf.requires_grad_()
    output = function(x, w, b)
    upstream = torch.ones_like(output)
    return lambda: torch.autograd.grad(output, leaves, upstream, retain_graph=True)


def measure(
    shape: LayerShape, provider: str, rounds: int, calibration: interleaved.Calibration
) -> list[dict[str, Any]]:
    """The layer's cells: medians in seconds of `provider` and of PyTorch, and PyTorch's best over the formats."""
    cells = []
    formats = FORMATS if shape.rank == 2 else {"NCL": torch.contiguous_format}
    for which in PASSES:
        programs = {
            f"{name} {layout}": run_of(shape, name, which, memory_format)
            for layout, memory_format in formats.items()
            for name in ("torch", provider)
        }
        first = interleaved.measure(programs, 1, calibration=calibration)
        shortest = min(result["seconds"] for result in first.values())
        repeats = max(1, math.ceil(SHORTEST_TURN / shortest))
        results = interleaved.measure(programs, rounds, 1, repeats, calibration)
        times = {name: result["seconds"] for name, result in results.items()}
        best = min(times[f"torch {layout}"] for layout in formats)
        for layout in formats:
            cells.append(
                {
                    "shape": shape.name,
                    "family": shape.family,
                    "op": OPERATOR_OF.get((shape.op, which), "conv_weight_grad"),
                    "pass": which,
                    "format": layout,
                    "gflop": 2e-9 * shape.macs,
                    "share": 2 * shape.macs / times[f"{provider} {layout}"] / calibration.peak,
                    "trusted": all(results[f"{name} {layout}"]["trusted"] for name in ("torch", provider)),
                    "ours": times[f"{provider} {layout}"],
                    "torch": times[f"torch {layout}"],
                    "torch_best": best,
                }
            )
    return cells


def geometric_mean(values: list[float]) -> float:
    """exp of the mean logarithm."""
    return math.exp(sum(math.log(value) for value in values) / len(values))


def line(cell: dict[str, Any]) -> str:
    """One cell as text."""
    ours, theirs = cell["ours"], cell["torch"]
    return (
        f"{cell['shape']:66s} {cell['pass']:11s} {cell['format']:13s} "
        f"{1e3 * ours:9.3f} {1e3 * theirs:9.3f} {cell['gflop'] / ours:7.0f} {100 * cell['share']:6.0f}% "
        f"{theirs / ours:6.2f}{'' if cell['trusted'] else '  disturbed'}"
    )


def summary(cells: list[dict[str, Any]]) -> str:
    """Geometric means by family and by operator, and the cells where PyTorch is faster."""
    lines = []
    for key in ("family", "op"):
        groups: dict[str, list[float]] = defaultdict(list)
        for cell in cells:
            groups[cell[key]].append(cell["torch"] / cell["ours"])
        for name, ratios in groups.items():
            slower = sum(ratio < 0.97 for ratio in ratios)
            lines.append(
                f"{key} {name:20s} x{geometric_mean(ratios):5.2f}  {slower:3d} of {len(ratios)} cells below 0.97"
            )
        if key == "family":
            lines.append(
                f"over families: x{geometric_mean([geometric_mean(ratios) for ratios in groups.values()]):.2f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, help="one family only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--served", action="store_true", help="measure what the automatic choice runs")
    parser.add_argument("--no-file", action="store_true", help="print only")
    arguments = parser.parse_args()
    provider = "auto" if arguments.served else "cpu"
    shapes = select(family=arguments.family)
    calibration = tuning.calibration()
    print(f"peak of {torch.get_num_threads()} threads: {1e-9 * calibration.peak:.0f} GF/s")
    print(
        f"{'layer':66s} {'pass':11s} {'format':13s} "
        f"{'ours ms':>9s} {'torch ms':>9s} {'GF/s':>7s} {'of peak':>7s} {'ratio':>6s}"
    )
    cells = []
    for shape in shapes:
        for cell in measure(shape, provider, arguments.rounds, calibration):
            cells.append(cell)
            print(line(cell), flush=True)
    print(summary(cells))
    if not arguments.no_file:
        path = machine.result_file()
        path = path.with_name(f"{path.stem}-layers-{provider}.json")
        content = {
            "machine": machine.describe(),
            "table": backends.table_hash(),
            "provider": provider,
            "peak_gflops": 1e-9 * calibration.peak,
            "cells": cells,
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(path.relative_to(machine.ROOT))


if __name__ == "__main__":
    main()
