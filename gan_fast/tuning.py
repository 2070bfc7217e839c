"""`gan-fast tune`: measure, on this machine, each operator call that a training makes, and keep the faster backend.

    calls = tuning.record(step)             # what one training step asks for
    measured = tuning.measure(calls)        # our backends and PyTorch take turns
    tuning.save(measured)                   # the automatic choice follows it from now on

A call is measured at the operator's own level, with the activation that it carries: the kernel through the dispatcher
(what a Python operator costs is part of it), PyTorch as its own operations. Where the two are within
:data:`UNDECIDED` of each other the shipped rules go on deciding. On a GPU everything that can serve a call takes part:
each of the few tiles that Triton's kernel may be compiled with, the CUDA module, and PyTorch (cuDNN); kernels that the
check at first use finds wrong do not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gan_fast
from gan_fast import backends, choice_table
from gan_fast.bench import interleaved, on_device
from gan_fast.cache import atomic_write
from gan_fast.choice_table import Choice
from gan_fast.machine import cpu_model
from gan_fast.ops import _triton, first_use
from gan_fast.ops.registry import OPERATORS, Operator, prepared, recording
from gan_fast.precision import float32_products

__all__ = ["UNDECIDED", "Call", "Cell", "calibration", "default_file", "measure", "record", "save", "served"]

logger = logging.getLogger(__name__)

#: A ratio of times this near to 1 decides nothing.
UNDECIDED = 0.03
#: A turn lasts at least so many seconds, by repeating what is shorter.
SHORTEST_TURN = 2e-3
#: Our backends by the kind of device that they are for.
_ON_CPU, _ON_GPU = ("cpu", "gemm"), ("triton", "cuda")


@dataclasses.dataclass(frozen=True)
class Call:
    """One kind of call: the operator, what the choice may ask about it, the arguments without their tensors, the type
    of device, and the backends that have kernels for it."""

    op: str
    facts: Mapping[str, Any]
    arguments: tuple[Any, ...]
    device: str = "cpu"
    backends: tuple[str, ...] = ("cpu",)

    def make(self) -> list[Any]:
        """Arguments of this kind, with new random tensors."""
        generator = torch.Generator().manual_seed(0)
        return [
            value.make(generator, self.device) if isinstance(value, _TensorLike) else value for value in self.arguments
        ]

    @property
    def text(self) -> str:
        """Operator and shapes, for a table."""
        tensors = [value for value in self.arguments[:2] if isinstance(value, _TensorLike)]
        words = ["x".join(map(str, tensor.shape)) for tensor in tensors]
        words += [self.facts["dtype"]] if "dtype" in self.facts else []
        return f"{self.op} {' '.join(words)}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A measured call: medians in seconds by backend ("torch" for PyTorch), the backend to use (None: undecided), and
    the fastest tile of Triton's kernel."""

    call: Call
    seconds: Mapping[str, float]
    tile: _triton.Tile | None = None

    @property
    def best(self) -> str:
        """The fastest of our backends."""
        return min((name for name in self.seconds if name != "torch"), key=lambda name: self.seconds[name])

    @property
    def gain(self) -> float:
        """PyTorch's time as a multiple of the best backend's."""
        return self.seconds["torch"] / self.seconds[self.best]

    @property
    def use(self) -> str | None:
        """The fastest backend, "torch" among them, or None where it is no nearer than :data:`UNDECIDED`."""
        if abs(self.gain - 1) <= UNDECIDED:
            return None
        return self.best if self.gain > 1 else "torch"


@dataclasses.dataclass(frozen=True)
class _TensorLike:
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self, generator: torch.Generator, device: str) -> Tensor:
        # By strides, since a gradient may be expanded from fewer elements.
        held = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        numbers = (torch.randn(held, generator=generator) * 0.1).to(device, self.dtype)
        return numbers.as_strided(self.shape, self.stride)


