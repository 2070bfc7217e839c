"""One layer of shapes.py in its three passes: PyTorch's call, our kernels', their check, both times.

All calls are below autograd, so that a pass is that pass alone; only upsample_conv, which PyTorch has as two
operations, goes through autograd on both sides. On CUDA the times are the device's own (runs captured as a graph).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gan_fast.suite.shapes import LayerShape

from .device import DTYPES, Settings, kernel_time, lay, normal, precision, tidy
from .journal import Row, row
from .verdicts import judge, raw_kernels, truncated, uses_kernels

PASSES = ("forward", "input_grad", "weight_grad")
Calls = dict[str, Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A layer's numbers: input, weight, bias, and the gradient that comes back."""

    x: Tensor
    w: Tensor
    b: Tensor
    g: Tensor

    def to(self, change: Callable[[Tensor], Tensor]) -> Problem:
        """All tensors changed in one way."""
        return Problem(*(change(tensor) for tensor in (self.x, self.w, self.b, self.g)))


def problem(shape: LayerShape, settings: Settings, name: str, layout: str) -> Problem:
    """Random numbers, always the same, in a precision's type and a memory format."""
    taps = math.prod(shape.weight_shape[1:])
    made = Problem(
        normal(settings, shape.input_shape, 1),
        normal(settings, shape.weight_shape, 2, taps**-0.5),
        normal(settings, (shape.out_channels,), 3),
        normal(settings, (shape.batch, shape.out_channels, *shape.output_size), 4),
    )
    return made.to(lambda tensor: lay(tensor.to(DTYPES[name]), layout))


def _by_autograd(function: Callable[[Tensor, Tensor, Tensor], Tensor], p: Problem) -> Calls:
    x, w, b = (tensor.detach().requires_grad_() for tensor in (p.x, p.w, p.b))
    output = function(x, w, b)

    def forward() -> Tensor:
        with torch.no_grad():
            return function(x, w, b)

    return {
        "forward": forward,
        "input_grad": lambda: torch.autograd.grad(output, [x], p.g, retain_graph=True)[0],
        "weight_grad": lambda: torch.autograd.grad(output, [w, b], p.g, retain_graph=True),
    }


def by_torch(shape: LayerShape, p: Problem) -> Calls:
    """PyTorch's passes."""
    rank = shape.rank
    if shape.op == "upsample_conv":
        plain = getattr(torch.nn.functional, f"conv{rank}d")
        form = {"stride": shape.stride, "padding": shape.padding, "dilation": shape.dilation}
        return _by_autograd(lambda x, w, b: plain(torch.nn.functional.interpolate(x, scale_factor=2), w, b, **form), p)
    transposed = shape.op == "conv_transpose"
    each = [[value] * rank for value in (shape.stride, shape.padding, shape.dilation, shape.output_padding)]
    arguments = (each[0], each[1], each[2], transposed, each[3], 1)
    forward, backward = torch.ops.aten.convolution, torch.ops.aten.convolution_backward
    return {
        "forward": lambda: forward(p.x, p.w, p.b, *arguments),
        "input_grad": lambda: backward(p.g, p.x, p.w, None, *arguments, [True, False, False])[0],
        "weight_grad": lambda: backward(p.g, p.x, p.w, [shape.out_channels], *arguments, [False, True, True])[1:],
    }


