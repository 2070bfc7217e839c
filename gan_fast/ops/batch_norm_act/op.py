"""Registration of gan_fast::batch_norm_act: schema, backends, fake kernel, derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_fast.ops import first_use, layout, normalization
from gan_fast.ops.batch_norm_act import cpu, reference
from gan_fast.ops.registry import OPERATORS, Operator

_NAME = "batch_norm_act"


def _check(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    act: str,
    slope: float,
) -> None:
    normalization.check(_NAME, input, act, slope, weight=weight, bias=bias, mean=mean, var=var)
    if (mean is None) != (var is None):
        raise ValueError(f"{_NAME}: mean and var go together, got mean={mean is not None}, var={var is not None}")
    if mean is None and input.numel() == input.shape[1]:
        raise ValueError(f"{_NAME}: statistics need more than 1 value per channel, got shape {tuple(input.shape)}")


def _outputs(input: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty_like(input, memory_format=layout.output_format(input))
    mean, var = (input.new_empty(input.shape[1], dtype=torch.float64) for _ in range(2))
    return y, mean, var


def _facts(input: Tensor, *_: object) -> dict[str, Any]:
    return normalization.facts(input)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, weight, bias, mean, var, ctx.eps, ctx.act, ctx.slope, ctx.backend = inputs
    for name, given in (("mean", mean), ("var", var)):
        if given is not None and given.requires_grad:
            raise NotImplementedError(f"{_NAME}: {name} requires grad; running statistics have no derivative")
    ctx.training = mean is None
    ctx.mark_non_differentiable(*output[1:])
    # The input, as PyTorch keeps it, not y: neither is another tensor alive than with the convolution before or after
    # (one keeps its output anyway, or the other its input), and y does not determine z where a weight is 0.
    ctx.save_for_backward(input, weight, bias, *output[1:])


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    grads: list[Tensor | None] = [None] * 9
    if grad is None:
        return tuple(grads)
    input, weight, bias, mean, var = ctx.saved_tensors
    found = OPERATORS["batch_norm_act_backward"](
        grad, input, weight, bias, mean, var, ctx.training, ctx.eps, ctx.act, ctx.slope, ctx.backend
    )
    grads[:3] = (g if need else None for g, need in zip(found, ctx.needs_input_grad, strict=False))
    return tuple(grads)


batch_norm_act = Operator(
    _NAME,
    "(Tensor input, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, float eps, "
    'str activation="none", float negative_slope=0.01, str backend="auto") -> (Tensor, Tensor, Tensor)',
    implementations={
        "reference": reference.batch_norm_act,
        "cpu": cpu.batch_norm_act,
        "triton": first_use.checked("batch_norm_act", "triton"),
    },
    check=_check,
    outputs=_outputs,
    facts=_facts,
    setup_context=_setup_context,
    backward=_backward,
    vmap=None,
)
