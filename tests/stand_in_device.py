"""A CPU that records and replays as a CUDA device does, for the tests of the step's graph.

Every operation that PyTorch calls while a step is recorded is kept with the very tensors it was given; a replay calls
them again without any Python of the step: inputs are read where they were, results written where they were. As on a
device a recording does nothing (what it wrote outside is put back, what it made holds NaN), refuses to tell values, and
refuses to draw from a generator that was not registered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gan_fast.training.cuda import Waits

aten = torch.ops.aten
T = TypeVar("T")
#: What waits for a device: values told to Python, shapes that hang on values, tensors made from Python's numbers.
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.lift_fresh.default,
}


def storages(values: Any) -> dict[int, torch.UntypedStorage]:
    """Of all tensors in nested arguments, by address."""
    found = (value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor))
    return {storage.data_ptr(): storage for storage in found if storage.nbytes()}


class Watch(TorchDispatchMode):
    """Refuses what waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING:
            raise RuntimeError("called a synchronizing CUDA operation")
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """Keeps the operations of a recording."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.generators = generators
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.made: dict[int, Tensor] = {}
        self.outside: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in WAITING:
            raise RuntimeError("operation not permitted when stream is capturing")
        given = storages((args, kwargs))
        for address, storage in given.items():
            if address not in self.made and address not in self.outside:
                self.outside[address] = storage, storage.clone()
        before = [generator.get_state() for generator in self.generators]
        out = func(*args, **kwargs)
        if any(isinstance(value, torch.Generator) for value in tree_leaves((args, kwargs))):
            # It comes in a wrapping of its own: whether it is one of ours shows in that ours has moved.
            after = [generator.get_state() for generator in self.generators]
            if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
                raise RuntimeError("a generator draws that is not registered with the graph")
        self.calls.append((func, args, kwargs, out))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and storages(value).keys() - given.keys():
                self.made[value.untyped_storage().data_ptr()] = value.detach()
        return out

    def undo(self) -> None:
        """Leave everything outside as it was, and nothing of use inside."""
        for storage, before in self.outside.values():
            storage.copy_(before)
        for tensor in self.made.values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))

    def replay(self) -> None:
        """Do the work once."""
        with torch.no_grad():
            for func, args, kwargs, out in self.calls:
                given = storages((args, kwargs))
                for there, result in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(there, Tensor) and storages(there).keys() - given.keys():
                        there.detach().copy_(result)


class StandIn:
    """`gan_fast.training.cuda.Device` on the CPU.

    Attributes:
        recordings: how many were made.
        replays: how many there were.
        copies: what became of each batch's copy, in order: ("send", buffer) and ("wait", buffer).
    """

    def __init__(self) -> None:
        self.recordings = 0
        self.replays = 0
        self.copies: list[tuple[str, int]] = []
        self._aside = False
        self._sent: dict[int, bool] = {}  # address of a buffer: whether the device may still read it

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        self._aside = True
        try:
            yield
        finally:
            self._aside = False

    @contextlib.contextmanager
    def no_waiting(self) -> Iterator[None]:
        assert self._aside, "a rehearsal belongs on the stream of the recording"
        try:
            with Watch():
                yield
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            place = error.__traceback__
            while place is not None and place.tb_next and place.tb_next.tb_frame.f_code.co_filename != __file__:
                place = place.tb_next
            assert place is not None
            place.tb_next = None  # a device's error comes without Python's frames of its own
            raise Waits(str(error)) from error

    def capture(self, work: Callable[[], T], generators: Sequence[torch.Generator]) -> tuple[Callable[[], None], T]:
        states = [torch.get_rng_state(), *(generator.get_state() for generator in generators)]
        tape = Tape(generators)
        try:
            with tape:
                found = work()
        finally:
            torch.set_rng_state(states[0])
            for generator, state in zip(generators, states[1:], strict=True):
                generator.set_state(state)
            tape.undo()
        self.recordings += 1

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay, found

    def staging(self, like: Tensor) -> Tensor:
        return torch.empty_like(like)

    def send(self, staged: Tensor) -> tuple[Tensor, Callable[[], None]]:
        buffer = staged.data_ptr()
        assert not self._sent.get(buffer), "the device may still read this buffer"
        self._sent[buffer] = True
        self.copies.append(("send", buffer))

        def wait() -> None:
            self._sent[buffer] = False
            self.copies.append(("wait", buffer))

        return staged.clone(), wait
