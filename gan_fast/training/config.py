"""The settings of a training: checks, the dictionary that goes into ``config.json``, and the comparison for a
resume."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeGuard, TypeVar

import numpy as np
import torch

from gan_fast.precision import check
from gan_fast.words import near

from .errors import ConfigMismatchError

__all__ = [
    "UPDATES",
    "RunSettings",
    "TrainingSettings",
    "check_keywords",
    "compare",
    "differences",
    "number",
    "plain",
    "resolve_device",
    "suggesting",
    "whole",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")

UPDATES = ("alternating", "simultaneous")


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn "auto" into CUDA where there is one, else the CPU; refuse a device that this machine does not have."""
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:1', got {device!r}") from None
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device={str(device)!r}, but PyTorch sees no CUDA device here; use 'cpu' or 'auto'")
        if resolved.index is None:
            resolved = torch.device("cuda", torch.cuda.current_device())
        if resolved.index >= torch.cuda.device_count():
            raise ValueError(
                f"device={str(device)!r}, but there are {torch.cuda.device_count()} CUDA devices, counted from 0"
            )
    return resolved


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """What decides the numbers of a training; a resume asks for the same settings.

    Attributes:
        batch_size: real images in each step, and generated ones.
        precision: one of the words of `gan_fast.precision`.
        g_lr, d_lr: learning rates of the two Adam optimisers.
        betas, eps: Adam's, for both.
        seed: of the latent vectors and the order of the data.
        accelerate: whether layers were swapped for gan_fast's.
        update: "alternating" | "simultaneous", how the two updates of a step follow each other.
        cuda_graph: whether a step is recorded once and replayed.
    """

    batch_size: int
    precision: str
    g_lr: float
    d_lr: float
    betas: tuple[float, float]
    eps: float
    seed: int
    accelerate: bool
    update: str = "alternating"
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        _settle(self, "batch_size", whole("batch_size", self.batch_size, 1))
        _settle(self, "seed", whole("seed", self.seed, 0))
        _settle(self, "accelerate", bool(self.accelerate))
        _settle(self, "cuda_graph", bool(self.cuda_graph))
        check(self.precision)
        if self.update not in UPDATES:
            raise ValueError(f"update={self.update!r} is unknown; {near(self.update, UPDATES)}")
        if self.update == "simultaneous" and self.precision == "fp16":
            raise ValueError(
                "update='simultaneous' with precision='fp16': the gradients of both losses differ by more orders of "
                "magnitude than fp16 has; use precision='bf16', or update='alternating'"
            )
        for name in ("g_lr", "d_lr", "eps"):
            _settle(self, name, number(name, getattr(self, name)))
        betas = self.betas
        if not isinstance(betas, Sequence) or len(betas) != 2 or not all(_is_number(b) and 0 <= b < 1 for b in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
        _settle(self, "betas", (float(betas[0]), float(betas[1])))

    def check_device(self, device: torch.device) -> None:
        """Refuse a precision that ``device`` does not have."""
        check(self.precision, device.type)


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What decides where and how often things are written, never the numbers of the training.

    Attributes:
        outdir: folder of the run folders; None writes nothing.
        name: the part of the run folder's name after the number; None makes one from the networks and the data.
        log_every: steps from one line of stats.jsonl to the next, and from one look at the convergence rule to the
            next.
        sample_every, save_every: steps from one grid or checkpoint to the next; 0 for the last step only.
        keep_last: how many checkpoints stay; None for all.
        progress: True or False for a progress bar; None shows one on a terminal only.
    """

    outdir: str | None = "runs"
    name: str | None = None
    log_every: int = 50
    sample_every: int = 500
    save_every: int = 1000
    keep_last: int | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name, least in (("log_every", 1), ("sample_every", 0), ("save_every", 0)):
            _settle(self, name, whole(name, getattr(self, name), least))
        if self.keep_last is not None:
            _settle(self, "keep_last", whole("keep_last", self.keep_last, 1))
        if self.name is not None and (not self.name or set(self.name) & set("/\\\0") or self.name.startswith(".")):
            raise ValueError(f"name must be a plain folder name without separators, got {self.name!r}")


def _settle(settings: object, name: str, value: object) -> None:
    """Replace a field of a frozen dataclass by its plain form, which config.json can hold."""
    object.__setattr__(settings, name, value)


def suggesting(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function whose TypeError for an unknown keyword names the near ones (Python itself does so from 3.13 on)."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def checked(*args: _P.args, **given: _P.kwargs) -> _R:
        check_keywords(function.__qualname__.removesuffix(".__init__"), given, known)
        return function(*args, **given)

    return checked


def check_keywords(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for the first keyword that ``function`` does not have, with the near ones."""
    known = list(known)
    for word in given:
        if word not in known:
            raise TypeError(f"{function} has no argument {word!r}; {near(word, known)}")


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One line for each setting that differs. A setting that one side does not know is not compared."""
    return [
        f"{key}: {_show(stored[key])} in the checkpoint, {_show(current[key])} now"
        for key in stored
        if key in current and plain(stored[key]) != plain(current[key])
    ]


def compare(stored: Mapping[str, Any], current: Mapping[str, Any], *, place: str, remedy: str) -> None:
    """Raise `ConfigMismatchError` with every setting that differs."""
    found = differences(stored, current)
    if found:
        raise ConfigMismatchError(
            f"{place} was trained with another configuration: {'; '.join(found)}. {remedy}", found
        )


def plain(value: object) -> object:
    """The value as JSON would give it back: tuples become lists, paths strings, numpy's numbers plain ones."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, os.PathLike) else value


def _show(value: object) -> str:
    return repr(plain(value))


def whole(name: str, value: object, least: int) -> int:
    """The value as a plain int; numpy's integers are taken too.

    Raises:
        ValueError: no integer, or below ``least``.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    expected = "a positive integer" if least == 1 else f"an integer of at least {least}"
    raise ValueError(f"{name} must be {expected}, got {value!r}")


def number(name: str, value: object) -> float:
    """The value as a plain float; numpy's numbers are taken too.

    Raises:
        ValueError: no finite number above 0.
    """
    if _is_number(value) and value > 0:
        return float(value)
    raise ValueError(f"{name} must be a positive number, got {value!r}")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
