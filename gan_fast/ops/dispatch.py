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
from gan_fast.ops import convolution_choice, layout
from gan_fast.ops import geometry as geometries
from gan_fast.ops.geometry import Geometry
from gan_fast.ops.lane import Lane
from gan_fast.ops.registry import OPERATORS, autocast_enabled, nobody_looks_on

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


#: What calls come to, by shapes and modes: None where they are PyTorch's, else what serves them. Asked before anything
#: else, and by as few words as can be: where the layer before has swept the caches, every line of Python costs ten
#: times what it seems to, and a small layer takes hardly longer.
_known: dict[tuple[Any, ...], Callable[..., Any] | None] = {}
_MANY = 4096
choice_table.on_change(_known.clear)

_PLAIN = (Tensor, torch.nn.Parameter)
_UNKNOWN = ("unknown",)


def look_up(backend: str | None, kind: object, input: Tensor, weight: Tensor, *rest: object) -> tuple[Any, Any]:
    """The call's key (None: not to be remembered), and what is known of it: an entry of ``_known``, or ``_UNKNOWN``.

    "PyTorch's" holds whatever else is unusual about the call (a tracer, tangents, another tensor's dtype): that can
    only make it PyTorch's.
    """
    if torch.compiler.is_dynamo_compiling():  # first, for it cannot trace what follows
        return None, _UNKNOWN
    if not (backends.is_automatic() if backend is None else backend == "auto"):
        return None, _UNKNOWN
    try:
        key = (
            kind, input.shape, input.stride(), input.dtype, input.requires_grad, weight.shape, weight.stride(),
            weight.requires_grad, rest, torch.is_grad_enabled(), torch._C._is_any_autocast_enabled(),
            torch.get_num_threads(), input.is_cpu or (input.is_cuda and backends.circumstances(True)),
        )  # fmt: skip
        return key, _known.get(key, _UNKNOWN)
    except (AttributeError, RuntimeError, TypeError):
        # No tensors, sparse ones, lists among the parameters, sizes that are symbols.
        return None, _UNKNOWN


def remember(key: tuple[Any, ...] | None, what: Callable[..., Any] | None) -> None:
    """Have :func:`look_up` tell this call from now on."""
    if key is not None:
        if len(_known) >= _MANY:
            _known.clear()
        _known[key] = what


def _is_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernels can take these tensors without another look: no subclasses, one dtype, on the CPU, no mode
    of PyTorch's that wants to see or change what runs."""
    return (
        type(x) in _PLAIN
        and type(weight) in _PLAIN
        and (bias is None or (type(bias) in _PLAIN and bias.dtype == x.dtype and bias.is_cpu))
        and x.dtype == weight.dtype
        and x.is_cpu
        and weight.is_cpu
        and not torch.is_autocast_enabled("cpu")
        and nobody_looks_on()
    )


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
    key, known = look_up(
        backend, kind, input, weight, parameters, activation, negative_slope, None if bias is None else bias.shape
    )
    if known is None:
        out = _TORCH[kind](input, weight, bias, *parameters)
        return out if activation is None else activations.apply(out, activation, negative_slope)
    if known is not _UNKNOWN and _is_plain(input, weight, bias):
        return known(input, weight, bias)
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
        geometry = _geometry(kind, tuple(x.shape), tuple(w.shape), None if b is None else tuple(b.shape), form)
    if x is not input or w is not weight:  # cast by autocast: the key does not say to what
        key = None
    if geometry is not None and asked == "auto" and not enters(kind < 0, x, w, geometry, act, negative_slope):
        remember(key, None)
        return by_torch()
    if geometry is None:
        # Invalid, so that PyTorch raises its own error; or valid but empty, which no kernel of ours needs to serve.
        return served_by_torch(by_torch(), asked, "these dtypes, layouts or devices")
    op = "conv" if kind > 0 else "conv_transpose"
    if asked != "auto":
        choose(op, asked, device=x.device.type, dtype=x.dtype, rank=abs(kind))  # raises where that one cannot
    if x.dim() == abs(kind) + 1:  # unbatched
        return call(op, x.unsqueeze(0), w, b, geometry, act, negative_slope, asked).squeeze(0)
    transformed = torch._C._are_functorch_transforms_active()
    if (
        key is not None
        and not transformed
        and activations.fusable(act, negative_slope)
        and _is_plain(input, weight, bias)
    ):
        lane = Lane.of(op, input, weight, bias, arguments(geometry, act, negative_slope, asked))
        if lane is not None:
            remember(key, lane)
    return call(op, x, w, b, geometry, act, negative_slope, asked)


