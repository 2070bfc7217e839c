"""Which backend serves each layer of a module, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_fast import backends
from gan_fast import nn as fast_nn
from gan_fast.choice_table import Choice
from gan_fast.dry_run import LayerCall, first_calls, without_data
from gan_fast.ops import activation as activations
from gan_fast.ops import (
    batch_norm_call,
    convolution_choice,
    dispatch,
    geometry,
    linear_call,
    normalization,
    upsample_conv,
)
from gan_fast.ops.convolution_choice import Question
from gan_fast.sequential import Sequential, against_collapse, fused_activation, is_upsampling

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)
_EXPLAINED = (*_CONV, *_CONV_TRANSPOSE, *_BATCH_NORM, nn.Linear)
_OURS = tuple(getattr(fast_nn, name) for name in fast_nn.__all__)
#: What stands for a size that was not told: a batch and a side above every bound of the table.
_BATCH, _SIDE = 1 << 24, 64


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


Choices = tuple[Choice, Choice, Choice]


def explain(module: nn.Module, input_shape: Sequence[int] | None = None) -> Explanation:
    """For every convolution, linear, batch normalisation and loss layer in ``module``: which backend serves it, and
    why.

    ``input_shape``: shape of the module's input, batch included. What each layer is then called with follows by a
    forward pass without data: sizes, memory formats, the activation and upsampling that `gan_fast.sequential` has it
    compute. Without it the answer is that for images in channels_last, large enough to be worth a kernel. The active
    ``use_backend`` and GAN_FAST_BACKEND count, and autocast (`gan_fast.precision`).
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if isinstance(input_shape, nn.Module):
        raise TypeError("explain takes one module at a time, and the shape of its input: explain(module, (N, C, H, W))")
    pairs = _neighbours(module)
    if input_shape is None:
        return _explain(module, {}, pairs)
    with without_data(module) as twin:
        return _explain(module, first_calls(twin, input_shape), pairs)


def _explain(module: nn.Module, calls: dict[str, LayerCall], pairs: dict[str, _Neighbours]) -> Explanation:
    rows = Explanation()
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, nn.BCEWithLogitsLoss):
            choice = _choose("bce_with_logits", elements=float("inf"))
            rows.append(Row(name, kind, *(_not_ours(layer) or (choice, choice, choice))))
        elif isinstance(layer, _EXPLAINED):
            joined, choices = False, _not_ours(layer)
            if choices is None and name in calls:
                joined, choices = _explain_call(calls[name])
            elif choices is None:
                with without_data(layer) as twin:
                    joined, choices = _explain_call(_large_call(twin, pairs.get(name, _Neighbours())))
            before = f"{type(pairs[name].upsampling).__name__} + " if joined else ""
            rows.append(Row(name, before + kind, *choices))
    return rows


def _explain_call(call: LayerCall) -> tuple[bool, Choices]:
    """Whether the layer is one with the upsampling before it, and the passes."""
    if isinstance(call.layer, nn.Linear):
        return False, _explain_linear(call)
    if isinstance(call.layer, _BATCH_NORM):
        return False, _explain_batch_norm(call)
    joined = _explain_pair(call)
    return joined is not None, joined or _explain_convolution(call)


def _not_ours(layer: nn.Module) -> Choices | None:
    if isinstance(layer, _OURS):
        return None
    return _torch(f"torch.nn.{type(layer).__name__}, not accelerated (see gan_fast.accelerate)")


def _torch(reason: str) -> Choices:
    return (Choice("torch", reason),) * 3


def _choose(op: str, **facts: Any) -> Choice:
    try:
        return backends.choose(op, **facts)
    except RuntimeError as error:  # a backend asked for by name that cannot: the call itself would raise this
        return Choice("none", str(error))


def _passes(question: Question, x: Tensor) -> Choices:
    """Forward, input gradient and weight gradient of a convolution on x."""
    common = {"device": x.device.type, "dtype": x.dtype, "rank": len(question.input) - 2}
    calls = convolution_choice.passes(*question)
    forward, input_grad, weight_grad = (_choose(op, **common, **facts) for op, facts in calls)
    return forward, input_grad, weight_grad


# ------------------------------------------------------------------------------------- a call that was not observed


@dataclass(frozen=True)
class _Neighbours:
    """What `gan_fast.sequential` has a layer compute beside its own."""

    upsampling: Any = None
    then: tuple[str, float] | None = None


