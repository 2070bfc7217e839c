"""What the benchmarks share: which shapes, which providers, and that a wrong result gets no time.

Each operator's benchmark runs one call of `gan_fast.functional` (backend "cpu") and the same call of PyTorch, in three
modes:

* forward: the call, nothing recorded;
* backward: the gradients of all its tensors, on a graph recorded beforehand;
* full: both, as a training step has them.

By default one shape of each family is measured, the one in the middle by its amount of work; GAN_FAST_BENCH=all takes
all, here and for whatever else has more places than a short run can visit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from gan_fast import backends
from gan_fast.suite import steps
from gan_fast.suite.layers import call
from gan_fast.suite.shapes import FAMILIES, LayerShape, select

MODES = ("forward", "backward", "full")
PROVIDERS = ("gan_fast", "torch")
# As the tests have it: at most twice PyTorch's own error, errors below 8 units of float32's precision count as that.
LARGEST_RATIO = 2.0
SMALLEST_ERROR = 8 * torch.finfo(torch.float32).eps

Call = Callable[..., Tensor]
T = TypeVar("T")


def some(places: Sequence[T], wanted: Sequence[T]) -> list[T]:
    """All of the places if GAN_FAST_BENCH=all, else those that are wanted."""
    return [place for place in places if os.environ.get("GAN_FAST_BENCH") == "all" or place in wanted]


def chosen_shapes(op: str) -> list[LayerShape]:
    """The shapes to measure `op` on (see the module's text)."""
    by_family = (sorted(select(family=family, op=op), key=lambda shape: shape.macs) for family in FAMILIES)
    return some(select(op=op), [shapes[len(shapes) // 2] for shapes in by_family if shapes])


def convolution(shape: LayerShape, provider: str) -> Call:
    """The layer's call (input, weight, bias) -> output, by this provider."""
    return call(shape, "torch" if provider == "torch" else "cpu")


def convolution_tensors(shape: LayerShape) -> list[Tensor]:
    """Input, weight and bias of a layer, random, always the same."""
    generator = torch.Generator().manual_seed(0)
    sizes = (shape.input_shape, shape.weight_shape, (shape.out_channels,))
    return [torch.randn(size, generator=generator) * 0.1 for size in sizes]


def measure(
    benchmark: Any, group: str, mode: str, provider: str, call: Call, plain: Call, tensors: Sequence[Tensor],
    wanted: Sequence[int] | None = None, **facts: Any,
) -> None:  # fmt: skip
    """Check the provider's result against float64, then time it.

    Args:
        benchmark: pytest-benchmark's fixture.
        group: what is compared with what: results of one group stand together.
        mode: one of MODES.
        provider: one of PROVIDERS.
        call: what is timed: `tensors` -> output.
        plain: the same by PyTorch, the truth when run in float64.
        tensors: float32.
        wanted: indices of the tensors to differentiate; None takes all.
        facts: stored with the figures.
    """
    if provider == "gan_fast":
        usable, reason = backends.available()["cpu"]
        if not usable:
            pytest.skip(reason)
        _require_right(call, plain, tensors, wanted)
    benchmark.group = f"{group} {mode}"
    benchmark.extra_info.update({"provider": provider, "mode": mode, **facts})
    leaves, inputs = _leaves(tensors, wanted)
    if mode == "forward":
        with torch.no_grad():
            benchmark(call, *tensors)
        return
    output = call(*inputs)
    upstream = torch.ones_like(output)
    if mode == "backward":
        benchmark(lambda: torch.autograd.grad(output, leaves, upstream, retain_graph=True))
    else:
        benchmark(lambda: torch.autograd.grad(call(*inputs), leaves, upstream))


def measure_step(
    benchmark: Any, group: str, program: str, recipes: Mapping[str, Callable[[], Callable[[], Any]]], images: int,
    **facts: Any,
) -> None:  # fmt: skip
    """Compare the losses of the program's first step with the baseline's, then time its steps.

    Args:
        benchmark: pytest-benchmark's fixture.
        group: what is compared with what.
        program: which of the recipes.
        recipes: as :func:`gan_fast.suite.steps.recipes` gives them.
        images: in a step's batch.
        facts: stored with the figures.
    """
    programs = {name: recipes[name]() for name in dict.fromkeys((steps.BASELINE, program))}
    wrong = steps.differences(steps.first_losses(programs))
    assert not wrong, wrong
    run = programs.pop(program)
    programs.clear()  # the baseline's memory is not the program's
    benchmark.group = group
    benchmark.extra_info.update({"program": program, **facts})
    time_images(benchmark, run, images)


def time_images(benchmark: Any, run: Callable[[], Any], images: int) -> None:
    """Time what works on so many images, and store their rate beside it."""
    benchmark(run)
    if benchmark.stats is not None:  # with --benchmark-disable there are none
        rate = images / benchmark.stats.stats.median
        benchmark.extra_info.update({"images": images, "images_per_second": rate})


def _leaves(tensors: Sequence[Tensor], wanted: Sequence[int] | None) -> tuple[list[Tensor], list[Tensor]]:
    """(the tensors to differentiate, all tensors), fresh."""
    inputs = [tensor.detach().clone() for tensor in tensors]
    leaves = [inputs[i].requires_grad_() for i in (range(len(inputs)) if wanted is None else wanted)]
    return leaves, inputs


def _require_right(call: Call, plain: Call, tensors: Sequence[Tensor], wanted: Sequence[int] | None) -> None:
    """Output and gradients err at most LARGEST_RATIO times as much as PyTorch's; no figure for a wrong result."""

    def results(function: Call, dtype: torch.dtype) -> list[Tensor]:
        leaves, inputs = _leaves([tensor.to(dtype) for tensor in tensors], wanted)
        output = function(*inputs)
        return [output.detach(), *torch.autograd.grad(output, leaves, torch.ones_like(output))]

    truths = results(plain, torch.float64)
    for mine, theirs, truth in zip(results(call, torch.float32), results(plain, torch.float32), truths, strict=True):
        scale = truth.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        error, torchs = (float((t.double() - truth).abs().max() / scale) for t in (mine, theirs))
        assert error <= LARGEST_RATIO * max(torchs, SMALLEST_ERROR), (
            f"wrong result: error {error:.2e}, PyTorch's {torchs:.2e}"
        )