def _geometry(
    kind: int,
    input: tuple[int, ...],
    weight: tuple[int, ...],
    bias: tuple[int, ...] | None,
    parameters: tuple[Any, ...],
) -> Geometry | None:
    """A call's geometry, by the shapes of its tensors; None where the call is invalid or its result empty."""
    if torch.compiler.is_compiling():  # the compiler traces no caches
        return _resolve.__wrapped__(kind, input, weight, bias, parameters)
    return _resolve(kind, input, weight, bias, parameters)


@lru_cache(maxsize=4096)
def _resolve(
    kind: int,
    input: tuple[int, ...],
    weight: tuple[int, ...],
    bias: tuple[int, ...] | None,
    parameters: tuple[Any, ...],
) -> Geometry | None:
    rank = abs(kind)
    if len(weight) != rank + 2:
        return None
    if len(input) == rank + 1:  # unbatched
        input = (1, *input)
    resolve = geometries.resolve_conv if kind > 0 else geometries.resolve_conv_transpose
    geometry = resolve(input, weight, *parameters)
    if geometry is None or (bias is not None and bias != (geometries.out_channels(weight, geometry.groups, kind < 0),)):
        return None
    return geometry


def enters(transposed: bool, x: Tensor, weight: Tensor, geometry: Geometry, act: str, negative_slope: float) -> bool:
    """Whether the automatic choice has a valid call on x, batched or not, enter our operator: see
    :mod:`gan_fast.ops.convolution_choice`."""
    return convolution_choice.enters(
        *question(transposed, x, weight, geometry, act, negative_slope), convolution_choice.wanted(x, weight),
        x.device.type, x.dtype, backends.circumstances(x.is_cuda),
    )  # fmt: skip


def question(
    transposed: bool, x: Tensor, weight: Tensor, geometry: Geometry, act: str, negative_slope: float
) -> convolution_choice.Question:
    """What a call comes to for :func:`convolution_choice.passes`."""
    x = x if x.dim() == weight.dim() else x.unsqueeze(0)
    fused = activations.fuses(act, negative_slope)
    formats = convolution_choice.formats(x, weight)
    return convolution_choice.Question(transposed, tuple(x.shape), tuple(weight.shape), geometry, formats, fused)


def wants_channels_last(
    kind: int,
    input: Tensor,
    weight: Tensor,
    parameters: tuple[Any, ...],
    activation: str | None,
    negative_slope: float,
) -> bool:
    """Whether a kernel of ours would run on a channels_last copy of the images ``input``.

    Where PyTorch serves every pass there is nothing to win by converting them: its own kernels, with weights in the
    other format, would convert those on every call.
    """
    if not backends.is_automatic():
        return True
    geometry = _geometry(kind, tuple(input.shape), tuple(weight.shape), None, parameters)
    if geometry is None:
        return False
    fused = activations.fuses(activation or "none", negative_slope)
    device = input.device.type
    dtype = torch.get_autocast_dtype(device) if autocast_enabled(device) else input.dtype
    formats = convolution_choice.Formats(True, True, layout.is_channels_last(weight))
    return convolution_choice.enters(
        kind < 0, tuple(input.shape), tuple(weight.shape), geometry, formats, fused,
        convolution_choice.wanted(input, weight), device, dtype, backends.circumstances(input.is_cuda),
    )  # fmt: skip


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
    out = OPERATORS[op](x, weight, bias, *arguments(geometry, act, negative_slope, asked))
    return out if activations.fusable(act, negative_slope) else activations.apply(out, act, negative_slope)


def arguments(geometry: Geometry, act: str, negative_slope: float, asked: str) -> tuple[Any, ...]:
    """Those of conv and conv_transpose after input, weight and bias."""
    fused = act if activations.fusable(act, negative_slope) else "none"
    slope = float(negative_slope) if fused == "leaky_relu" else 0.01
    stride, pad_begin, dilation, groups, out_size = geometry
    form = (tuple(stride), tuple(pad_begin), tuple(dilation), groups, tuple(out_size))
    return (*form, fused, slope, None, "none", 0.01, asked)


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
        if asked != "auto" or enters(transposed, x, w, geometry, act, negative_slope):
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
