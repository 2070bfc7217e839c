"""Registration of gan_fast::act_grad: schema, backends, fake kernel, derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_fast.ops import activation, first_use
from gan_fast.ops.act_grad import cpu, reference
from gan_fast.ops.convolution import batch_first, check_same, prologue_grads
from gan_fast.ops.registry import OPERATORS, Operator


def _check(grad_output: Tensor, y: Tensor, act: str, slope: float) -> None:
    activation.check_fusable(act, slope)
    check_same("act_grad", grad_output=grad_output, y=y)
    if grad_output.shape != y.shape:
        raise ValueError(
            f"act_grad: y must have the shape of grad_output {tuple(grad_output.shape)}, got {tuple(y.shape)}"
        )


def _outputs(grad_output: Tensor, y: Tensor, act: str, slope: float) -> Tensor:
    return torch.empty_like(y)


def _facts(grad_output: Tensor, y: Tensor, act: str, slope: float) -> dict[str, Any]:
    return {"device": y.device.type, "dtype": y.dtype, "elements": y.numel()}


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, y, ctx.act, ctx.slope, ctx.backend = inputs
    ctx.save_for_backward(grad_output, y)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_output, y = ctx.saved_tensors
    if ctx.act == "none":
        return grad, None, None, None, None
    by_grad, by_y = prologue_grads(
        grad, grad_output, y, ctx.act, ctx.slope, ctx.backend, want_y=ctx.needs_input_grad[1]
    )
    return by_grad, by_y, None, None, None


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    grad_output, y, *rest = args
    tensors = (batch_first(t, d, info.batch_size) for t, d in zip((grad_output, y), in_dims, strict=False))
    return OPERATORS["act_grad"](*tensors, *rest), 0


act_grad = Operator(
    "act_grad",
    '(Tensor grad_output, Tensor y, str activation, float negative_slope, str backend="auto") -> Tensor',
    implementations={
        "reference": reference.act_grad,
        "cpu": cpu.act_grad,
        "triton": first_use.checked("act_grad", "triton"),
    },
    check=_check,
    outputs=_outputs,
    facts=_facts,
    setup_context=_setup_context,
    backward=_backward,
    vmap=_vmap,
)
