"""How the kernels would split their work over more cores than this machine has: a model by counting tasks.

    python benchmarks/threads.py                           # all layers of gan_fast.suite; prints the summary
    python benchmarks/threads.py --family article_g --all  # every layer and pass

The drivers are asked for their plan (`_C.begin_plan`): the tasks of each parallel loop at a number of threads, and the
memory that all tasks share; nothing is computed. Tasks of a loop are alike, and none waits while a thread is free, so
with t tasks on n threads the loop takes as long as ceil(t / n) of them: "busy" is t / (n * ceil(t / n)) for the loop
that holds the products. Sums that tasks keep apart are added at the end; "sums" is their size, which must not grow with
the threads.
What the model leaves out: the memory's bandwidth, which more cores share, and unequal tasks at an image's edge.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch

from gan_fast import backends
from gan_fast.ops import OPERATORS, geometry
from gan_fast.suite.shapes import FAMILIES, LayerShape, select

THREADS = (1, 2, 16, 64)
PASSES = ("forward", "input_grad", "weight_grad")
MIB = 1 << 20
#: Ranges of sums are whole blocks: cutting them for more threads rounds up.
MOST_GROWTH = 1.5
#: Below this a cell is listed as one that does not scale.
WELL_BUSY = 0.75


def as_image(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(N, C, H, W); a sound (N, C, W) is an image of one row, as it is to the kernels."""
    return shape if len(shape) == 4 else (*shape[:2], 1, shape[2])


def empty(shape: tuple[int, ...]) -> torch.Tensor:
    """Memory that nobody touches, in the kernels' own format: copies from another would be loops too."""
    return torch.empty(as_image(shape), memory_format=torch.channels_last)


def plan(shape: LayerShape, which: str, threads: int) -> dict[str, Any]:
    """The plan of one pass of a layer with so many threads."""
    transposed = shape.op == "conv_transpose"
    sizes = shape.input_shape, shape.weight_shape
    if transposed:
        found = geometry.resolve_conv_transpose(
            *sizes, shape.stride, shape.padding, shape.output_padding, 1, shape.dilation
        )
    else:
        found = geometry.resolve_conv(*sizes, shape.stride, shape.padding, shape.dilation, 1)
    assert found is not None, shape.name
    lines = 2 - shape.rank  # axes that an image has more
    stride, dilation = [*(1,) * lines, *found.stride], [*(1,) * lines, *found.dilation]
    begin, out_size = [*(0,) * lines, *found.pad_begin], [*(1,) * lines, *found.out_size]
    x, weight = empty(shape.input_shape), torch.empty(as_image(shape.weight_shape))
    y = empty((shape.batch, shape.out_channels, *out_size[-shape.rank :]))
    common = (stride, begin, dilation, found.groups)
    rest = (None, "none", 0.01)
    module = backends.extension()
    assert module is not None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    module.begin_plan()
    try:
        if which == "weight_grad":
            OPERATORS["conv_weight_grad"](x, y, list(weight.shape[2:]), *common, transposed, False, *rest, False, "cpu")
        else:
            forward = which == "forward"
            op = "conv_transpose" if transposed == forward else "conv"
            source, size = (x, out_size) if forward else (y, list(x.shape[2:]))
            OPERATORS[op](source, weight, None, *common, size, "none", 0.01, *rest, "cpu")
    finally:
        made = module.end_plan()
        torch.set_num_threads(before)
    # A convolution packs its weights first; a weight gradient adds its partial sums last.
    made["products"] = made["loops"][0 if which == "weight_grad" else -1]
    return made


def busy(tasks: int, threads: int) -> float:
    """Share of the threads' time in which they work at a loop of equal tasks."""
    return tasks / (threads * math.ceil(tasks / threads))


def rows(shapes: list[LayerShape]) -> list[dict[str, Any]]:
    """One row for each layer and pass: its plans by number of threads."""
    return [
        {"shape": shape, "pass": which, "plans": {threads: plan(shape, which, threads) for threads in THREADS}}
        for shape in shapes
        if shape.op in ("conv", "conv_transpose")
        for which in PASSES
    ]


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    cells = []
    for threads, made in row["plans"].items():
        cells.append(f"{made['products']:6d} {100 * busy(made['products'], threads):4.0f}%")
    sums = [made["partial_sums"] / MIB for made in row["plans"].values()]
    return f"{row['shape'].name:66s} {row['pass']:11s} {'  '.join(cells)}  {max(sums):6.1f}"


def growth(row: dict[str, Any], name: str) -> float:
    """Most memory of a kind that any number of threads shares, against one thread's."""
    return max(made[name] for made in row["plans"].values()) / max(row["plans"][1][name], 1)


def summary(found: list[dict[str, Any]]) -> str:
    """How many cells keep the threads busy, and whether shared memory grows with them."""
    lines = []
    for threads in THREADS:
        shares = [busy(row["plans"][threads]["products"], threads) for row in found]
        few = sum(share < WELL_BUSY for share in shares)
        mean = sum(shares) / len(shares)
        lines.append(
            f"{threads:3d} threads: busy {100 * mean:.0f} % on average, {few} of {len(found)} cells below 75 %"
        )
    for name in ("partial_sums", "shared_weights"):
        growing = [row for row in found if growth(row, name) > MOST_GROWTH]
        largest = max(made[name] for row in found for made in row["plans"].values())
        lines.append(
            f"{name}: at most {largest / MIB:.1f} MiB; "
            f"more than {MOST_GROWTH}x as much with more threads in {len(growing)} cells"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, help="one family only")
    parser.add_argument("--all", action="store_true", help="print every layer and pass, not only the badly split ones")
    arguments = parser.parse_args()
    found = rows(select(family=arguments.family))
    head = "  ".join(f"{f'{threads} threads':>12s}" for threads in THREADS)
    print(f"{'layer':66s} {'pass':11s} {head}  {'sums MiB':>6s}   (tasks, busy)")
    for row in found:
        if arguments.all or busy(row["plans"][16]["products"], 16) < WELL_BUSY:
            print(line(row))
    print(summary(found))


if __name__ == "__main__":
    main()
