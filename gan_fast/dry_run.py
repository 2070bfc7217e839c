"""Calls without data: what each layer of a module is called with, in no memory and next to no time.

Sizes, strides, dtypes and devices are followed as PyTorch's fake tensors have them.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from gan_fast import backends

__all__ = ["LayerCall", "first_calls", "without_data"]


@dataclass(frozen=True)
class LayerCall:
    """A call of a layer.

    Attributes:
        layer: with parameters that hold no data.
        input: its first argument, without data.
        options: its keyword arguments: what `gan_fast.sequential` has it compute for its neighbours.
    """

    layer: Any
    input: Tensor
    options: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def without_data(module: nn.Module) -> Iterator[nn.Module]:
    """A copy of the module that holds no data; within the block no operation has any."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # Old-style weight_norm leaves a computed weight, which deepcopy refuses; its hook computes it again.
    computed = (
        t for m in module.modules() for t in vars(m).values() if isinstance(t, Tensor) and t.grad_fn is not None
    )
    known: dict[int, Any] = {id(t): mode.from_tensor(t.detach()) for t in computed}
    with FakeCopyMode(mode):
        twin = copy.deepcopy(module, known)
    with mode:
        yield twin


def first_calls(twin: nn.Module, input_shape: Sequence[int]) -> dict[str, LayerCall]:
    """Name -> first call of each layer that ``twin``, of :func:`without_data`, calls when it is given an input of this
    shape in plain strides; with all that `gan_fast.sequential` does on the way.

    Raises:
        ValueError: an input with other channels than the layer takes.
    """
    calls: dict[str, LayerCall] = {}
    for name, layer in twin.named_modules():
        # Not a hook: gan_fast.sequential fuses nothing into a layer that has one.
        vars(layer)["_call_impl"] = functools.partial(_noting, calls, name, layer, layer._call_impl)
    first = next((p for p in twin.parameters() if p.is_floating_point()), None)
    like: dict[str, Any] = {} if first is None else {"dtype": first.dtype, "device": first.device}
    # Whoever is asked for by name serves whatever the formats are, and may be one that cannot run here.
    serving = contextlib.nullcontext() if backends.requested() == "auto" else backends.use_backend("reference")
    with serving:
        twin(torch.empty(tuple(input_shape), **like))
    return calls


def _noting(
    calls: dict[str, LayerCall], name: str, layer: Any, call: Callable[..., Any], *args: Any, **options: Any
) -> Any:
    if name not in calls and args and isinstance(args[0], Tensor):
        shape = tuple(args[0].shape)
        wanted = getattr(layer, "in_channels", None)
        if wanted is not None and shape[-1 - len(layer.kernel_size)] != wanted:  # not all of PyTorch's look
            raise ValueError(f"{name or 'module'} takes {wanted} channels, got an input of shape {shape}")
        calls[name] = LayerCall(layer, args[0], options)
    return call(*args, **options)
