"""The errors of the training package. Each text names what was found, where, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["CheckpointError", "ConfigMismatchError", "NonFiniteError", "NonFiniteLossError", "OutputError"]


class NonFiniteError(RuntimeError):
    """A parameter, buffer or optimiser moment is NaN or infinite, so the state is not worth keeping: nothing was
    saved."""


class NonFiniteLossError(NonFiniteError):
    """A loss became NaN or infinite.

    Attributes:
        step: the first step (counted from 1) whose loss was not finite.
        which: ``"d_loss"`` or ``"g_loss"``.
    """

    def __init__(self, message: str, *, step: int, which: str) -> None:
        super().__init__(message)
        self.step = step
        self.which = which


class CheckpointError(RuntimeError):
    """A checkpoint is missing, incomplete, corrupted or of another kind; the text names the file."""


class ConfigMismatchError(ValueError):
    """A run is to be continued under another configuration.

    Attributes:
        differences: one line for each setting that differs.
    """

    def __init__(self, message: str, differences: Sequence[str]) -> None:
        super().__init__(message)
        self.differences = tuple(differences)


class OutputError(OSError):
    """An output folder or file could not be written; the training state in memory is untouched."""
