"""The short way of a convolution that was called before.

By its arguments an operator works out who serves a call, and so does each operator of its backward pass. A call that
:mod:`gan_fast.ops.dispatch` knows is like an earlier one in all that decides, and so are the operators of its backward
pass where its tensors are alike too: a :class:`Lane` keeps what serves them. It is for what runs on the CPU with nobody
looking on; everything else goes the operator's way. Where the layer before has swept the caches, each line of Python
costs some ten times what a warm loop says, and a small layer takes hardly longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gan_fast import backends, choice_table
from gan_fast.ops import convolution, registry
from gan_fast.ops.convolution_choice import Left
from gan_fast.ops.registry import OPERATORS, Operator, Served

#: Kinds of backward passes that a lane keeps calls for.
_MANY = 8
_UNKNOWN = object()

#: How often the tables that choices come from have changed.
_changes = 0


def _note_change() -> None:
    global _changes
    _changes += 1


choice_table.on_change(_note_change)


class Lane:
    """Calls of conv or conv_transpose that are alike but for the numbers in their tensors.

    Args:
        op: the operator's name.
        served: how it serves them.
        arguments: the operator's, after input, weight and bias.
        has_bias: whether there is one.
    """

    def __init__(self, op: str, served: Served, arguments: tuple[Any, ...], has_bias: bool) -> None:
        *rest, backend = arguments
        self.operator = OPERATORS[op]
        self.arguments = arguments
        self.rest = tuple(rest)
        self.transposed = op == "conv_transpose"
        self.form = convolution.Form(
            convolution.as_geometry(*rest[:5]), rest[5], rest[6], "none", 0.01, has_bias, backend
        )
        self.keeps_output = rest[5] != "none"
        self._served = served
        self._extension = backends.extension()
        self._changes = _changes
        self._backward: dict[tuple[Any, ...], _Backward] = {}

    @staticmethod
    def of(op: str, input: Tensor, weight: Tensor, bias: Tensor | None, arguments: tuple[Any, ...]) -> Lane | None:
        """The lane of such calls on plain tensors of the CPU; None where PyTorch negates one when it is read.
        ``arguments``: as the class has them, no prologue."""
        *rest, backend = arguments
        served = OPERATORS[op].served([input, weight, bias, *rest], backend)
        return None if served.negated else Lane(op, served, arguments, bias is not None)

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        """The operator's result; for tensors that ``dispatch`` has found plain."""
        if not self._is_open(input, weight, bias):
            return self.operator(input, weight, bias, *self.arguments)
        if torch.is_grad_enabled() and (
            input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        ):
            return _apply(input, weight, bias, self)
        return self.run(input, weight, bias)

    def run(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        """The forward pass, not recorded."""
        with torch._C._AutoDispatchBelowAutograd():
            return self._served.run(input, weight, bias, *self.rest)

    def backward(self, grad: Tensor, *saved: Tensor | None) -> _Backward | None:
        """What serves a backward pass with this gradient and these saved tensors; None where operators have to."""
        if (
            torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or not registry.runs_plainly()
            or self._extension is not backends.extension()
            or self._changes != _changes
        ):
            return None
        key: list[Any] = [torch.get_num_threads()]
        # Saved tensors need not be the forward pass's: hooks may change them, and a weight's data may be other since.
        for tensor in (grad, *saved):
            if tensor is None:
                continue
            if type(tensor) not in registry.PLAIN or not tensor.is_cpu or tensor.is_neg():
                return None
            key += [tensor.dtype, tensor.shape, tensor.stride()]
        return self._ways(tuple(key))

    def _ways(self, key: tuple[Any, ...]) -> _Backward:
        found = self._backward.get(key)
        if found is None:
            if len(self._backward) >= _MANY:
                self._backward.clear()
            found = self._backward[key] = _Backward()
        return found

    def _is_open(self, *tensors: Tensor | None) -> bool:
        return (
            registry.nothing_intercepts()
            and self._extension is backends.extension()
            and self.operator.present(self._served.choice) is self._served.implementation
            and not any(t is not None and t.is_neg() for t in tensors)
        )


class _Backward:
    """What serves the operators of a lane's backward passes whose tensors are alike."""

    def __init__(self) -> None:
        self._served: dict[tuple[Any, ...], tuple[Operator, Served]] = {}
        self._left: Any = _UNKNOWN

    def call(self, name: str, *arguments: Any) -> Any:
        """As :func:`gan_fast.ops.convolution.call_operator`."""
        # Of their other arguments only whether the bias has a gradient depends on what is asked for.
        key = (name, arguments[8] if name == "conv_weight_grad" else None)
        known = self._served.get(key)
        if known is None:
            operator = OPERATORS[name]
            known = self._served[key] = (operator, operator.served(list(arguments[:-1]), arguments[-1]))
        operator, served = known
        if operator.present(served.choice) is not served.implementation or served.negated:
            return operator(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return served.run(*arguments[:-1])

    def left(self, *arguments: Any) -> Left | None:
        """As :func:`gan_fast.ops.convolution.left_to_torch`."""
        if self._left is _UNKNOWN:
            self._left = convolution.left_to_torch(*arguments)
        found: Left | None = self._left
        return found


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, lane: Lane) -> Any:
        output = lane.run(input, weight, bias)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight, output if lane.keeps_output else None, None)
        ctx.lane = lane
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        (grad,) = grads
        if grad is None:
            return None, None, None, None
        lane: Lane = ctx.lane
        saved = ctx.saved_tensors  # once: what unpacks them may take long
        ways = lane.backward(grad, *saved)
        if ways is None:
            found = convolution.gradients(ctx, saved, lane.form, lane.transposed, grad)
        else:
            found = convolution.gradients(ctx, saved, lane.form, lane.transposed, grad, ways.call, ways.left)
        return *found[:3], None


# Past Function's own `apply`, which looks after the transforms of torch.func.
_apply: Callable[..., Any] = super(torch.autograd.Function, _Recorded).apply
