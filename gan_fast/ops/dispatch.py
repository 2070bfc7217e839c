"""The way of a call: straight to torch.nn.functional, or into one of our operators.

Here lie the rules that hold for every function of :mod:`gan_fast.functional`; that module has the signatures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

from gan_fast import backends, choice_table
from gan_fast.choice_table import Choice
from gan_fast.ops import activation as activations
from gan_fast.ops import geometry as geometries
from gan_fast.ops import layout
from gan_fast.ops.convolution import tensor_facts
from gan_fast.ops.geometry import Geometry
from gan_fast.ops.registry import OPERATORS, autocast_enabled

Size = int | Sequence[int]

#: Spatial axes (negative: transposed) -> PyTorch's own function.
_TORCH: dict[int, Callable[..., Tensor]] = {
    1: F.conv1d,
    2: F.conv2d,
    3: F.conv3d,
    -1: F.conv_transpose1d,
    -2: F.conv_transpose2d,
    -3: F.conv_transpose3d,
}


def convolution(
    kind: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    parameters: tuple[Any, ...],
    activation: str | None,
    negative_slope: float,
    backend: str | None,
) -> Tensor:
    """All six convolutions; ``kind`` as the keys of ``_TORCH``, ``parameters`` in the order of PyTorch's function."""
    act = activations.check(activation)
    asked = backends.requested(backend)

    def by_torch() -> Tensor:
        out = _TORCH[kind](input, weight, bias, *parameters)
        return activations.apply(out, act, negative_slope)

    if only_torch(asked, input, weight, bias):
        return by_torch()
    x, w, b = autocast(input, weight, bias)
    geometry = None
    if tensors_fit(x, w, b):
        form = tuple(tuple(p) if isinstance(p, list) else p for p in parameters)
        bias_shape = None if b is None else b.shape
        extension = None if torch.compiler.is_compiling() else backends.extension()
        threads = 0 if torch.compiler.is_compiling() else torch.get_num_threads()  # measured cells hold for one count
        facts = (x.shape, x.stride(), w.shape, bias_shape, x.dtype, x.device.type, form, asked, extension, threads)
        remembered = plan.__wrapped__ if torch.compiler.is_compiling() else plan  # the compiler traces no caches
        geometry = remembered(kind, *facts)
        if geometry is None and asked == "auto":
            return by_torch()
    if geometry is None:
        # Invalid, so that PyTorch raises its own error; or valid but empty, which no kernel of ours needs to serve.
        return served_by_torch(by_torch(), asked, "these dtypes, layouts or devices")
    unbatched = x.dim() == abs(kind) + 1
    op = "conv" if kind > 0 else "conv_transpose"
    out = call(op, x.unsqueeze(0) if unbatched else x, w, b, geometry, act, negative_slope, asked)
    return out.squeeze(0) if unbatched else out


@lru_cache(maxsize=4096)
def plan(
    kind: int,
    input: tuple[int, ...],
    stride: tuple[int, ...],
    weight: tuple[int, ...],
    bias: tuple[int, ...] | None,
    dtype: torch.dtype,
    device: str,
    parameters: tuple[Any, ...],
    asked: str,
    extension: object,
    threads: int,
) -> Geometry | None:
    """A call's geometry, or None where it is PyTorch's; remembered, for training asks the same few hundred questions.

    Shapes and strides of the tensors, then what the choice may depend on. RuntimeError as :func:`backends.choose`.
    """
    rank = abs(kind)
    if len(weight) != rank + 2:
        return None
    if len(input) == rank + 1:  # unbatched
        input, stride = (1, *input), (0, *stride)
    resolve = geometries.resolve_conv if kind > 0 else geometries.resolve_conv_transpose
    geometry = resolve(input, weight, *parameters)
    if geometry is None or (bias is not None and bias != (geometries.out_channels(weight, geometry.groups, kind < 0),)):
        return None
    facts = geometries.facts(kind < 0, input, weight, geometry, layout.strides_are_channels_last(input, stride))
    op = "conv" if kind > 0 else "conv_transpose"
    choice = choose(op, asked, device=device, dtype=dtype, rank=rank, **facts)
    return None if choice.backend == "torch" else geometry


choice_table.on_change(plan.cache_clear)


def choose(op: str, asked: str, **facts: Any) -> Choice:
    """:func:`gan_fast.backends.choose`; while a compiler traces, what was asked for by name.

    The operator makes the choice, or refuses, when the compiled program runs; loading a binary cannot be traced.
    """
    if torch.compiler.is_compiling():
        return Choice(asked, "asked for by name")
    return backends.choose(op, backend=asked, **facts)


