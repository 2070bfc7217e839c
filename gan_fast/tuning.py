"""`gan-fast tune`: measure, on this machine, each operator call that a training makes, and keep the faster backend.

    calls = tuning.record(step)             # what one training step asks for
    measured = tuning.measure(calls)        # our backends and PyTorch take turns
    tuning.save(measured)                   # the automatic choice follows it from now on

A call is measured at the operator's own level, with the activation that it carries: the kernel through the dispatcher
(what a Python operator costs is part of it), PyTorch as its own operations. Where the two are within
:data:`UNDECIDED` of each other the shipped rules go on deciding.
"""

from __future__ import annotations

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
from gan_fast.bench import interleaved
from gan_fast.cache import atomic_write
from gan_fast.choice_table import Choice
from gan_fast.machine import cpu_model
from gan_fast.ops.registry import OPERATORS, Operator, recording

__all__ = ["UNDECIDED", "Call", "Cell", "calibration", "default_file", "measure", "record", "save", "served"]

logger = logging.getLogger(__name__)

#: A ratio of times this near to 1 decides nothing.
UNDECIDED = 0.03
#: A turn lasts at least so many seconds, by repeating what is shorter.
SHORTEST_TURN = 2e-3


@dataclasses.dataclass(frozen=True)
class Call:
    """One kind of call: the operator, what the choice may ask about it, and the arguments without their tensors."""

    op: str
    facts: Mapping[str, Any]
    arguments: tuple[Any, ...]

    def make(self) -> list[Any]:
        """Arguments of this kind, with new random tensors."""
        generator = torch.Generator().manual_seed(0)
        return [value.make(generator) if isinstance(value, _TensorLike) else value for value in self.arguments]

    @property
    def text(self) -> str:
        """Operator and shapes, for a table."""
        tensors = [value for value in self.arguments[:2] if isinstance(value, _TensorLike)]
        words = ["x".join(map(str, tensor.shape)) for tensor in tensors]
        words += [self.facts["dtype"]] if "dtype" in self.facts else []
        return f"{self.op} {' '.join(words)}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A measured call: medians in seconds by backend ("torch" for PyTorch), and the backend to use (None:
    undecided)."""

    call: Call
    seconds: Mapping[str, float]

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

    def make(self, generator: torch.Generator) -> Tensor:
        # By strides, since a gradient may be expanded from fewer elements.
        held = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        numbers = (torch.randn(held, generator=generator) * 0.1).to(self.dtype)
        return numbers.as_strided(self.shape, self.stride)


def record(step: Callable[[], Any]) -> list[Call]:
    """The different calls in float32 and bfloat16 of the CPU kernels' operators that ``step()`` makes, as if kernels
    served them all.

    Raises:
        RuntimeError: the compiled module is not available, so there is nothing to choose from.
    """
    if backends.extension() is None:
        raise RuntimeError(f"there is nothing to tune without the compiled module: {backends.extension_error()}")
    found: dict[choice_table.Key, Call] = {}

    def recorder(operator: Operator, arguments: list[Any], _: Choice) -> None:
        facts = operator.facts(*arguments)
        device, dtype, rank = facts.pop("device"), facts.pop("dtype"), facts.get("rank")
        refused = backends.refusal(operator.name, "cpu", device=device, dtype=dtype, rank=rank)
        if dtype not in (torch.float32, torch.bfloat16) or refused is not None:
            return
        facts.update(choice_table.dtype_facts(dtype))
        facts.setdefault("rank", None)
        key = choice_table.key(operator.name, facts)
        if key not in found:
            specs = tuple(
                _TensorLike(tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else value
                for value in arguments
            )
            found[key] = Call(operator.name, facts, specs)

    with choice_table.always(Choice("cpu", "being recorded")), recording(recorder):
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


def measure(calls: Iterable[Call], rounds: int = 9, report: Callable[[Cell], None] | None = None) -> list[Cell]:
    """Time every call on PyTorch and on each of our backends that can run it, in turns. ``report`` gets each cell as
    soon as it is known."""
    cells = []
    fixed_work = calibration()
    for call in calls:
        operator = OPERATORS[call.op]
        arguments = call.make()
        programs = {name: functools.partial(operator, *arguments, name) for name in _candidates(call)}
        programs["torch"] = functools.partial(operator.implementations["reference"], *arguments)
        with torch.no_grad():
            first = interleaved.measure(programs, 1, calibration=fixed_work)
            shortest = min(result["seconds"] for result in first.values())
            repeats = max(1, math.ceil(SHORTEST_TURN / shortest))
            times = interleaved.measure(programs, rounds, 1, repeats, fixed_work)
        cells.append(Cell(call, {name: result["seconds"] for name, result in times.items()}))
        if report is not None:
            report(cells[-1])
    return cells


def _candidates(call: Call) -> list[str]:
    """Our backends that can run the call."""
    dtype = getattr(torch, call.facts.get("dtype", "float32"))
    return [
        name
        for name in ("cpu", "gemm")
        if name in OPERATORS[call.op].implementations
        and backends.refusal(call.op, name, device="cpu", dtype=dtype, rank=call.facts["rank"]) is None
    ]


def default_file() -> Path:
    """Where this machine's cells are kept: in the cache folder, or where GAN_FAST_TABLE says."""
    level = backends.instruction_level()
    return choice_table.tuned_file(level or "none", torch.get_num_threads(), cpu_model())


def save(cells: Iterable[Cell], path: Path | None = None) -> Path:
    """Write the cells beside those that the file has already (a new one replaces its own kind); in force at once.

    Args:
        cells: what was measured.
        path: the file; by default :func:`default_file`, which the choice reads by itself.

    Returns:
        The file.
    """
    path = default_file() if path is None else path
    machine = {
        "cpu": cpu_model(),
        "level": backends.instruction_level(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "gan_fast": gan_fast.__version__,
    }
    entries = {choice_table.key(entry["op"], entry["facts"]): entry for entry in _kept(path, machine)}
    for cell in cells:
        entries[choice_table.key(cell.call.op, cell.call.facts)] = {
            "op": cell.call.op,
            "facts": dict(cell.call.facts),
            "use": cell.use,
            "seconds": dict(cell.seconds),
        }
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
