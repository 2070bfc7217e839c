"""Which backend serves each layer of a module, and why."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from gan_fast import backends
from gan_fast import nn as fast_nn
from gan_fast.choice_table import Choice
from gan_fast.ops import convolution_choice, geometry, linear_call, upsample_conv
from gan_fast.ops.registry import autocast_enabled
from gan_fast.sequential import Sequential, against_collapse, is_upsampling

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)
_OURS = tuple(getattr(fast_nn, name) for name in fast_nn.__all__)


@dataclass(frozen=True)
class Row:
    """One layer: its name in the module, its kind, and the choice for each pass.

    ``forward``, ``input_grad`` and ``weight_grad`` are (backend, reason). Each pass is chosen for itself; a layer all
    of whose passes are PyTorch's is left to PyTorch as a whole.
    """

    name: str
    layer: str
    forward: Choice
    input_grad: Choice
    weight_grad: Choice


class Explanation(list[Row]):
    """The rows, one for each supported layer; ``str()`` is a readable table."""

    def __str__(self) -> str:
        head = ("layer", "kind", "forward", "input grad", "weight grad", "why")
        lines = [head] + [
            (
                r.name or "(itself)",
                r.layer,
                r.forward.backend,
                r.input_grad.backend,
                r.weight_grad.backend,
                r.forward.reason,
            )
            for r in self
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
        )


def explain(module: nn.Module, input_shape: Sequence[int] | None = None) -> Explanation:
    """For every convolution, linear, batch normalisation and loss layer in ``module``: which backend serves it, and
    why.

    ``input_shape``: shape of the module's input, batch included; layers' own input shapes follow by a run without
    data. Without it the answer is that for inputs large enough to be worth a kernel. The active ``use_backend`` and
    GAN_FAST_BACKEND count, and torch.autocast: within it the layers are taken to see its dtype.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if isinstance(input_shape, nn.Module):
        raise TypeError("explain takes one module at a time, and the shape of its input: explain(module, (N, C, H, W))")
    shapes = {} if input_shape is None else _layer_inputs(module, input_shape)
    upsamplings = _upsamplings(module)
    rows = Explanation()
    for name, layer in module.named_modules():
        if name in upsamplings and (choices := _explain_pair(upsamplings[name], layer, shapes.get(name))) is not None:
            rows.append(Row(name, f"{type(upsamplings[name]).__name__} + {type(layer).__name__}", *choices))
        elif isinstance(layer, (*_CONV, *_CONV_TRANSPOSE)):
            rows.append(Row(name, type(layer).__name__, *_explain_convolution(layer, shapes.get(name))))
        elif isinstance(layer, nn.Linear):
            rows.append(Row(name, type(layer).__name__, *_explain_linear(layer, shapes.get(name))))
        elif isinstance(layer, _BATCH_NORM):
            rows.append(Row(name, type(layer).__name__, *_explain_batch_norm(layer, shapes.get(name))))
        elif isinstance(layer, nn.BCEWithLogitsLoss):
            choice = _plain(layer) or _choose("bce_with_logits", elements=float("inf"))
            rows.append(Row(name, type(layer).__name__, choice, choice, choice))
    return rows


def _plain(layer: nn.Module) -> Choice | None:
    if isinstance(layer, _OURS):
        return None
    return Choice("torch", f"torch.nn.{type(layer).__name__}, not accelerated (see gan_fast.accelerate)")


def _choose(op: str, **facts: Any) -> Choice:
    try:
        return backends.choose(op, **facts)
    except RuntimeError as error:  # a backend asked for by name that cannot: the call itself would raise this
        return Choice("none", str(error))


def _dtype(known: Tensor) -> torch.dtype:
    """What a layer with this parameter computes with: its own dtype, or autocast's."""
    device = known.device.type
    if known.dtype == torch.float64 or not autocast_enabled(device):
        return known.dtype
    return torch.get_autocast_dtype(device)


