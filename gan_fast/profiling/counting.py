"""Counting instead of timing: floating-point operations and bytes of every operator in one step, and who served it.

FLOPs are `torch.utils.flop_counter`'s: matrix products and convolutions, an addition and a multiplication being two.
The formulas of gan_fast's operators are registered there by this module, so `FlopCounterMode` knows them as well. (It
watches modules by hooks, with which `gan_fast.sequential` fuses nothing, and takes operators apart that the training
runs whole: the counter here does without.) Bytes are those of each operator's tensors, read or written once; views move
none.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula

from gan_fast import ops
from gan_fast.choice_table import Choice
from gan_fast.ops.registry import Operator, recording

from .networks import Tracker

__all__ = ["Count", "Counter", "counting"]

assert ops  # the operators exist from here on

_NO_TRAFFIC = ("empty", "new_empty", "_local_scalar_dense", "lift")


def _multiply_adds(batch: int, weight: Sequence[int], pixels: Sequence[int]) -> int:
    """Twice the products of a convolution: each element of the weight meets each pixel of the smaller grid."""
    return 2 * batch * math.prod(weight) * math.prod(pixels)


@register_flop_formula(torch.ops.gan_fast.conv)
def _conv(input: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _multiply_adds(input[0], weight, out_shape[2:])


@register_flop_formula(torch.ops.gan_fast.conv_transpose)
def _conv_transpose(input: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _multiply_adds(input[0], weight, input[2:])


@register_flop_formula(torch.ops.gan_fast.conv_weight_grad)
def _conv_weight_grad(
    input: Any, grad: Any, kernel: Any, stride: Any, begin: Any, dilation: Any, groups: int, transposed: bool,
    *_: Any, out_shape: Any = None, **__: Any,
) -> int:  # fmt: skip
    weight = (input[1] // groups, grad[1], *kernel)
    return _multiply_adds(input[0], weight, (input if transposed else grad)[2:])


@dataclass
class Count:
    """What one operator did in one layer and direction.

    Attributes:
        calls: how often it ran.
        flops, bytes: floating-point operations, and bytes of its tensors.
        served: backend -> the reason it was taken; empty for PyTorch's own operators.
    """

    calls: int = 0
    flops: int = 0
    bytes: int = 0
    served: dict[str, str] = field(default_factory=dict)


class Counter(TorchDispatchMode):
    """Counts every operator below autograd while it is entered; see `counting`.

    Attributes:
        counts: (layer, whether in its backward pass, operator's name) -> `Count`.
    """

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.counts: dict[tuple[str, bool, str], Count] = {}
        self._tracker = tracker

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry and torch.is_inference_mode_enabled():  # compound operators arrive whole
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        count = self._count(f"{func.namespace}::{packet.__name__}")
        count.calls += 1
        if packet in flop_registry:
            count.flops += int(flop_registry[packet](*args, **kwargs, out_val=out))
        if not func.is_view and not packet.__name__.startswith(_NO_TRAFFIC):
            count.bytes += sum(_size(leaf) for leaf in tree_leaves((args, kwargs, out)))
        return out

    def _count(self, name: str) -> Count:
        return self.counts.setdefault((*self._tracker.current(), name), Count())

    def served(self, operator: Operator, arguments: list[Any], choice: Choice) -> None:
        """For `gan_fast.ops.registry.recording`: note who served a call."""
        backend = "reference" if choice.backend == "torch" else choice.backend
        self._count(f"gan_fast::{operator.name}").served[backend] = choice.reason


@contextlib.contextmanager
def counting(tracker: Tracker) -> Iterator[Counter]:
    """Within the ``with`` block a `Counter` counts, and notes who serves gan_fast's operators."""
    counter = Counter(tracker)
    with recording(counter.served), counter:  # the mode enters itself again for compound operators
        yield counter


def _size(value: Any) -> int:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return 0
    whole = value.numel() * value.element_size()
    return min(whole, value.untyped_storage().nbytes())  # an expanded tensor is smaller than it looks
