"""The tables behind the automatic choice: the rules that ship with the package, and the cells that `gan-fast tune`
measured on this machine.

A *cell* is one operator with one set of facts (see backends_table.json); what was measured outweighs any rule. Cells
come from a file in the cache folder, one for each processor, instruction level and number of threads, or from the file
that GAN_FAST_TABLE names ("shipped": rules only). Nothing is ever measured while a network trains: the same table gives
the same kernels, and so the same bits.
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

from gan_fast.cache import cache_dir
from gan_fast.machine import cpu_model

__all__ = [
    "Choice",
    "always",
    "cells",
    "decide",
    "dtype_facts",
    "forget",
    "look_up",
    "matches",
    "on_change",
    "rules",
    "table_hash",
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
    for rule in _rules_for(level):
        if rule["use"] == "gemm" and "dtype" in facts:
            continue  # its products would round their columns to bfloat16
        if op in rule["ops"] and matches(rule, facts):
            return Choice(rule["use"], rule["why"])
    return Choice("torch", f"no rule of {SHIPPED} covers {op}")


def key(op: str, facts: Mapping[str, Any]) -> Key:
    """What a cell is looked up by."""
    return op, frozenset(facts.items())


def dtype_facts(dtype: torch.dtype) -> dict[str, str]:
    """What a call's facts say of its dtype: nothing in float32. Shipped rules do not ask; measured cells hold for one
    dtype."""
    return {} if dtype == torch.float32 else {"dtype": str(dtype).removeprefix("torch.")}


def cells(level: str | None) -> dict[Key, Choice]:
    """What was measured on this machine with this many threads: {} if nothing was."""
    return _tuned(level, torch.get_num_threads())[1]


def table_hash(level: str | None) -> str:
    """First 16 hex digits of the sha256 of rules and cells in force; part of a checkpoint, since they decide which
    kernel (hence which rounding) a run uses."""
    tuned = _tuned(level, torch.get_num_threads())[0]
    return _shipped()[0] if tuned is None else hashlib.sha256((_shipped()[0] + tuned).encode()).hexdigest()[:16]


def tuned_file(level: str, threads: int, cpu: str) -> Path:
    """Where the cells of such a machine are kept unless GAN_FAST_TABLE names a file."""
    chosen = os.environ.get("GAN_FAST_TABLE")
    if chosen and chosen != "shipped":
        return Path(chosen).expanduser()
    name = re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-")
    return cache_dir() / "tuned" / f"{name}-{level}-{threads}threads.json"


def forget() -> None:
    """Read the tables anew at the next choice; what was remembered of earlier choices goes too."""
    _tuned.cache_clear()
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
def _tuned(level: str | None, threads: int) -> tuple[str | None, dict[Key, Choice]]:
    """Hash and cells of the file for this machine; (None, {}) without one."""
    if level is None or os.environ.get("GAN_FAST_TABLE") == "shipped":
        return None, {}
    path = tuned_file(level, threads, cpu_model())
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        if os.environ.get("GAN_FAST_TABLE"):
            logger.warning("GAN_FAST_TABLE: %s cannot be read (%s), the shipped rules decide", path, error)
        return None, {}
    try:
        content = json.loads(text)
        machine = content["machine"]
        there = (content["format"], machine["level"], machine["threads"])
        found = {
            key(cell["op"], cell["facts"]): Choice(cell["use"], _why(cell)) for cell in content["cells"] if cell["use"]
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is no table of gan-fast tune (%s: %s), not used", path, type(error).__name__, error)
        return None, {}
    if there != (FORMAT, level, threads):
        logger.warning(
            "%s was measured for level %s and %s threads (format %s), here are level %s and %s threads (format %s): "
            "not used; gan-fast tune makes a new one",
            path,
            *(there[1], there[2], there[0]),
            *(level, threads, FORMAT),
        )
        return None, {}
    return hashlib.sha256(text.encode()).hexdigest()[:16], found


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
