"""The tables behind the automatic choice: the rules that ship with the package, and the cells that `gan-fast tune`
measured on this machine.

A *cell* is one operator with one set of facts (see backends_table.json); what was measured outweighs any rule. Cells
come from a file in the cache folder, one for each processor, instruction level and number of threads, and one for each
GPU, which holds for one driver and one version of everything; or from the file that GAN_FAST_TABLE names ("shipped":
rules only). For a GPU there are no rules: PyTorch serves what has no cell. A GPU's cell also tells the tile that was
fastest there, whoever serves. Nothing is ever measured while a network trains: the same table gives the same kernels,
and so the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.resources
import json
import logging
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gan_fast import __version__, machine
from gan_fast.cache import cache_dir
from gan_fast.machine import cpu_model

__all__ = [
    "Choice",
    "always",
    "cells",
    "decide",
    "decide_on_gpu",
    "dtype_facts",
    "forget",
    "gpu",
    "gpu_file",
    "look_up",
    "matches",
    "on_change",
    "rules",
    "table_hash",
    "tile",
    "tuned_file",
]

logger = logging.getLogger(__name__)

SHIPPED = "backends_table.json"
#: Of the file with measured cells; another one's are not read. It changes with the facts that a cell is looked up by.
FORMAT = 3

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "in": lambda value, options: value in options,
}


class Choice(NamedTuple):
    """A backend's name ("reference", "cpu", ..., or "torch") and the sentence that says why."""

    backend: str
    reason: str


#: In sentences.
_NAMES = {"cpu": "the kernel", "torch": "PyTorch"}

Key = tuple[str, frozenset[tuple[str, Any]]]


class _Table(NamedTuple):
    """A file's cells: its hash (None: there is no file), what they answer, and their tiles."""

    identity: str | None
    cells: dict[Key, Choice]
    tiles: dict[Key, tuple[int, ...]]


_NOTHING = _Table(None, {}, {})
_UNMEASURED = Choice("torch", "on CUDA PyTorch serves what gan-fast tune has not measured on this device")
_listeners: list[Callable[[], None]] = []
_forced: Choice | None = None


def rules() -> list[dict[str, Any]]:
    """The shipped rules, first match wins (format: see the "about" entry of backends_table.json)."""
    return list(_shipped()[1]["rules"])


def decide(op: str, facts: Mapping[str, Any], level: str | None) -> Choice:
    """The answer for operator ``op`` with these facts, supposing that the CPU kernels can run it at this instruction
    level (None: there are none)."""
    return look_up(op, facts, level) if _forced is None else _forced


def look_up(op: str, facts: Mapping[str, Any], level: str | None) -> Choice:
    """What the tables answer, whatever :func:`always` says: for a choice that is not between backends."""
    measured = cells(level)
    if measured:
        found = measured.get(key(op, facts))
        if found is not None:
            return found
    return by_rule(op, facts, level)


def by_rule(op: str, facts: Mapping[str, Any], level: str | None) -> Choice:
    """What the shipped rules answer, whatever was measured here."""
    for rule in _rules_for(level):
        if rule["use"] == "gemm" and "dtype" in facts:
            continue  # its products would round their columns to bfloat16
        if op in rule["ops"] and matches(rule, facts):
            return Choice(rule["use"], rule["why"])
    return Choice("torch", f"no rule of {SHIPPED} covers {op}")


def decide_on_gpu(op: str, facts: Mapping[str, Any]) -> Choice:
    """The same for a call on the current GPU: only what was measured there goes to a kernel of ours."""
    if _forced is not None:
        return _forced
    return _on_gpu().cells.get(key(op, facts), _UNMEASURED)