def only_torch(asked: str, *tensors: Any) -> bool:
    """Whether this call is PyTorch's whatever its shapes: traced for an export or a compiler, foreign tensors."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return asked == "auto" or not torch.compiler.is_dynamo_compiling() or torch.compiler.is_exporting()
    if asked == "auto" and has_torch_function(tensors):
        return True
    if forward_ad._current_level >= 0:
        # Operators registered from Python drop tangents without a word, which would read as a derivative of 0.
        if asked != "auto":
            raise NotImplementedError(
                f"backend {asked!r} has no forward-mode derivative; backend 'auto' leaves it to PyTorch"
            )
        return True
    return False


def served_by_torch(out: Tensor, asked: str, what: str) -> Tensor:
    """PyTorch's result of a valid call that no operator takes; RuntimeError if a kernel was asked for by name."""
    if asked not in ("auto", "reference") and out.numel():
        raise RuntimeError(
            f"backend {asked!r} was asked for by name and cannot run {what}; backend 'auto' leaves it to PyTorch"
        )
    return out


def call(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    act: str,
    negative_slope: float,
    asked: str,
) -> Tensor:
    """One operator call, with the activation inside wherever its derivative can be read off the output."""
    fused = act if activations.fusable(act, negative_slope) else "none"
    slope = float(negative_slope) if fused == "leaky_relu" else 0.01
    stride, pad_begin, dilation, groups, out_size = geometry
    out = OPERATORS[op](
        x, weight, bias, list(stride), list(pad_begin), list(dilation), groups, list(out_size), fused, slope,
        None, "none", 0.01, asked,
    )  # fmt: skip
    return out if fused == act else activations.apply(out, act, negative_slope)


def tensors_fit(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """One dtype, one device, dense tensors: what our operators take. Anything else is PyTorch's to serve or refuse."""
    return (
        x.dtype == weight.dtype
        and x.device == weight.device
        and x.layout == weight.layout == torch.strided
        and x.dtype.is_floating_point
        and (bias is None or (bias.dtype == x.dtype and bias.device == x.device and bias.layout == torch.strided))
    )


def autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in the dtype that autocast gives PyTorch's convolutions; unchanged outside of autocast."""
    device = next(t.device.type for t in tensors if t is not None)
    if not autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)

    def cast(t: Tensor | None) -> Tensor | None:
        # As PyTorch has it: floating point tensors of this device, float64 left alone.
        eligible = t is not None and t.is_floating_point() and t.dtype != torch.float64 and t.device.type == device
        return t.to(dtype) if t is not None and eligible else t

    return tuple(cast(t) for t in tensors)


def geometry_form(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    parameters: tuple[Size, Size, Size, Size, int],
    activation: str | None,
    negative_slope: float,
    backend: str | None,
) -> Tensor:
    """conv_geometry and conv_transpose_geometry; ``parameters``: stride, pad_begin, out_size, dilation, groups."""
    act = activations.check(activation)
    asked = backends.requested(backend)
    x, w, b = autocast(input, weight, bias)
    rank = x.dim() - 2
    transposed = op == "conv_transpose"
    names = ("stride", "pad_begin", "out_size", "dilation")
    values = [_ints(op, name, value, rank) for name, value in zip(names, parameters, strict=False)]
    geometry = Geometry(values[0], values[1], values[3], parameters[4], values[2])
    geometries.check(op, transposed, x.shape, w.shape, None if b is None else b.shape, geometry)
    if not only_torch(asked, x, w, b) and x.shape[0] > 0:
        # A compiler in here was asked for the operator by name (see choose); it cannot trace the facts' caches.
        ours = torch.compiler.is_compiling()
        if ours or choose(op, asked, **tensor_facts(x, w.shape, geometry, transposed)).backend != "torch":
            return call(op, x, w, b, geometry, act, negative_slope, asked)
    # The reference is PyTorch's own operations, traced and differentiated as such.
    stride, pad_begin, dilation, groups, out_size = geometry
    reference = OPERATORS[op].implementations["reference"]
    out = reference(x, w, b, stride, pad_begin, dilation, groups, out_size)
    return activations.apply(out, act, negative_slope)


def _ints(op: str, name: str, value: Size, rank: int) -> tuple[int, ...]:
    ints = geometries.as_ints(value, rank)
    if ints is None:
        raise ValueError(f"{op}: {name} must be an int or {rank} ints, got {value!r}")
    return ints
