"""The progress bar, and the log lines where there is no terminal."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import Any

__all__ = ["Progress"]

logger = logging.getLogger(__name__)


class Progress:
    """Steps done, images per second, D(x) and D(G(z)).

    Args:
        start, goal: first and last step; ``goal`` is None if only a convergence rule ends the training.
        show: True, False, or None for a bar on a terminal and log lines elsewhere.
    """

    def __init__(self, start: int, goal: int | None, show: bool | None) -> None:
        shown = sys.stderr.isatty() if show is None else show
        self._bar: Any = None
        if shown:  # not tqdm(disable=True), which makes locks all the same
            from tqdm.auto import tqdm

            self._bar = tqdm(initial=start, total=goal, unit="step", dynamic_ncols=True, desc="training")
        self._goal = goal

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def report(self, row: dict[str, float]) -> None:
        """Show the figures of one line of stats.jsonl."""
        figures = (
            f"d_loss {row['d_loss']:.3f} g_loss {row['g_loss']:.3f} "
            f"D(x) {row['d_real']:.2f} D(G(z)) {row['d_fake']:.2f} {row['img_s']:.0f} img/s"
        )
        if self._bar is None:
            logger.info(
                "step %d%s epoch %.2f %s", row["step"], f"/{self._goal}" if self._goal else "", row["epoch"], figures
            )
        else:
            self._bar.set_postfix_str(figures, refresh=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