def tile(op: str, facts: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The tile that was fastest on the current GPU for Triton's kernel; None where nothing was measured."""
    return _on_gpu().tiles.get(key(op, facts))


def key(op: str, facts: Mapping[str, Any]) -> Key:
    """What a cell is looked up by."""
    return op, frozenset(facts.items())


def dtype_facts(dtype: torch.dtype, tf32: bool = False) -> dict[str, str]:
    """What a call's facts say of its dtype: nothing in float32, "tf32" where products of it are rounded. A rule
    that does not ask holds for all; measured cells hold for one dtype."""
    if tf32:
        return {"dtype": "tf32"}
    return {} if dtype == torch.float32 else {"dtype": str(dtype).removeprefix("torch.")}


def cells(level: str | None) -> dict[Key, Choice]:
    """What was measured on this machine with this many threads: {} if nothing was."""
    return _tuned(level, torch.get_num_threads()).cells


def table_hash(level: str | None, on_gpu: bool = False) -> str:
    """First 16 hex digits of the sha256 of rules and cells in force; part of a checkpoint, since they decide which
    kernel (hence which rounding) a run uses."""
    tuned = (_on_gpu() if on_gpu else _tuned(level, torch.get_num_threads())).identity
    return _shipped()[0] if tuned is None else hashlib.sha256((_shipped()[0] + tuned).encode()).hexdigest()[:16]


def tuned_file(level: str, threads: int, cpu: str) -> Path:
    """Where the cells of such a machine are kept unless GAN_FAST_TABLE names a file."""
    return _file(f"{_slug(cpu)}-{level}-{threads}threads")


def gpu(index: int) -> dict[str, str]:
    """What a GPU's cells hold for: device, driver and versions."""
    return {**machine.device(torch.device("cuda", index)), "gan_fast": __version__}


def gpu_file(name: str) -> Path:
    """Where the cells of a GPU of this name are kept unless GAN_FAST_TABLE names a file."""
    return _file(_slug(name))


def _file(stem: str) -> Path:
    chosen = os.environ.get("GAN_FAST_TABLE")
    if chosen and chosen != "shipped":
        return Path(chosen).expanduser()
    return cache_dir() / "tuned" / f"{stem}.json"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def forget() -> None:
    """Read the tables anew at the next choice; what was remembered of earlier choices goes too."""
    _tuned.cache_clear()
    _tuned_on_gpu.cache_clear()
    for listener in _listeners:
        listener()


def on_change(listener: Callable[[], None]) -> None:
    """Have ``listener`` called when earlier answers no longer hold."""
    _listeners.append(listener)


@contextlib.contextmanager
def always(choice: Choice) -> Iterator[None]:
    """Within the ``with`` block every answer is ``choice``, in all threads: for measuring what a table is made from."""
    global _forced
    before = _forced
    _forced = choice
    forget()
    try:
        yield
    finally:
        _forced = before
        forget()


@functools.cache
def _shipped() -> tuple[str, dict[str, Any]]:
    text = importlib.resources.files("gan_fast").joinpath(SHIPPED).read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()[:16], json.loads(text)


@functools.cache
def _rules_for(level: str | None) -> list[dict[str, Any]]:
    """The rules that hold at this instruction level: those of other levels (entry "levels") are left out."""
    return [rule for rule in rules() if level in rule.get("levels", [level])]


@functools.cache
def _tuned(level: str | None, threads: int) -> _Table:
    if level is None:
        return _NOTHING
    return _read(tuned_file(level, threads, cpu_model()), {"level": level, "threads": threads})


def _on_gpu() -> _Table:
    return _tuned_on_gpu(torch.cuda.current_device()) if torch.cuda.is_available() else _NOTHING


@functools.cache
def _tuned_on_gpu(index: int) -> _Table:
    here = gpu(index)
    return _read(gpu_file(here["device"]), here)


def _read(path: Path, here: Mapping[str, Any]) -> _Table:
    """The table of the file at ``path`` if it was measured ``here``; without one, or with one of another machine,
    :data:`_NOTHING`."""
    chosen = os.environ.get("GAN_FAST_TABLE")
    if chosen == "shipped":
        return _NOTHING
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        if chosen:
            logger.warning("GAN_FAST_TABLE: %s cannot be read (%s), the shipped rules decide", path, error)
        return _NOTHING
    try:
        content = json.loads(text)
        there = {"format": content["format"], **content["machine"]}
        found, tiles = {}, {}
        for cell in content["cells"]:
            what = key(cell["op"], cell["facts"])
            if cell["use"]:
                found[what] = Choice(str(cell["use"]), _why(cell))
            if cell.get("tile"):
                tiles[what] = tuple(int(number) for number in cell["tile"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is no table of gan-fast tune (%s: %s), not used", path, type(error).__name__, error)
        return _NOTHING
    if chosen and ("threads" in there) != ("threads" in here):
        return _NOTHING  # the one file is a GPU's, and here the processor asks, or the other way round
    expected = {"format": FORMAT, **here}
    other = [name for name in expected if there.get(name) != expected[name]]
    if other:
        was, is_ = (" and ".join(f"{name} {facts.get(name)}" for name in other) for facts in (there, expected))
        logger.warning("%s was measured for %s, here is %s: not used; gan-fast tune makes a new one", path, was, is_)
        return _NOTHING
    return _Table(hashlib.sha256(text.encode()).hexdigest()[:16], found, tiles)


def _why(cell: Mapping[str, Any]) -> str:
    times = ", ".join(f"{_NAMES.get(name, name)} {1e3 * took:.3g} ms" for name, took in cell["seconds"].items())
    return f"measured here by gan-fast tune: {times}"


def matches(rule: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether all of the rule's conditions hold; one on a fact that is not known does not."""
    for fact, condition in rule["when"].items():
        if fact not in facts:
            return False
        for name, bound in condition.items():
            if not _COMPARE[name](facts[fact], bound):
                return False
    return True
