"""Layers that look slower, measured again in processes of their own.

One process can be unlucky for its whole life (where its memory lies, which core it shares), and of many hundred cells
some look slower by chance. So a cell counts as slower only if it does in `results.PROCESSES` processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from gan_fast import tuning
from gan_fast.suite import layers, results, shapes
from gan_fast.suite.results import Row

__all__ = ["confirm"]

Cell = tuple[str, str]


def confirm(rows: Sequence[Row], *, provider: str, rounds: int) -> None:
    """Measure the layers of the fixed list that :func:`results.suspects` names again, and set their rows'
    ``slower_in``.

    Args:
        rows: of one process, changed in place.
        provider, rounds: as they were measured.

    Raises:
        RuntimeError: a process failed.
    """
    known = {shape.name for shape in shapes.SHAPES}
    open_ = {(row.name, row.pass_, row.dtype): row for row in results.suspects(rows) if row.name in known}
    for row in open_.values():
        row.slower_in = 1
    for _ in range(results.PROCESSES - 1):
        for dtype in {key[2] for key in open_}:
            cells = [key[:2] for key in open_ if key[2] == dtype]
            again = {(row.name, row.pass_) for row in results.suspects(_elsewhere(cells, provider, rounds, dtype))}
            for key in [key for key in open_ if key[2] == dtype]:
                if key[:2] in again:
                    open_[key].slower_in = (open_[key].slower_in or 0) + 1
                else:  # the rule asks for all processes
                    del open_[key]


def _elsewhere(cells: Iterable[Cell], provider: str, rounds: int, dtype: str) -> list[Row]:
    """The rows of these cells, measured in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "cells.json", Path(folder) / "rows.json"
        asked.write_text(json.dumps(list(cells)), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "gan_fast.suite.confirm",
            str(asked),
            str(answer),
            provider,
            str(rounds),
            dtype,
        ]
        done = subprocess.run([*command, str(torch.get_num_threads())], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"a process that measures again failed with status {done.returncode}:\n{done.stderr}")
        return results.read(answer)[1]


def main(argv: Sequence[str] | None = None) -> None:
    """The other process."""
    parser = argparse.ArgumentParser(prog="gan_fast.suite.confirm", description="measure cells of the layer list")
    parser.add_argument("cells", type=Path, help="JSON: [[layer's name, pass], ...]")
    parser.add_argument("out", type=Path, help="the result file to write")
    parser.add_argument("provider")
    parser.add_argument("rounds", type=int)
    parser.add_argument("dtype")
    parser.add_argument("threads", type=int)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    only: set[Cell] = {(name, which) for name, which in json.loads(args.cells.read_text(encoding="utf-8"))}
    names = {name for name, _ in only}
    found = layers.measure(
        [shape for shape in shapes.SHAPES if shape.name in names],
        provider=args.provider,
        dtype=getattr(torch, args.dtype),
        rounds=args.rounds,
        calibration=tuning.calibration(),
        only=only,
    )
    results.write(args.out, [row for rows in found for row in rows], results.describe())


if __name__ == "__main__":
    main()
