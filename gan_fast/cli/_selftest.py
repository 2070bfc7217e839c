"""The numeric self-test of ``gan-fast doctor``: every operator, forward and backward, on every backend and CPU level.

Each case is computed three times: by gan_fast on the backend under test (float32), by PyTorch in float32, and by
PyTorch in float64, which counts as the truth. The error of a result is the largest absolute difference from the truth,
over the largest absolute value of the truth. A case is in order if gan_fast's error is at most twice PyTorch's, where
errors below 8 units of float32's precision (9.5e-7) count as that: so small an error is luck, not merit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast import backends, functional

LARGEST_RATIO = 2.0
SMALLEST_ERROR = 8 * torch.finfo(torch.float32).eps

# One call: tensors in, a tensor out. The first element of a pair is gan_fast's, the second PyTorch's.
Call = Callable[..., Tensor]


class Result(NamedTuple):
    """One case on one backend: its name, the worst ratio of errors over its results, what failed ("" if nothing)."""

    backend: str
    level: str
    case: str
    ratio: float
    problem: str

    @property
    def ok(self) -> bool:
        """Whether every result of the case was within the bound."""
        return not self.problem


class Case(NamedTuple):
    """A call in gan_fast's words and in PyTorch's, and the shapes of the tensors that are differentiated."""

    name: str
    ours: Call
    plain: Call
    shapes: tuple[tuple[int, ...], ...]


def _activate(y: Tensor, name: str | None) -> Tensor:
    """PyTorch's form of the fused activation."""
    if name is None:
        return y
    return F.leaky_relu(y, 0.2) if name == "leaky_relu" else getattr(torch, name)(y)


def _convolution(
    name: str, input: tuple[int, ...], weight: tuple[int, ...], activation: str | None = None, **geometry: int
) -> Case:
    """A case of functional.<name>; `geometry` are its keyword arguments, with their names in PyTorch."""
    ours, plain = getattr(functional, name), getattr(F, name)
    transposed = "transpose" in name
    channels = weight[1] * geometry.get("groups", 1) if transposed else weight[0]
    details = " ".join(f"{key}={value}" for key, value in geometry.items())
    kernel = "x".join(str(k) for k in weight[2:])
    return Case(
        f"{name} {input[1]}->{channels} k{kernel} {details}{f' {activation}' if activation else ''}".replace("  ", " "),
        lambda x, w, b: ours(x, w, b, **geometry, activation=activation, negative_slope=0.2),
        lambda x, w, b: _activate(plain(x, w, b, **geometry), activation),
        (input, weight, (channels,)),
    )


def _bias_act(activation: str) -> Case:
    return Case(
        f"bias_act {activation}",
        lambda x, b: functional.bias_act(x, b, activation=activation, negative_slope=0.2),
        lambda x, b: _activate(x + b.view(1, -1, 1, 1), activation),
        ((3, 5, 7, 9), (5,)),
    )


def _batch_norm(activation: str | None) -> Case:
    return Case(
        f"batch_norm {activation}" if activation else "batch_norm",
        lambda x, w, b: functional.batch_norm(
            x, None, None, w, b, training=True, activation=activation, negative_slope=0.2
        ),
        lambda x, w, b: _activate(F.batch_norm(x, None, None, w, b, training=True), activation),
        ((3, 21, 7, 9), (21,), (21,)),
    )


def _linear(rows: int, inputs: int, outputs: int, activation: str | None = None) -> Case:
    return Case(
        f"linear {inputs}->{outputs}{f' {activation}' if activation else ''}",
        lambda x, w, b: functional.linear(x, w, b, activation=activation, negative_slope=0.2),
        lambda x, w, b: _activate(F.linear(x, w, b), activation),
        ((rows, inputs), (outputs, inputs), (outputs,)),
    )


def _bce(target: float, reduction: str) -> Case:
    return Case(
        f"binary_cross_entropy_with_logits target={target:g} {reduction}",
        lambda x: functional.binary_cross_entropy_with_logits(x, target, reduction=reduction),
        lambda x: F.binary_cross_entropy_with_logits(x, torch.full_like(x, target), reduction=reduction),
        ((131, 3),),
    )


