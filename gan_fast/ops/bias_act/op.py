"""Registration of gan_fast::bias_act: schema, backends, fake kernel, derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_fast.ops import activation, first_use
from gan_fast.ops.bias_act import cpu, reference
from gan_fast.ops.convolution import batch_first, check_same, into_channels, through_activation
from gan_fast.ops.registry import OPERATORS, Operator, asked_for


def _check(input: Tensor, bias: Tensor | None, act: str, slope: float) -> None:
    activation.check_fusable(act, slope)
    if input.dim() < 2:
        raise ValueError(f"bias_act: input must be (N, C, ...), got shape {tuple(input.shape)}")
    if bias is not None:
        check_same("bias_act", input=input, bias=bias)
        if tuple(bias.shape) != (input.shape[1],):
            raise ValueError(f"bias_act: bias must have shape ({input.shape[1]},), got {tuple(bias.shape)}")


def _outputs(input: Tensor, bias: Tensor | None, act: str, slope: float) -> Tensor:
    return torch.empty_like(input)


def _facts(input: Tensor, bias: Tensor | None, act: str, slope: float) -> dict[str, Any]:
    return {"device": input.device.type, "dtype": input.dtype, "elements": input.numel()}


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, bias, ctx.act, ctx.slope, ctx.backend = inputs
    ctx.save_for_backward(output if ctx.act != "none" else None)
    ctx.has_bias = bias is not None


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None, None
    (y,) = ctx.saved_tensors
    inner = through_activation(grad, y, ctx.act, ctx.slope, ctx.backend)
    need_bias = ctx.has_bias and asked_for(ctx, 1, 1)
    return inner, inner.sum([0, *range(2, inner.dim())]) if need_bias else None, None, None, None


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    input, bias, *rest = args
    x = batch_first(input, in_dims[0], info.batch_size)
    if bias is None or in_dims[1] is None:
        out = OPERATORS["bias_act"](x.flatten(0, 1), bias, *rest)
        return out.unflatten(0, (info.batch_size, -1)), 0
    out = OPERATORS["bias_act"](into_channels(x), bias.movedim(in_dims[1], 0).flatten(), *rest)
    return out.unflatten(1, (info.batch_size, -1)), 1


bias_act = Operator(
    "bias_act",
    '(Tensor input, Tensor? bias, str activation, float negative_slope, str backend="auto") -> Tensor',
    implementations={
        "reference": reference.bias_act,
        "cpu": cpu.bias_act,
        "triton": first_use.checked("bias_act", "triton"),
    },
    check=_check,
    outputs=_outputs,
    facts=_facts,
    setup_context=_setup_context,
    backward=_backward,
    vmap=_vmap,
)