def by_operators(shape: LayerShape, p: Problem, backend: str) -> Calls:
    """Our passes, by the registered operators on a backend."""
    from gan_fast import functional
    from gan_fast.ops import OPERATORS

    rank = shape.rank
    if shape.op == "upsample_conv":
        ours = getattr(functional, f"upsample_conv{rank}d")
        form = {"stride": shape.stride, "padding": shape.padding, "dilation": shape.dilation, "backend": backend}
        return _by_autograd(lambda x, w, b: ours(x, w, b, **form), p)
    transposed = shape.op == "conv_transpose"
    there, back = ("conv_transpose", "conv") if transposed else ("conv", "conv_transpose")
    form_of_both = ([shape.stride] * rank, [shape.padding] * rank, [shape.dilation] * rank, 1)
    rest = ("none", 0.01, None, "none", 0.01, backend)
    last = rank == 2 and p.w.is_contiguous(memory_format=torch.channels_last)  # the gradient lies as the weight does

    def quietly(operator: str, *arguments: Any) -> Any:
        with torch.no_grad():
            return OPERATORS[operator](*arguments)

    return {
        "forward": lambda: quietly(there, p.x, p.w, p.b, *form_of_both, list(shape.output_size), *rest),
        "input_grad": lambda: quietly(back, p.g, p.w, None, *form_of_both, list(shape.size), *rest),
        "weight_grad": lambda: quietly(
            "conv_weight_grad", p.x, p.g, list(shape.kernel), *form_of_both, transposed, True, None, "none", 0.01,
            last, backend,
        ),
    }  # fmt: skip


def cost(shape: LayerShape, name: str) -> dict[str, float]:
    """Floating-point operations of a pass, and the bytes it cannot do without; the same for all three."""
    sizes = [math.prod(shape.input_shape), math.prod(shape.weight_shape)]
    sizes.append(shape.batch * shape.out_channels * math.prod(shape.output_size))
    return {"flops": 2.0 * shape.macs, "bytes": float(sum(sizes) * DTYPES[name].itemsize)}


def measure_torch(shape: LayerShape, settings: Settings, name: str, layout: str) -> list[Row]:
    """Times of PyTorch's three passes."""
    with precision(name):
        calls = by_torch(shape, problem(shape, settings, name, layout))
        rows = []
        for which in PASSES:
            timing = kernel_time(calls[which], settings)
            facts = {"layer": shape.name, "family": shape.family, "pass": which, "layout": layout, "program": "torch"}
            what = f"{shape.name} {which} torch {layout}"
            rows.append(
                row(what, check="baseline", dtype=name, batch=shape.batch, **timing.fields(), **facts,
                    **cost(shape, name))
            )  # fmt: skip
    return rows


def check_ours(shape: LayerShape, settings: Settings, name: str) -> list[Row]:
    """Our three passes against float64, on the very shape, so with the very binaries that are timed."""
    tidy(settings)
    given = problem(shape, settings, name, "channels_last")
    with precision(name):
        ours, theirs = by_operators(shape, given, "triton"), by_torch(shape, given)
        exact = by_torch(shape, given.to(lambda tensor: tensor.double()))
        ideal = by_torch(shape, given.to(truncated).to(lambda tensor: tensor.double())) if name == "tf32" else None
        rows = []
        for which in PASSES:
            with raw_kernels(), uses_kernels() as used:
                mine = ours[which]()
            verdict = judge(mine, exact[which](), theirs[which](), None if ideal is None else ideal[which](), used)
            what = f"{shape.name} {which}"
            rows.append(row(what, check=verdict.check, dtype=name, batch=shape.batch, **verdict.fields()))
    return rows


def measure_ours(shape: LayerShape, settings: Settings, name: str) -> list[Row]:
    """Times of our three passes; the checks were green."""
    with precision(name):
        calls = by_operators(shape, problem(shape, settings, name, "channels_last"), "triton")
        rows = []
        for which in PASSES:
            calls[which]()  # the check at first use launches kernels too
            with uses_kernels() as used:
                calls[which]()
            if used.launches == 0:
                what = f"{shape.name} {which} triton"
                reason = "the check at first use was not passed: PyTorch serves"
                rows.append(row(what, check="red", dtype=name, batch=shape.batch, state="failed", reason=reason))
                continue
            timing = kernel_time(calls[which], settings)
            facts = {"layer": shape.name, "family": shape.family, "pass": which, "layout": "channels_last"}
            what = f"{shape.name} {which} triton"
            rows.append(
                row(what, check="green", dtype=name, batch=shape.batch, program="triton", launches=used.launches,
                    **timing.fields(), **facts, **cost(shape, name))
            )  # fmt: skip
    return rows