def cases() -> list[Case]:
    """The cases: each operator, sizes that do not divide by any vector, few and many channels, every activation."""
    return [
        _convolution("conv2d", (2, 19, 11, 9), (37, 19, 3, 3), stride=2, padding=1),
        _convolution("conv2d", (2, 16, 12, 12), (16, 16, 5, 5), "leaky_relu", stride=2, padding=2),
        _convolution("conv2d", (2, 33, 9, 8), (1, 33, 7, 7), "tanh", padding=3),
        _convolution("conv2d", (3, 1, 14, 14), (24, 1, 5, 5), "relu", stride=2, padding=2),
        _convolution("conv2d", (2, 8, 13, 10), (12, 4, 3, 3), padding=2, dilation=2, groups=2),
        _convolution("conv1d", (2, 17, 45), (18, 17, 9), "relu", stride=4, padding=4),
        _convolution(
            "conv_transpose2d", (2, 32, 7, 7), (32, 17, 5, 5), "leaky_relu", stride=2, padding=2, output_padding=1
        ),
        _convolution("conv_transpose2d", (2, 20, 5, 6), (20, 16, 4, 4), "sigmoid", stride=2, padding=1),
        _convolution("conv_transpose2d", (2, 35, 6, 5), (35, 1, 4, 4), "tanh", stride=2, padding=1),
        _convolution("conv_transpose2d", (2, 8, 5, 5), (8, 6, 3, 3), stride=3, dilation=2, groups=2),
        _convolution("conv_transpose1d", (2, 16, 11), (16, 9, 25), "relu", stride=4, padding=11, output_padding=1),
        _linear(5, 100, 67, "leaky_relu"),
        _linear(7, 331, 1),
        *(_bias_act(name) for name in ("relu", "leaky_relu", "tanh", "sigmoid")),
        *(_batch_norm(name) for name in (None, "relu", "leaky_relu", "tanh", "sigmoid")),
        *(_bce(target, reduction) for target in (0.0, 1.0, 0.9) for reduction in ("mean", "none")),
    ]


def targets() -> list[tuple[str, str]]:
    """(backend, CPU level) pairs that can run here; the level is "" for backends without one."""
    module = backends.extension()
    found = [("reference", "")]
    if module is not None:
        found += [("cpu", level) for level in module.isa_levels()]
    return found


def _results(call: Call, tensors: list[Tensor], upstream: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Forward result and the gradients of its product with `upstream` (made here if None, from the result's shape)."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = call(*leaves)
    if upstream is None:
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(y, leaves, upstream.to(y.dtype))
    return [y.detach(), *gradients], upstream


def _error(result: Tensor, truth: Tensor) -> float:
    scale = truth.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((result.double() - truth).abs().max() / scale)


def _check(case: Case) -> tuple[float, str]:
    """(worst ratio of errors, what failed) of a case on the backend and level in force."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5 for shape in case.shapes]
    single = [t.float() for t in tensors]
    truths, upstream = _results(case.plain, [t.double() for t in single], None)
    plain, _ = _results(case.plain, single, upstream)
    ours, _ = _results(case.ours, single, upstream)
    names = ["output", *(f"gradient {i}" for i in range(len(tensors)))]
    worst, problems = 0.0, []
    for name, mine, theirs, truth in zip(names, ours, plain, truths, strict=True):
        if mine.shape != truth.shape:
            problems.append(f"{name}: shape {tuple(mine.shape)}, expected {tuple(truth.shape)}")
            continue
        error = _error(mine, truth)
        ratio = error / max(_error(theirs, truth), SMALLEST_ERROR)
        worst = max(worst, ratio)
        if not ratio <= LARGEST_RATIO:  # NaN fails too
            problems.append(f"{name}: error {error:.2e}, {ratio:.1f} times PyTorch's")
            worst = ratio
    return worst, "; ".join(problems)


def run() -> Iterator[Result]:
    """Every case on every backend and level that can run here, one Result after the other."""
    module = backends.extension()
    level_before = module.isa() if module is not None else ""
    try:
        for backend, level in targets():
            if module is not None and level:
                module.set_isa(level)
            for case in cases():
                try:
                    with backends.use_backend(backend):
                        ratio, problem = _check(case)
                except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
                    ratio, problem = float("nan"), f"{type(error).__name__}: {error}"
                yield Result(backend, level, case.name, ratio, problem)
    finally:
        if module is not None:
            module.set_isa(level_before)