def _explain_convolution(layer: Any, shape: tuple[int, ...] | None) -> tuple[Choice, Choice, Choice]:
    plain = _plain(layer)
    if plain is None and layer.padding_mode != "zeros":
        plain = Choice("torch", f"padding_mode={layer.padding_mode!r} is served by PyTorch")
    if plain is not None:
        return plain, plain, plain
    transposed = isinstance(layer, _CONV_TRANSPOSE)
    weight: Tensor = layer.weight
    rank = weight.dim() - 2
    common: dict[str, Any] = {"device": weight.device.type, "dtype": _dtype(weight), "rank": rank}
    form = None if shape is None else _geometry(layer, shape, weight, transposed)
    if shape is not None and form is not None:
        return _passes(transposed, common, shape, weight.shape, form)
    # Large enough for every rule on size; what is left depends on the layer alone.
    one, unlimited = (1, 1, *[1] * rank), ("mflop", "batch", "positions", "in_pixels", "out_pixels")
    return _passes(transposed, common, one, weight.shape, _unknown(layer, rank), dict.fromkeys(unlimited, math.inf))


def _passes(
    transposed: bool,
    common: dict[str, Any],
    input: Sequence[int],
    weight: Sequence[int],
    form: geometry.Geometry,
    known: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Choice, Choice, Choice]:
    """Forward, input gradient and weight gradient, without an activation; ``known`` facts outweigh the shapes'.

    Images are taken to be in channels_last, as `gan_fast.sequential` keeps them between layers.
    """
    channels_last = convolution_choice.Formats(common["rank"] == 2, common["rank"] == 2, False)
    calls = convolution_choice.passes(transposed, input, weight, form, channels_last, False)
    forward, input_grad, weight_grad = (_choose(op, **common, **{**facts, **known}) for op, facts in calls)
    return forward, input_grad, weight_grad


def _explain_linear(layer: nn.Linear, shape: tuple[int, ...] | None) -> tuple[Choice, Choice, Choice]:
    plain = _plain(layer)
    if plain is not None:
        return plain, plain, plain
    rows = 1 << 20 if shape is None else math.prod(shape[:-1])
    weight = (*layer.weight.shape, 1, 1)
    common = {"device": layer.weight.device.type, "dtype": _dtype(layer.weight), "rank": 2}
    return _passes(False, common, (1, weight[1], 1, rows), weight, linear_call.geometry(rows))


def _upsamplings(module: nn.Module) -> dict[str, nn.Module]:
    """Name of a convolution -> the upsampling before it that `gan_fast.sequential` leaves to it."""
    found = {}
    for name, parent in module.named_modules():
        if type(parent) is Sequential:
            for (_, upsampling), (key, layer) in itertools.pairwise(parent._modules.items()):
                if upsampling is not None and is_upsampling(upsampling) and not against_collapse(upsampling, layer):
                    found[f"{name}.{key}" if name else key] = upsampling
    return found


