"""Registration of gan_fast::batch_norm_act_backward: schema, backends, fake kernel, derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_fast.ops import activation, first_use, layout, normalization
from gan_fast.ops.batch_norm_act_backward import cpu, reference
from gan_fast.ops.convolution import check_same
from gan_fast.ops.normalization import per_channel
from gan_fast.ops.registry import Operator

_NAME = "batch_norm_act_backward"


def _check(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    training: bool,
    eps: float,
    act: str,
    slope: float,
) -> None:
    normalization.check(_NAME, input, act, slope, weight=weight, bias=bias)
    normalization.check_channels(_NAME, input, mean=mean, var=var)
    check_same(_NAME, input=input, grad_output=grad_output)
    if grad_output.shape != input.shape:
        raise ValueError(
            f"{_NAME}: grad_output must have the shape of input {tuple(input.shape)}, got {tuple(grad_output.shape)}"
        )
    for name, statistic in (("mean", mean), ("var", var)):
        if statistic.dtype != torch.float64 or statistic.device != input.device:
            raise ValueError(
                f"{_NAME}: {name} must be float64 on {input.device}, got {statistic.dtype}, {statistic.device}"
            )


def _outputs(
    grad_output: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    grad_input = torch.empty_like(input, memory_format=layout.output_format(input))
    parameters = normalization.parameter_dtype(input, weight, bias)
    grad_weight, grad_bias = (input.new_empty(input.shape[1], dtype=parameters) for _ in range(2))
    return grad_input, grad_weight, grad_bias


def _facts(grad_output: Tensor, input: Tensor, *_: object) -> dict[str, Any]:
    return normalization.facts(input)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.training, ctx.eps, ctx.act, ctx.slope, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, u: Tensor | None, p: Tensor | None, q: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of L = <u, grad_input> + <p, grad_weight> + <q, grad_bias>; names as in the package's text.

    Composed of PyTorch's own differentiable operations, so that any further order follows. In training mean and r are
    computed from x again, for the same reason. bfloat16 is widened first, so that each result is rounded once.
    """
    saved = ctx.saved_tensors
    grad_output, x, weight, bias = (normalization.widened(t) for t in saved[:4])
    mean, var = saved[4:]
    u, p, q = (normalization.widened(t) for t in (u, p, q))
    axes = normalization.reduced(x)

    def spread(values: Tensor) -> Tensor:
        return per_channel(values, x)

    def average(values: Tensor) -> Tensor:
        return values.mean(axes)

    if ctx.training:
        var, mean = torch.var_mean(x, axes, correction=0)
    r = (var + ctx.eps).rsqrt().to(x.dtype)
    w = torch.ones_like(r) if weight is None else weight
    h = (x - spread(mean)) * spread(r)
    z = h * spread(w) + (0 if bias is None else spread(bias))
    y = activation.apply(z, ctx.act, ctx.slope)
    g = activation.grad(grad_output, y, ctx.act, ctx.slope)

    by_g = torch.zeros_like(x)  # dL/dg
    by_h = torch.zeros_like(x)  # dL/dh, along every way but the statistics
    by_w = torch.zeros_like(r)  # dL/dweight, likewise by way of r * weight
    if u is not None:
        inner = u * g  # <u, grad_input> = weight r sum(inner), in training less the parts on the mean and on h
        by_g = u
        if ctx.training:
            u_mean, uh_mean, g_mean, gh_mean = average(u), average(u * h), average(g), average(g * h)
            by_g = u - spread(u_mean) - h * spread(uh_mean)
            by_h = -spread(w * r) * (u * spread(gh_mean) + g * spread(uh_mean))
            inner = inner - spread(u_mean * g_mean + uh_mean * gh_mean)
        by_g = spread(w * r) * by_g
        by_w = r * inner.sum(axes)
    if p is not None:
        by_g = by_g + spread(p) * h
        by_h = by_h + spread(p) * g
    if q is not None:
        by_g = by_g + spread(q)

    by_grad_output = activation.grad(by_g, y, ctx.act, ctx.slope)
    curvature = activation.slope_wrt_output(y, ctx.act)
    by_z = None if curvature is None else g * curvature * by_g
    by_bias = None
    if by_z is not None:
        by_h = by_h + by_z * spread(w)
        by_bias = by_z.sum(axes)
    by_x = by_h
    if ctx.training:  # h and r depend on x through the statistics too; dr/dx = -r^2 h / n
        by_x = by_h - spread(average(by_h)) - h * spread(average(by_h * h) + by_w * w / (x.numel() // x.shape[1]))
    by_x = by_x * spread(r)
    by_weight = by_w if by_z is None else by_w + (by_z * h).sum(axes)
    # In evaluation x counts through grad_weight and the activation's curvature alone; PyTorch, too, leaves a 0 out.
    reached = ctx.training or p is not None or by_z is not None
    grads = (
        by_grad_output,
        by_x if reached else None,
        None if weight is None else by_weight,
        None if bias is None else by_bias,
    )
    return *(g if g is None else g.to(t.dtype) for g, t in zip(grads, saved, strict=False)), *[None] * 7


batch_norm_act_backward = Operator(
    _NAME,
    "(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, bool training, "
    'float eps, str activation="none", float negative_slope=0.01, str backend="auto") -> (Tensor, Tensor, Tensor)',
    implementations={
        "reference": reference.batch_norm_act_backward,
        "cpu": cpu.batch_norm_act_backward,
        "triton": first_use.checked("batch_norm_act_backward", "triton"),
    },
    check=_check,
    outputs=_outputs,
    facts=_facts,
    setup_context=_setup_context,
    backward=_backward,
    vmap=None,
)
