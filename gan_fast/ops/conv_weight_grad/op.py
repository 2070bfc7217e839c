"""Registration of gan_fast::conv_weight_grad: schema, backends, fake kernel, derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gan_fast.ops import convolution as shared
from gan_fast.ops import first_use, layout
from gan_fast.ops.conv_weight_grad import cpu, gemm, reference
from gan_fast.ops.conv_weight_grad.reference import weight_shape
from gan_fast.ops.registry import OPERATORS, Operator, asked_for

_NAME = "conv_weight_grad"


def _check(
    input: Tensor, grad_output: Tensor, kernel_size: Sequence[int], stride: Sequence[int], pad_begin: Sequence[int],
    dilation: Sequence[int], groups: int, transposed: bool, want_bias: bool,
    prologue_y: Tensor | None, prologue_activation: str, prologue_slope: float, channels_last: bool,
) -> None:  # fmt: skip
    if grad_output.dim() != input.dim() or len(kernel_size) != input.dim() - 2:
        raise ValueError(
            f"{_NAME}: grad_output and kernel_size must have the rank of input {tuple(input.shape)}, "
            f"got {tuple(grad_output.shape)} and {list(kernel_size)}"
        )
    if channels_last and input.dim() != 4:
        raise ValueError(f"{_NAME}: channels_last is a format of 2-D weights, got kernel_size {list(kernel_size)}")
    channels = grad_output.shape[1]
    if groups < 1 or input.shape[1] % groups or channels % groups:
        raise ValueError(
            f"{_NAME}: groups must divide the channels of input and grad_output ({input.shape[1]} and {channels}), "
            f"got {groups}"
        )
    if input.shape[0] != grad_output.shape[0]:
        raise ValueError(
            f"{_NAME}: grad_output must have the batch size of input, {input.shape[0]}, got {grad_output.shape[0]}"
        )
    g = shared.as_geometry(stride, pad_begin, dilation, groups, grad_output.shape[2:])
    shared.verify(
        _NAME, transposed, input.shape, weight_shape(input, grad_output, kernel_size, groups, transposed), None, g
    )
    shared.check_prologue(_NAME, grad_output, prologue_y, prologue_activation, prologue_slope)
    shared.check_same(_NAME, input=input, grad_output=grad_output, prologue_y=prologue_y)


def _outputs(
    input: Tensor, grad_output: Tensor, kernel_size: Sequence[int], stride: Sequence[int], pad_begin: Sequence[int],
    dilation: Sequence[int], groups: int, transposed: bool, want_bias: bool,
    prologue_y: Tensor | None, prologue_activation: str, prologue_slope: float, channels_last: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = weight_shape(input, grad_output, kernel_size, groups, transposed)
    memory_format = layout.named(channels_last)
    weight_grad = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format)
    return weight_grad, input.new_empty(grad_output.shape[1] if want_bias else 0)


def _facts(
    input: Tensor, grad_output: Tensor, kernel_size: Sequence[int], stride: Sequence[int], pad_begin: Sequence[int],
    dilation: Sequence[int], groups: int, transposed: bool, want_bias: bool, prologue_y: Tensor | None, *_: object,
) -> dict[str, Any]:  # fmt: skip
    g = shared.as_geometry(stride, pad_begin, dilation, groups, grad_output.shape[2:])
    weight = weight_shape(input, grad_output, kernel_size, groups, transposed)
    fused = prologue_y is not None
    return {**shared.tensor_facts(input, weight, g, transposed, fused), "transposed": transposed}


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    (input, grad_output, _, stride, pad_begin, dilation, groups, transposed, want_bias,
     prologue_y, prologue_activation, prologue_slope, _, backend) = inputs  # fmt: skip
    ctx.save_for_backward(input, grad_output, prologue_y)
    ctx.form = (list(stride), list(pad_begin), list(dilation), groups)
    ctx.transposed, ctx.want_bias, ctx.backend = transposed, want_bias, backend
    ctx.prologue = (prologue_activation, prologue_slope)


def _backward(ctx: Any, grad_weight: Tensor | None, grad_bias: Tensor | None) -> tuple[Tensor | None, ...]:
    """conv_weight_grad is linear in input and in grad_output: both gradients are convolutions with grad_weight."""
    input, g, prologue_y = ctx.saved_tensors
    act, slope = ctx.prologue
    need_input, need_g = (asked_for(ctx, index, index) for index in (0, 1))
    need_y = prologue_y is not None and asked_for(ctx, 9, 2)
    forward, adjoint = ("conv_transpose", "conv") if ctx.transposed else ("conv", "conv_transpose")
    grads: list[Tensor | None] = [None] * 14
    if not ctx.want_bias:
        grad_bias = None
    if grad_weight is not None and need_input:
        grads[0] = OPERATORS[adjoint](
            g, grad_weight, None, *ctx.form, list(input.shape[2:]), "none", 0.01, prologue_y, act, slope, ctx.backend
        )
    if need_g or need_y:
        inner = None
        if grad_weight is not None:
            inner = OPERATORS[forward](
                input,
                grad_weight,
                grad_bias,
                *ctx.form,
                list(g.shape[2:]),
                "none",
                0.01,
                None,
                "none",
                0.01,
                ctx.backend,
            )
        elif grad_bias is not None:
            inner = grad_bias.view(-1, *[1] * (g.dim() - 2)).expand(g.shape)
        grads[1], grads[9] = shared.prologue_grads(inner, g, prologue_y, act, slope, ctx.backend, want_y=need_y)
    return tuple(grads)


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """The batch of problems becomes groups: their weight gradients do not mix."""
    x, g, kernel_size, stride, pad_begin, dilation, groups, transposed, want_bias, py, *rest = args
    size = info.batch_size
    weight_grad, bias_grad = OPERATORS[_NAME](
        shared.into_channels(shared.batch_first(x, in_dims[0], size)),
        shared.into_channels(shared.batch_first(g, in_dims[1], size)),
        kernel_size, stride, pad_begin, dilation, groups * size, transposed, want_bias,
        None if py is None else shared.into_channels(shared.batch_first(py, in_dims[9], size)),
        *rest,
    )  # fmt: skip
    channels = g.shape[1] if in_dims[1] is None else g.movedim(in_dims[1], 0).shape[2]
    return (weight_grad.unflatten(0, (size, -1)), bias_grad.view(size, channels if want_bias else 0)), (0, 0)


conv_weight_grad = Operator(
    _NAME,
    "(Tensor input, Tensor grad_output, int[] kernel_size, int[] stride, int[] pad_begin, int[] dilation, int groups, "
    'bool transposed, bool want_bias, Tensor? prologue_y=None, str prologue_activation="none", '
    'float prologue_slope=0.01, bool channels_last=False, str backend="auto") -> (Tensor, Tensor)',
    implementations={
        "reference": reference.conv_weight_grad,
        "cpu": cpu.conv_weight_grad,
        "gemm": gemm.conv_weight_grad,
        "triton": first_use.checked("conv_weight_grad", "triton"),
        "cuda": first_use.checked("conv_weight_grad", "cuda"),
    },
    check=_check,
    outputs=_outputs,
    facts=_facts,
    setup_context=_setup_context,
    backward=_backward,
    vmap=_vmap,
)