def _explain_pair(upsampling: Any, layer: Any, shape: tuple[int, ...] | None) -> tuple[Choice, Choice, Choice] | None:
    """The passes of an upsampling and a convolution if they are collapsed; ``shape``: of what lies between them."""
    weight: Tensor = layer.weight
    rank = weight.dim() - 2
    factors = upsample_conv.whole_factors(upsampling.scale_factor, rank)
    asked = backends.requested()
    measured = _dtype(weight) in (torch.float32, torch.bfloat16) and weight.device.type == "cpu"
    if factors is None or (asked == "auto" and not measured):
        return None
    if shape is None:  # a batch large enough for every rule
        size: tuple[int, ...] = (1 << 20, weight.shape[1], *weight.shape[2:])
    else:
        size = (*shape[:2], *(n // factor for n, factor in zip(shape[2:], factors, strict=True)))
    parameters = (factors, layer.stride, layer.padding, layer.dilation, layer.groups)
    found = upsample_conv.plan(size, tuple(weight.shape), parameters, asked)
    if found is None or found[1].backend != "collapse":
        return None
    form, choice = found
    common = {"device": weight.device.type, "dtype": _dtype(weight), "rank": rank}
    collapsed = upsample_conv.collapsed_shape(weight.shape, form)
    forward, input_grad, weight_grad = _passes(True, common, size, collapsed, form)
    return Choice(forward.backend, f"{choice.reason}: {forward.reason}"), input_grad, weight_grad


def _explain_batch_norm(layer: Any, shape: tuple[int, ...] | None) -> tuple[Choice, Choice, Choice]:
    plain = _plain(layer)
    if plain is not None:
        return plain, plain, plain
    known = next((t for t in (layer.weight, layer.running_mean) if t is not None), torch.empty(0))
    facts: dict[str, Any] = {
        "device": known.device.type,
        "dtype": _dtype(known),
        "elements": float("inf") if shape is None else math.prod(shape),
        "channels": layer.num_features,
        # Images are taken to be in channels_last, as above; (N, C, L) never is.
        "channels_last": shape is None or len(shape) != 3,
    }
    forward = _choose("batch_norm_act", **facts)
    if forward.backend in ("torch", "none"):
        return forward, forward, forward
    backward = _choose("batch_norm_act_backward", **facts)
    return forward, backward, backward


def _geometry(layer: Any, shape: tuple[int, ...], weight: Tensor, transposed: bool) -> geometry.Geometry | None:
    size, kernel, stride, dilation = shape[2:], layer.kernel_size, layer.stride, layer.dilation
    if isinstance(layer, fast_nn.KerasConv2d):
        begin, out = geometry.same_keras(size, kernel, stride, dilation)
        return geometry.Geometry(stride, begin, dilation, layer.groups, out)
    if isinstance(layer, fast_nn.KerasConvTranspose2d):
        begin, out = geometry.same_keras_transpose(size, kernel, stride, dilation)
        return geometry.Geometry(stride, begin, dilation, layer.groups, out)
    if transposed:
        return geometry.resolve_conv_transpose(
            shape, weight.shape, stride, layer.padding, layer.output_padding, layer.groups, dilation
        )
    return geometry.resolve_conv(shape, weight.shape, stride, layer.padding, dilation, layer.groups)


def _unknown(layer: Any, rank: int) -> geometry.Geometry:
    return geometry.Geometry(layer.stride, (0,) * rank, layer.dilation, layer.groups, (1,) * rank)


def _layer_inputs(module: nn.Module, input_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Layer name -> shape of its first input in one forward pass of a copy on the "meta" device (no data, no time)."""
    shapes: dict[str, tuple[int, ...]] = {}
    # Old-style weight_norm leaves a computed weight, which deepcopy refuses; its hook computes it again.
    computed = (
        t for m in module.modules() for t in vars(m).values() if isinstance(t, Tensor) and t.grad_fn is not None
    )
    twin = copy.deepcopy(module, {id(t): t.detach() for t in computed}).to("meta")
    dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), None)
    handles = []
    for name, layer in twin.named_modules():
        if isinstance(layer, (*_CONV, *_CONV_TRANSPOSE, *_BATCH_NORM, nn.Linear)):

            def record(layer: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                shapes[name] = tuple(args[0].shape)
                wanted = getattr(layer, "in_channels", None)  # "meta" tensors pass with any number through some layers
                axis = None if wanted is None else -1 - len(layer.kernel_size)  # type: ignore[arg-type]  # a convolution
                if axis is not None and shapes[name][axis] != wanted:
                    found = f"an input of shape {shapes[name]}"
                    raise ValueError(f"{name or 'module'} takes {wanted} channels, got {found}")

            handles.append(layer.register_forward_pre_hook(record))
    with (
        torch.no_grad(),
        backends.use_backend("reference"),
    ):  # sizes only: whoever was asked for by name, runs no "meta"
        twin(torch.empty(tuple(input_shape), dtype=dtype, device="meta"))
    for handle in handles:
        handle.remove()
    return shapes