def _neighbours(module: nn.Module) -> dict[str, _Neighbours]:
    """By name, of the layers that have something to compute."""
    found = {}
    for name, parent in module.named_modules():
        if type(parent) is not Sequential:
            continue
        children = [("", None), *parent._modules.items(), ("", None)]
        for (_, before), (key, layer), (_, after) in zip(children, children[1:], children[2:], strict=False):
            if layer is not None:
                joins = before is not None and is_upsampling(before) and not against_collapse(before, layer)
                found[f"{name}.{key}" if name else key] = _Neighbours(
                    before if joins else None, fused_activation(layer, after)
                )
    return found


def _large_call(layer: Any, neighbours: _Neighbours) -> LayerCall:
    """A batch large enough for every rule; images are in channels_last, as `gan_fast.sequential` keeps them."""
    options: dict[str, Any] = {} if neighbours.then is None else {"then": neighbours.then}
    if neighbours.upsampling is not None:
        options["scale_factor"] = neighbours.upsampling.scale_factor
    known: Tensor = next(layer.parameters(), torch.empty(0))
    shape: tuple[int, ...]
    if isinstance(layer, nn.Linear):
        shape = (layer.in_features,)
    elif isinstance(layer, _BATCH_NORM):
        shape = (layer.num_features, *[_SIDE] * (2 if isinstance(layer, nn.BatchNorm2d) else 0))
    else:
        sizes = zip(layer.kernel_size, layer.dilation, strict=True)
        shape = (layer.in_channels, *(_SIDE + kernel * dilation for kernel, dilation in sizes))
    x = torch.empty((_BATCH, *shape), dtype=known.dtype, device=known.device)
    return LayerCall(layer, x.to(memory_format=torch.channels_last) if x.dim() == 4 else x, options)


# ------------------------------------------------------------------------------------------------------- by the layer


def _activation(call: LayerCall) -> tuple[str, float]:
    """Name and slope of the activation that the layer computes in this call."""
    fused = call.layer._fused(call.options.get("then"))
    return activations.check(fused["activation"]), fused["negative_slope"]


def _explain_convolution(call: LayerCall) -> Choices:
    layer, weight = call.layer, call.layer.weight
    if layer.padding_mode != "zeros":
        return _torch(f"padding_mode={layer.padding_mode!r} is served by PyTorch")
    x = _batched(call)
    if "scale_factor" in call.options:
        x = F.interpolate(x, scale_factor=call.options["scale_factor"], mode="nearest")
    transposed = isinstance(layer, _CONV_TRANSPOSE)
    form = _geometry(layer, tuple(x.shape), weight, transposed)
    if form is None:
        return _torch("the result is empty")
    x, weight, _ = dispatch.autocast(x, weight, None)
    return _passes(dispatch.question(transposed, x, weight, form, *_activation(call)), x)


def _explain_pair(call: LayerCall) -> Choices | None:
    """The passes of an upsampling and the convolution after it, if they are collapsed into one."""
    if "scale_factor" not in call.options:
        return None
    layer, x = call.layer, _batched(call)
    parameters = (call.options["scale_factor"], layer.stride, layer.padding, layer.dilation, layer.groups)
    found = upsample_conv.collapsing(x.dim() - 2, x, layer.weight, None, parameters, backends.requested())
    if found is None:
        return None
    form, choice = found
    x, weight, _ = dispatch.autocast(*upsample_conv.collapsed(x, layer.weight, form.stride), None)
    forward, input_grad, weight_grad = _passes(dispatch.question(True, x, weight, form, *_activation(call)), x)
    return Choice(forward.backend, f"{choice.reason}: {forward.reason}"), input_grad, weight_grad


def _explain_linear(call: LayerCall) -> Choices:
    x, weight, _ = dispatch.autocast(call.input, call.layer.weight, None)
    return _passes(linear_call.question(x.numel() // x.shape[-1], weight, *_activation(call)), x)


def _explain_batch_norm(call: LayerCall) -> Choices:
    layer, x = call.layer, call.input
    running, affine = (layer.running_mean, layer.running_var), (layer.weight, layer.bias)
    training = layer.training or layer.running_mean is None
    if not batch_norm_call.fits(x, running, affine, training, backends.requested()):
        return _torch(f"this form of normalisation, of {x.dtype}, is served by PyTorch")
    facts = normalization.facts(x)
    forward = _choose("batch_norm_act", **facts)
    if forward.backend in ("torch", "none"):
        return forward, forward, forward
    backward = _choose("batch_norm_act_backward", **facts)
    return forward, backward, backward


def _batched(call: LayerCall) -> Tensor:
    return call.input if call.input.dim() == call.layer.weight.dim() else call.input.unsqueeze(0)


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
