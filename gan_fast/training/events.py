"""TensorBoard events beside stats.jsonl, where tensorboard is installed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["open_events"]

logger = logging.getLogger(__name__)

_NOT_PLOTTED = ("step", "seconds")


@contextlib.contextmanager
def open_events(folder: Path | None, step: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that writes one line of stats.jsonl as TensorBoard scalars; it does nothing without tensorboard or a
    folder.

    Args:
        folder: the run folder.
        step: steps done so far; what an earlier process wrote beyond it is hidden.
    """
    summary_writer = _summary_writer() if folder is not None else None
    if summary_writer is None:
        yield _ignore
        return
    writer = summary_writer(log_dir=str(folder), purge_step=step + 1)

    def write(row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name not in _NOT_PLOTTED:
                writer.add_scalar(name, value, row["step"])

    try:
        yield write
    finally:
        writer.close()


def _summary_writer() -> Callable[..., Any] | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.debug("no TensorBoard events: tensorboard is not installed")
        return None
    return SummaryWriter


def _ignore(row: Mapping[str, Any]) -> None:
    pass
