"""Which networks take part, what their layers are called, and which layer a piece of work belongs to."""

from __future__ import annotations

import bisect
from types import FrameType
from typing import Any

import torch
from torch import nn

__all__ = ["Networks", "Tracker"]


class Networks:
    """The networks of a training: those that were named, and those that are met.

    Args:
        named: name -> network. If there are any, a step is over when each of them was updated; else when each network
            that was met and can be trained was.
    """

    def __init__(self, named: dict[str, nn.Module]) -> None:
        self.modules: dict[str, nn.Module] = {}
        #: name -> shape of the first input, and the dtype of autocast there (None: off).
        self.inputs: dict[str, tuple[tuple[int, ...], torch.dtype | None]] = {}
        self._expected: set[str] = set()
        self._named = False
        self._roots: dict[int, str] = {}
        self._layers: dict[int, str] = {}
        self._owners: dict[int, tuple[str, ...]] = {}
        for name, module in named.items():
            self.add(name, module)
        self._named = bool(self._expected)

    def add(self, name: str, module: nn.Module) -> str:
        """Take a network in; returns the name that it gets."""
        taken, name = 1, name
        wanted = name
        while name in self.modules:
            taken += 1
            name = f"{wanted} {taken}"
        self.modules[name] = module
        self._roots[id(module)] = name
        for path, layer in module.named_modules():
            self._layers.setdefault(id(layer), f"{name}.{path}" if path else name)
        self._owners.clear()
        if not self._named and any(parameter.requires_grad for parameter in module.parameters()):
            self._expected.add(name)
        return name

    def root(self, module: nn.Module) -> str | None:
        """The network's name if the module is one of the networks."""
        return self._roots.get(id(module))

    def layer(self, module: nn.Module) -> str | None:
        """``network.path`` of a module inside a network, or None."""
        return self._layers.get(id(module))

    def meet(self, module: nn.Module, args: tuple[Any, ...], caller: FrameType) -> str | None:
        """The network that a module called from outside of all networks belongs to, itself maybe, and then called as
        its caller calls it; None if it holds no parameters."""
        known = self.layer(module)
        if known is not None:
            return known.partition(".")[0]
        if next(module.parameters(), None) is None:
            return None
        name = self.add(_variable(module, caller) or type(module).__name__, module)
        self.saw(name, args)
        return name

    def saw(self, name: str, args: tuple[Any, ...]) -> None:
        """Remember what a network's first input looked like."""
        if name not in self.inputs and args and isinstance(args[0], torch.Tensor):
            device = args[0].device.type
            on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
            self.inputs[name] = (tuple(args[0].shape), torch.get_autocast_dtype(device) if on else None)

    def of_optimizer(self, optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
        """Names of the networks that hold parameters of this optimiser."""
        if id(optimizer) not in self._owners:
            stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
            found = [name for name, m in self.modules.items() if any(id(p) in stepped for p in m.parameters())]
            self._owners[id(optimizer)] = tuple(found)
        return self._owners[id(optimizer)]

    @property
    def expected(self) -> set[str]:
        """The networks whose updates make up a step."""
        return self._expected

    def settle(self, updated: set[str]) -> None:
        """Expect no others than these: the rest can be trained, but nobody does."""
        self._expected = set(updated)


def _variable(module: nn.Module, caller: FrameType) -> str | None:
    """The name of a variable, or attribute of ``self``, that holds the module where it is called."""
    own = getattr(caller.f_locals.get("self"), "__dict__", {})
    for scope in (caller.f_locals, own, own.get("_modules", {}), caller.f_globals):
        for name, value in list(scope.items()):
            if value is module and name != "self" and not name.startswith("_"):
                return str(name)
    return None


class Tracker:
    """The layer that runs at this moment, also while gradients flow back.

    Autograd numbers its nodes in the order of the forward pass. So whenever a layer begins or ends the next number is
    noted, and a node of the backward pass belongs to the layer that was open when its number was given out.
    """

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._numbers: list[int] = []
        self._names: list[str] = []
        self._last = ""

    def enter(self, layer: str) -> None:
        """A layer begins, inside the one that is open."""
        self._stack.append(layer)
        self._note()

    def leave(self) -> None:
        """The layer that began last ends."""
        self._stack.pop()
        self._note()

    def _note(self) -> None:
        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._names.append(self._stack[-1] if self._stack else "")

    def of_number(self, number: int) -> str:
        """The layer of the autograd node with this number, "" if it is none's. Nodes without a number (gradients being
        added up) go with the one before."""
        if number >= 0:
            index = bisect.bisect_right(self._numbers, number) - 1
            self._last = self._names[index] if index >= 0 else ""
        return self._last

    def current(self) -> tuple[str, bool]:
        """The layer at work in this moment, and whether it is in its backward pass."""
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return (self._stack[-1] if self._stack else ""), False
        accumulates = node.name() == "torch::autograd::AccumulateGrad"
        return self.of_number(-1 if accumulates else node._sequence_nr()), True
