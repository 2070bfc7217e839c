"""Registration of gan_fast::bce_with_logits: schema, backends, fake kernel, derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gan_fast.ops import first_use
from gan_fast.ops.bce_with_logits import cpu, reference
from gan_fast.ops.bce_with_logits.reference import log_weight
from gan_fast.ops.convolution import check_same
from gan_fast.ops.registry import Operator

_NAME = "bce_with_logits"
_REDUCTIONS = ("mean", "sum", "none")


def broadcasts_to(small: Sequence[int], large: Sequence[int]) -> bool:
    """Whether ``small`` broadcasts to exactly ``large``."""
    if len(small) > len(large):
        return False
    return all(s in (1, n) for s, n in zip(reversed(small), reversed(large), strict=False))


def _check(
    input: Tensor,
    target: Tensor | None,
    target_value: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
) -> None:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{_NAME}: reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    check_same(_NAME, input=input, target=target, weight=weight, pos_weight=pos_weight)
    if not input.is_floating_point():
        raise ValueError(f"{_NAME}: input must be a floating point tensor, got {input.dtype}")
    if target is not None and target.shape != input.shape:
        raise ValueError(
            f"{_NAME}: target must have the shape of input {tuple(input.shape)}, got {tuple(target.shape)}"
        )
    for name, factor in (("weight", weight), ("pos_weight", pos_weight)):
        if factor is not None and not broadcasts_to(factor.shape, input.shape):
            raise ValueError(f"{_NAME}: {name} must broadcast to {tuple(input.shape)}, got {tuple(factor.shape)}")


def _outputs(
    input: Tensor,
    target: Tensor | None,
    target_value: float,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    loss = torch.empty_like(input) if reduction == "none" else input.new_empty(())
    return loss, torch.empty_like(input)


def _facts(input: Tensor, *_: object) -> dict[str, Any]:
    return {"device": input.device.type, "dtype": input.dtype, "elements": input.numel()}


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, target, ctx.target_value, weight, pos_weight, ctx.reduction, _ = inputs
    for name, factor in (("weight", weight), ("pos_weight", pos_weight)):
        if factor is not None and factor.requires_grad:
            raise NotImplementedError(f"{_NAME}: {name} requires grad; this derivative is served by PyTorch only")
    ctx.save_for_backward(input, target, weight, pos_weight, output[1])


def _backward(ctx: Any, grad_loss: Tensor | None, grad_grad: Tensor | None) -> tuple[Tensor | None, ...]:
    """First order is one product with the saved gradient; the rest is reached only when differentiating that again, and
    computed in float32 where tensors are bfloat16, so that it is rounded once."""
    dtype = ctx.saved_tensors[0].dtype
    input, target, weight, pos_weight = (_widened(t) for t in ctx.saved_tensors[:4])
    grad = ctx.saved_tensors[4]
    grads: list[Tensor | None] = [None] * 7
    t = ctx.target_value if target is None else target

    def scaled(x: Tensor) -> Tensor:
        x = x if weight is None else x * weight
        return x / input.numel() if ctx.reduction == "mean" else x

    def add(index: int, term: Tensor) -> None:
        term = term.to(dtype)
        previous = grads[index]
        grads[index] = term if previous is None else previous + term

    need_input, need_target = ctx.needs_input_grad[:2]
    if grad_loss is not None and need_input:
        add(0, grad_loss * grad)
    if grad_grad is not None and need_input:
        s = torch.sigmoid(input)
        add(0, grad_grad * scaled(log_weight(t, pos_weight) * s * (1 - s)))
    if need_target:
        extra = 0.0 if pos_weight is None else pos_weight - 1
        if grad_loss is not None:
            add(1, grad_loss * scaled(-input - extra * torch.nn.functional.logsigmoid(input)))
        if grad_grad is not None:
            add(1, grad_grad * scaled(-1 - extra * torch.sigmoid(-input)))
    return tuple(grads)


def _widened(x: Tensor | None) -> Any:
    return x.float() if x is not None and x.dtype == torch.bfloat16 else x


bce_with_logits = Operator(
    _NAME,
    "(Tensor input, Tensor? target, float target_value, Tensor? weight, Tensor? pos_weight, str reduction, "
    'str backend="auto") -> (Tensor, Tensor)',
    implementations={
        "reference": reference.bce_with_logits,
        "cpu": cpu.bce_with_logits,
        "triton": first_use.checked("bce_with_logits", "triton"),
        "cuda": first_use.checked("bce_with_logits", "cuda"),
    },
    check=_check,
    outputs=_outputs,
    facts=_facts,
    setup_context=_setup_context,
    backward=_backward,
    vmap=None,
)
