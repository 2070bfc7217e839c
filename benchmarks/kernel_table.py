"""The kernels that an article's step lives on, pass by pass and image width by image width: time, rate, error.

    python benchmarks/kernel_table.py                       # float32; writes a result file
    python benchmarks/kernel_table.py --precision bf16 --rounds 9

The rate counts the products of the direct algorithm, whatever algorithm ran, and is also given as a share of the peak
that multiply-adds reached here (bf16: of twice float32's, which is what the instruction for pairs of bf16 does; matrix
registers do more). Batches are chosen so that all widths have about as many pixels. PyTorch's time is that of its
faster memory format. An error is the root mean square of the difference from float64, over that of the result, on one
batch of at most 16 with normally distributed operands.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import machine
import torch
from torch import Tensor

from gan_fast import tuning
from gan_fast.bench import interleaved
from gan_fast.suite import layers
from gan_fast.suite.shapes import LayerShape

LAYERS = {
    "convT 128->128 k5 s2": LayerShape("article", "conv_transpose", 128, 128, (5, 5), 2, 2, 1, (14, 14), 128),
    "conv 128->1 k7": LayerShape("article", "conv", 128, 1, (7, 7), 1, 3, 0, (28, 28), 128),
    "conv 128->128 k3 s2": LayerShape("article", "conv", 128, 128, (3, 3), 2, 1, 0, (14, 14), 256),
}
WIDTHS = (9, 17, 31, 100)
ERROR_BATCH = 16  # enough for the algorithm that whole batches take
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHORTEST = 0.02  # seconds that a turn lasts at least


def at_width(shape: LayerShape, width: int) -> LayerShape:
    """The layer on images of another width, with about as many pixels in all."""
    pixels = shape.batch * shape.size[0] * shape.size[1]
    return dataclasses.replace(shape, size=(width, width), batch=max(1, round(pixels / width**2)))


def error(shape: LayerShape, which: str, provider: str, dtype: torch.dtype) -> float:
    """Root mean square error of one pass, relative to the result's."""
    generator = torch.Generator().manual_seed(1)
    sizes = (min(ERROR_BATCH, shape.batch), *shape.input_shape[1:]), shape.weight_shape, (shape.out_channels,)
    operands = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    upstream: Tensor | None = None

    def result(function: Any, to: torch.dtype) -> Tensor:
        nonlocal upstream
        leaves = [
            operand.to(to, memory_format=torch.channels_last if operand.dim() == 4 else torch.preserve_format)
            .clone()
            .requires_grad_()
            for operand in operands
        ]
        out = function(*leaves)
        if which == "forward":
            return out.detach()
        if upstream is None:
            upstream = torch.randn(out.shape, generator=generator).to(dtype)
        return torch.autograd.grad(out, leaves[0 if which == "input_grad" else 1], upstream.to(to))[0]

    exact = result(layers.call(shape, "torch"), torch.float64)
    got = result(layers.call(shape, provider), dtype).double()
    return ((got - exact).square().mean().sqrt() / exact.square().mean().sqrt()).item()


def cell(
    shape: LayerShape, which: str, dtype: torch.dtype, rounds: int, calibration: interleaved.Calibration
) -> dict[str, Any]:
    """One layer, width and pass; SystemExit, and no time, where the result is wrong."""
    errors = {provider: error(shape, which, provider, dtype) for provider in ("auto", "torch")}
    if not errors["auto"] <= layers.LARGEST_DIFFERENCE[dtype]:
        raise SystemExit(f"{shape.name} {which}: an error of {errors['auto']:.1e}, PyTorch's is {errors['torch']:.1e}")
    runs = {
        f"{provider} {name}": layers.run_of(shape, provider, which, layout, dtype)
        for provider, name, layout in (
            ("auto", "channels_last", torch.channels_last),
            ("torch", "channels_last", torch.channels_last),
            ("torch", "NCHW", torch.contiguous_format),
        )
    }
    _, served = tuning.served(runs["auto channels_last"])
    once = interleaved.measure(runs, 1, calibration=calibration)
    repeats = max(1, round(SHORTEST / min(found["seconds"] for found in once.values())))
    times = interleaved.measure(runs, rounds, repeats=repeats, calibration=calibration)
    ours = times["auto channels_last"]["seconds"]
    rate = 2 * shape.macs / ours
    peak = calibration.peak * (2 if dtype == torch.bfloat16 else 1)
    return {
        "pass": which,
        "width": shape.size[1],
        "batch": shape.batch,
        "served": bool(served),
        "seconds": ours,
        "torch_seconds": min(found["seconds"] for name, found in times.items() if name.startswith("torch")),
        "rate": rate,
        "share": rate / peak,
        "error": errors["auto"],
        "torch_error": errors["torch"],
        "times": times,
    }


def table(name: str, cells: list[dict[str, Any]]) -> str:
    """The figures of one layer as text; the first width is the article's."""
    lines = [
        f"{name:22s} {'width':>5s} {'batch':>5s} {'ms':>7s} {'GF/s':>6s} {'of peak':>7s} {'per pixel':>9s} "
        f"{'x torch':>7s} {'error':>8s} {'torch':>8s}"
    ]
    for which in layers.PASSES:
        own = [each for each in cells if each["pass"] == which]
        for each in own:
            lines.append(
                f"{which:22s} {each['width']:5d} {each['batch']:5d} {1e3 * each['seconds']:7.2f} "
                f"{each['rate'] / 1e9:6.0f} {each['share']:7.0%} {each['rate'] / own[0]['rate']:9.0%} "
                f"{each['torch_seconds'] / each['seconds']:7.2f} {each['error']:8.1e} {each['torch_error']:8.1e}"
                + ("" if each["served"] else "  (PyTorch's)")
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each program")
    parser.add_argument("--no-file", action="store_true", help="print only")
    arguments = parser.parse_args()
    dtype, calibration = DTYPES[arguments.precision], tuning.calibration()
    found = {}
    for name, shape in LAYERS.items():
        shapes = [shape, *(at_width(shape, width) for width in WIDTHS)]
        found[name] = [
            cell(each, which, dtype, arguments.rounds, calibration) for each in shapes for which in layers.PASSES
        ]
        print(table(name, found[name]) + "\n", flush=True)
    if not arguments.no_file:
        path = machine.result_file()
        path = path.with_name(f"{path.stem}-kernels-{arguments.precision}.json")
        content = {"machine": machine.describe(), "precision": arguments.precision, "layers": found}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(path.relative_to(machine.ROOT))


if __name__ == "__main__":
    main()