def record(step: Callable[[], Any]) -> list[Call]:
    """The different calls that ``step()`` makes of operators for which there are kernels here: on the CPU in float32
    and bfloat16, on a GPU also in float16. The step runs on the reference.

    Raises:
        RuntimeError: no kernels are available, so there is nothing to choose from.
    """
    if not any(backends.available()[name][0] for name in (*_ON_CPU, *_ON_GPU)):
        raise RuntimeError(f"there is nothing to tune without the compiled module: {backends.extension_error()}")
    found: dict[choice_table.Key, Call] = {}

    def recorder(operator: Operator, arguments: list[Any], _: Choice) -> None:
        facts = operator.facts(*arguments)
        device, dtype, rank = facts["device"], facts["dtype"], facts.get("rank")
        kernels = tuple(
            name
            for name in (_ON_GPU if device == backends.GPU else _ON_CPU)
            if name in operator.implementations
            and backends.refusal(operator.name, name, device=device, dtype=dtype, rank=rank) is None
        )
        if dtype == torch.float64 or not kernels:
            return
        asked = backends.question(**facts)
        key = choice_table.key(operator.name, asked)
        if key not in found:
            specs = tuple(
                _TensorLike(tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else value
                for value in arguments
            )
            found[key] = Call(operator.name, asked, specs, device, kernels)

    with choice_table.always(Choice("reference", "being recorded")), recording(recorder):
        step()
    return list(found.values())


def served(run: Callable[[], Any]) -> tuple[Any, list[str]]:
    """The result of ``run()``, and the operators that our kernels served in it."""
    kernels: list[str] = []

    def note(operator: Operator, _: list[Any], choice: Choice) -> None:
        if choice.backend not in ("torch", "reference"):
            kernels.append(operator.name)

    with recording(note):
        return run(), kernels


def calibration() -> interleaved.Calibration:
    """A calibration by multiply-adds at the kernels' level on all threads, so that its peak is theirs; by PyTorch's
    matrix product where there is no compiled module."""
    module = backends.extension()
    threads = torch.get_num_threads()
    return interleaved.Calibration(None if module is None else lambda rounds: module.fma_peak(1000 * rounds, threads))


def measure(
    calls: Iterable[Call],
    rounds: int = 9,
    report: Callable[[Cell], None] | None = None,
    clock: on_device.Clock = on_device.one_by_one,
) -> list[Cell]:
    """Time every call on all that can serve it, in turns.

    Args:
        calls: what was recorded.
        rounds: turns of each.
        report: gets each cell as soon as it is known.
        clock: how calls on a GPU are timed: :func:`on_device.one_by_one` or, for steps that are captured,
            :func:`on_device.as_graph`.
    """
    cells = []
    fixed_work: interleaved.Calibration | None = None
    for call in calls:
        cell: Cell | None
        with torch.no_grad():
            if call.device == backends.GPU:
                cell = _race(call, rounds, clock)
            else:
                fixed_work = calibration() if fixed_work is None else fixed_work
                cell = _take_turns(call, rounds, fixed_work)
        if cell is None:
            continue
        cells.append(cell)
        if report is not None:
            report(cell)
    return cells


def _take_turns(call: Call, rounds: int, fixed_work: interleaved.Calibration) -> Cell:
    """The CPU's backends and PyTorch."""
    operator = OPERATORS[call.op]
    arguments = call.make()
    programs = {name: functools.partial(operator, *arguments, name) for name in call.backends}
    programs["torch"] = functools.partial(prepared(operator.implementations["reference"], *arguments), *arguments)
    first = interleaved.measure(programs, 1, calibration=fixed_work)
    shortest = min(result["seconds"] for result in first.values())
    repeats = max(1, math.ceil(SHORTEST_TURN / shortest))
    times = interleaved.measure(programs, rounds, 1, repeats, fixed_work)
    return Cell(call, {name: result["seconds"] for name, result in times.items()})


def _race(call: Call, rounds: int, clock: on_device.Clock) -> Cell | None:
    """Every kernel and tile that is healthy on this GPU, and PyTorch; None if no kernel is."""
    operator = OPERATORS[call.op]
    arguments = call.make()
    runs: dict[str, tuple[str, _triton.Tile | None]] = {}
    with float32_products("tf32" if call.facts.get("dtype") == "tf32" else "fp32", "cuda"):
        for name in call.backends:
            for tile in _tiles(call.op, arguments) if name == "triton" else (None,):
                if _is_fit(call.op, name, tile, arguments):
                    runs[f"{name} {tile}"] = (name, tile)
        if not runs:
            return None
        programs = {
            label: functools.partial(_run, tile, operator, *arguments, name) for label, (name, tile) in runs.items()
        }
        programs["torch"] = functools.partial(prepared(operator.implementations["reference"], *arguments), *arguments)
        times = on_device.measure(programs, rounds, clock)
    order = sorted(runs, key=times.__getitem__)
    fastest = {runs[label][0]: times[label] for label in reversed(order)}
    tile = next((runs[label][1] for label in order if runs[label][1] is not None), None)
    return Cell(
        call, {**{name: fastest[name] for name in call.backends if name in fastest}, "torch": times["torch"]}, tile
    )


def _run(tile: _triton.Tile | None, run: Callable[..., Any], *arguments: Any) -> Any:
    with contextlib.nullcontext() if tile is None else _triton.tile(tile):
        return run(*arguments)


def _tiles(op: str, arguments: list[Any]) -> list[_triton.Tile | None]:
    """What Triton's kernel of a call may be compiled with, without those that come to the same; [None] if it has no
    tiles."""
    kernel = first_use.module_function(op, "triton")
    named = next((launch.tiles for launch in _triton.launches(kernel, arguments) if launch.tiles), ())
    different: dict[str, _triton.Tile | None] = {}
    for tile in named:
        with _triton.tile(tile):
            launches = _triton.launches(kernel, arguments)
        different.setdefault(str([(*launch[3:6], launch.programs) for launch in launches]), tile)
    return list(different.values()) or [None]


def _is_fit(op: str, backend: str, tile: _triton.Tile | None, arguments: list[Any]) -> bool:
    """Whether a kernel passes the check at first use, and runs."""
    try:
        return bool(_run(tile, first_use.passes, op, backend, tuple(arguments))) and (
            _run(tile, OPERATORS[op], *arguments, backend) is not None
        )
    except Exception as error:
        if not isinstance(error, RuntimeError) and type(error).__name__ != "OutOfResources":
            raise
        logger.info("%s on %s with %s does not take part: %s", op, backend, tile, error)
        return False


def default_file(device: str = "cpu") -> Path:
    """Where this machine's cells for a type of device are kept: in the cache folder, or where GAN_FAST_TABLE says."""
    if device == backends.GPU:
        return choice_table.gpu_file(_machine(device)["device"])
    level = backends.instruction_level()
    return choice_table.tuned_file(level or "none", torch.get_num_threads(), cpu_model())


def _machine(device: str) -> dict[str, Any]:
    """What cells of a type of device hold for."""
    if device == backends.GPU:
        return choice_table.gpu(torch.cuda.current_device())
    return {
        "cpu": cpu_model(),
        "level": backends.instruction_level(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "gan_fast": gan_fast.__version__,
    }


def save(cells: Iterable[Cell], path: Path | None = None) -> Path:
    """Write the cells beside those that the file has already (a new one replaces its own kind); in force at once.

    Args:
        cells: what was measured, all on one type of device.
        path: the file; by default :func:`default_file`, which the choice reads by itself.

    Returns:
        The file.
    """
    cells = list(cells)
    devices = {cell.call.device for cell in cells} or {"cpu"}
    if len(devices) > 1:
        raise ValueError(f"cells: got those of {' and '.join(sorted(devices))}, expected one type of device for a file")
    (device,) = devices
    path = default_file(device) if path is None else path
    machine = _machine(device)
    entries = {choice_table.key(entry["op"], entry["facts"]): entry for entry in _kept(path, machine)}
    for cell in cells:
        entry: dict[str, Any] = {
            "op": cell.call.op,
            "facts": dict(cell.call.facts),
            "use": cell.use,
            "seconds": dict(cell.seconds),
        }
        if cell.tile is not None:
            entry["tile"] = list(cell.tile)
        entries[choice_table.key(cell.call.op, cell.call.facts)] = entry
    content = {"format": choice_table.FORMAT, "machine": machine, "cells": list(entries.values())}
    text = json.dumps(content, indent=1) + "\n"

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    atomic_write(path, write)
    choice_table.forget()
    return path


def _kept(path: Path, machine: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cells of the file at ``path`` if it is of the very same machine and versions; figures of others do not
    mix."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] == choice_table.FORMAT and content["machine"] == machine:
            return list(content["cells"])
        logger.info("%s is of another machine or version, its cells go", path)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s is no table of gan-fast tune (%s), replaced", path, error)
    return []
