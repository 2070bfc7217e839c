"""What the shipped rules are made from: every operator call of the layer list, our backends against PyTorch, plain and
with an activation; and what the rules in force make of such figures.

    python benchmarks/choice.py measure FILE.json     # minutes, on a quiet machine
    python benchmarks/choice.py measure FILE.json --precision bf16
    python benchmarks/choice.py judge FILE.json       # calls served, calls lost, gains left to PyTorch

A call is measured for itself, since each pass of a layer is chosen for itself (see gan_fast.ops.convolution_choice):
a layer's forward pass may be PyTorch's while its weight gradient is ours. With an activation PyTorch needs a second
operation in every pass, so such calls have figures of their own.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan_fast import choice_table, tuning
from gan_fast.ops.registry import OPERATORS
from gan_fast.suite import layers, shapes
from gan_fast.suite.shapes import LayerShape

#: Under so many MFLOP every rule says PyTorch.
SMALLEST = 4.0
#: A call is lost, or a gain left, beyond this.
MARGIN = 0.03


def record(listed: Iterable[LayerShape], dtype: torch.dtype = torch.float32) -> Iterator[tuning.Call]:
    """The different operator calls of these layers: every pass, memory format, with leaky_relu or without, and with the
    weights as PyTorch makes them or (the image in channels_last, no activation) in channels_last like the image."""
    seen = set()
    for shape in listed:
        if shape.op == "upsample_conv" or 2e-6 * shape.macs < SMALLEST:
            continue
        for name in layers.FORMATS if shape.rank == 2 else ("NCHW",):
            plain = [(None, False)] if name != "channels_last" else [(None, False), (None, True)]
            fused = [("leaky_relu", False)] if name == "channels_last" or shape.rank == 1 else []
            for activation, weight_last in [*plain, *fused]:
                passes = functools.partial(_passes, shape, layers.FORMATS[name], activation, weight_last, dtype)
                for call in tuning.record(passes):
                    key = choice_table.key(call.op, call.facts)
                    if call.op in ("conv", "conv_transpose", "conv_weight_grad") and key not in seen:
                        seen.add(key)
                        yield call


def _passes(
    shape: LayerShape,
    memory_format: torch.memory_format,
    activation: str | None,
    weight_last: bool,
    dtype: torch.dtype,
) -> None:
    """The layer, forward and backward."""
    options: dict[str, Any] = {} if activation is None else {"activation": activation, "negative_slope": 0.2}

    def ready(size: tuple[int, ...]) -> Tensor:
        made = torch.randn(size).to(dtype) * 0.1
        return (made.to(memory_format=memory_format) if shape.rank == 2 else made).requires_grad_()

    weight = torch.randn(shape.weight_shape).to(dtype) * 0.1
    if weight_last:
        weight = weight.to(memory_format=torch.channels_last)
    tensors = ready(shape.input_shape), weight.requires_grad_()
    y = layers.call(shape, "auto", **options)(
        *tensors, torch.zeros(shape.out_channels, dtype=dtype, requires_grad=True)
    )
    upstream = torch.randn(y.shape).to(y.dtype)
    y.backward(upstream.to(memory_format=memory_format) if shape.rank == 2 else upstream)


def judge(path: Path) -> str:
    """The rules in force against the figures of a file that `measure` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    level = content["machine"]["level"]
    served, lost, left = 0, [], []
    for cell in content["cells"]:
        backend = choice_table.by_rule(cell["op"], cell["facts"], level).backend
        seconds = cell["seconds"]
        theirs, best = seconds["torch"], min(seconds, key=lambda name: seconds[name])
        ours = seconds[best if backend == "torch" else backend]
        known = ("mflop", "in_channels", "out_channels", "kernel", "stride", "batch", "channels_last", "fused")
        facts = " ".join(f"{name}={cell['facts'][name]:g}" for name in known)
        times = ", ".join(f"{name} {1e3 * took:.2f} ms" for name, took in seconds.items())
        line = f"{theirs / ours:5.2f} {backend}: {times}  {cell['op']} {facts}"
        served += backend != "torch"
        if theirs < (1 - MARGIN) * ours:
            lost.append(line)
        if seconds[best] < (1 - MARGIN) * min(theirs, ours if backend != "torch" else theirs):
            left.append(line)
    said = f"{len(content['cells'])} calls, {served} served by kernels, {len(lost)} lost, {len(left)} gains left"
    return "\n".join(
        ["lost:", *sorted(lost), "left to PyTorch, or to the slower of our backends:", *sorted(left), said]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "judge"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of the calls (%(default)s)")
    parser.add_argument("--family", help="of the layer list; all if left out")
    args = parser.parse_args()
    if args.what == "measure":
        dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        calls = list(record(shapes.select(family=args.family), dtype))
        print(f"{len(calls)} calls of {len(OPERATORS)} operators")
        cells = tuning.measure(calls, args.rounds, lambda cell: print(f"{cell.gain:5.2f} {cell.best} {cell.call.text}"))
        tuning.save(cells, args.file)
    print(judge(args.file))


if __name__ == "__main__":
    main()
