"""The places where phases begin and end, watched from outside: nobody's code has to be changed for a profile.

What is watched has its attribute replaced on the class or module while a step is measured: calls of modules, autograd's
two functions, loaders and feeds, the losses, optimisers, and what writes logs. Hooks would do for modules, but
`gan_fast.sequential` fuses nothing into layers that have one, so that another program would be measured.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, dataloader

from gan_fast import losses
from gan_fast.data import Feed
from gan_fast.training import fit, progress, statistics

from .networks import Networks, Tracker
from .phases import BACKWARD, DATA, LOGGING, LOSS, OPTIMISER, SAVING, PhaseTimer

__all__ = ["LAYER", "PHASE", "Patches"]

#: What the ranges of layers and phases are called in a trace.
LAYER = "layer: "
PHASE = "phase: "


class Patches:
    """The watched places; `install` and `remove` may be called at any point of the program.

    Attributes:
        tracker: is told of layers where it is set.
        ranges: put a named range around phases and layers, for torch.profiler and, on CUDA, for NVTX.
    """

    def __init__(self, timer: PhaseTimer, networks: Networks) -> None:
        self.tracker: Tracker | None = None
        self.ranges = False
        self._timer, self._networks = timer, networks
        self._saved: list[tuple[Any, str, Any]] = []
        self._depth = 0

    def install(self) -> None:
        """Watch from here on."""
        if self._saved:
            return
        self._replace(nn.Module, "__call__", self._module_call(nn.Module.__call__))
        for owner, name, label, of_update in _places():
            original = getattr(owner, name)
            self._replace(owner, name, self.timed(original, label, of_update))

    def remove(self) -> None:
        """Put everything back as it was."""
        for owner, name, original in reversed(self._saved):
            setattr(owner, name, original)
        self._saved.clear()

    def timed(self, function: Callable[..., Any], label: str, of_update: bool = False) -> Callable[..., Any]:
        """The function, whose calls are a phase."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or not self._timer.mine():
                return function(*args, **kwargs)
            with self.phase(label, of_update):
                return function(*args, **kwargs)

        return call

    def phase(self, label: str, of_update: bool = False) -> _Phase:
        """A context manager: what runs within is of this phase."""
        return _Phase(self._timer, label, of_update, self.ranges)

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        self._saved.append((owner, name, vars(owner)[name]))
        setattr(owner, name, value)

    def _module_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or not self._timer.mine():
                return original(module, *args, **kwargs)
            name = self._networks.root(module)
            if name is not None:
                self._networks.saw(name, args)
            elif self._depth or self._timer.label == DATA:  # a layer, or a transform of a data set
                return self._layer(original, module, args, kwargs)
            else:
                name = self._networks.meet(module, args, sys._getframe(1))
            if name is None:  # no parameters
                kind = type(module).__name__
                with self.phase(LOSS if "loss" in kind.lower() else kind, True):
                    return original(module, *args, **kwargs)
            self._depth += 1
            try:
                with self.phase(f"{name} forward", True):
                    return self._layer(original, module, args, kwargs)
            finally:
                self._depth -= 1

        return call

    def _layer(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        if _is_compiled(module):
            original = self._unwatched(original)
        name = None if self.tracker is None else self._networks.layer(module)
        if self.tracker is None or name is None:
            return original(module, *args, **kwargs)
        with _Layer(self.tracker, name, self.ranges):
            return original(module, *args, **kwargs)

    def _unwatched(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The call with modules unwatched inside: a compiled network is one layer, and its compiler, which looks at how
        modules are called, must not find them changed from one step to the next."""

        def call(*args: Any, **kwargs: Any) -> Any:
            watching = vars(nn.Module)["__call__"]
            nn.Module.__call__ = original  # type: ignore[method-assign]  # what `remove` does too
            try:
                return original(*args, **kwargs)
            finally:
                nn.Module.__call__ = watching  # type: ignore[method-assign]  # what `install` does too

        return call


class _Phase:
    """An open phase: a class, because a generator would cost more than what it measures."""

    def __init__(self, timer: PhaseTimer, label: str, of_update: bool, ranges: bool) -> None:
        self._timer, self._label, self._of_update = timer, label, of_update
        self._range = _Range(PHASE + label) if ranges else None

    def __enter__(self) -> None:
        self._timer.enter(self._label, self._of_update)
        if self._range is not None:
            self._range.open()

    def __exit__(self, *details: object) -> None:
        if self._range is not None:
            self._range.close()
        self._timer.leave()


class _Layer:
    def __init__(self, tracker: Tracker, name: str, ranges: bool) -> None:
        self._tracker, self._name = tracker, name
        self._range = _Range(LAYER + name) if ranges else None

    def __enter__(self) -> None:
        self._tracker.enter(self._name)
        if self._range is not None:
            self._range.open()

    def __exit__(self, *details: object) -> None:
        if self._range is not None:
            self._range.close()
        self._tracker.leave()


class _Range:
    """A range with a name in torch.profiler's trace, and in Nsight's where there is CUDA."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._range = torch.profiler.record_function(name)
        self._nvtx = torch.cuda.is_available()

    def open(self) -> None:
        if self._nvtx:
            torch.cuda.nvtx.range_push(self._name)
        self._range.__enter__()

    def close(self) -> None:
        self._range.__exit__(None, None, None)
        if self._nvtx:
            torch.cuda.nvtx.range_pop()


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile made this module, or ``module.compile()`` was called."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules


def _places() -> Iterator[tuple[Any, str, str, bool]]:
    """(owner, attribute, phase, whether it is part of an update) of everything but modules."""
    yield torch.autograd, "backward", BACKWARD, True
    yield torch.autograd, "grad", BACKWARD, True
    yield torch.optim.Optimizer, "zero_grad", OPTIMISER, True
    yield DataLoader, "__iter__", DATA, False
    yield dataloader._BaseDataLoaderIter, "__next__", DATA, False
    for kind in _family(Feed):
        if "next" in vars(kind):
            yield kind, "next", DATA, False
    for kind in _family(losses.BCE):
        for name in ("d_loss", "g_loss"):
            if name in vars(kind):
                yield kind, name, LOSS, True
    for name in ("add", "read", "take"):
        yield statistics.LossLog, name, LOGGING, False
    yield statistics.StatsFile, "append", LOGGING, False
    for name in ("advance", "report"):
        yield progress.Progress, name, LOGGING, False
    for name in ("_save", "_save_fakes", "_save_curves", "_first_pictures"):
        yield fit.FitLoop, name, SAVING, False
    writers = sys.modules.get("torch.utils.tensorboard.writer")  # only where the program itself has loaded it
    if writers is not None:
        for name in ("add_scalar", "add_scalars", "add_image", "add_images", "add_histogram", "flush"):
            yield writers.SummaryWriter, name, LOGGING, False


def _family(kind: type[Any]) -> Iterator[type[Any]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)
