"""The losses of a run, from the step to ``stats.jsonl``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from . import files
from .errors import NonFiniteLossError
from .step import StepMetrics

__all__ = ["LossLog", "StatsFile"]


class LossLog:
    """Collects the losses of each step without waiting for the device, and reads them all at once when asked."""

    def __init__(self) -> None:
        self._unread: list[StepMetrics] = []
        self._d: list[float] = []
        self._g: list[float] = []

    def add(self, metrics: StepMetrics) -> None:
        """Take in one step."""
        self._unread.append(metrics)

    def read(self, step: int) -> None:
        """Fetch what was not read yet; ``step`` is the number of the last step taken in.

        Raises:
            NonFiniteLossError: names the first step with a loss that is NaN or infinite.
        """
        if not self._unread:
            return
        fetched = torch.stack([torch.stack((m.d_loss.float(), m.g_loss.float())) for m in self._unread]).tolist()
        first = step - len(self._unread) + 1
        self._unread.clear()
        for number, pair in enumerate(fetched, start=first):
            for which, value in zip(("d_loss", "g_loss"), pair, strict=True):
                if not math.isfinite(value):
                    raise NonFiniteLossError(
                        f"{which} is {value} at step {number} (d_loss {pair[0]:.6g}, g_loss {pair[1]:.6g}); "
                        "training stopped",
                        step=number,
                        which=which,
                    )
            self._d.append(pair[0])
            self._g.append(pair[1])

    def take(self) -> tuple[list[float], list[float]]:
        """The losses read since the last call: (d_losses, g_losses)."""
        taken = self._d, self._g
        self._d, self._g = [], []
        return taken

    def clear(self) -> None:
        """Forget everything."""
        self._unread.clear()
        self.take()

    def state_dict(self) -> dict[str, Any]:
        """What was read and not yet taken. Call `read` first."""
        return {"d": list(self._d), "g": list(self._g)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._unread.clear()
        self._d, self._g = list(state["d"]), list(state["g"])


class StatsFile:
    """``stats.jsonl``: one JSON object a line, appended."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut_back(self, step: int) -> None:
        """Drop the lines after ``step``, those marked as partial, and a last line that a kill left unfinished."""
        if not self.path.exists():
            return
        kept = [row for row in self.rows() if row["step"] <= step and not row.get("partial")]
        files.replace_file(self.path, b"".join(_line(row) for row in kept))

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line."""
        with open(self.path, "ab") as file:
            file.write(_line(row))

    def flush(self) -> None:
        """Bring the lines to the disk, before a checkpoint that counts on them."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """All whole lines."""
        return list(_parse(self.path.read_bytes().splitlines())) if self.path.exists() else []


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(row)) + "\n").encode()


def _parse(lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the unfinished line of a killed process
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row
