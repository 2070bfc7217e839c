"""Training: the `Trainer`, its stop rule, its results and its errors."""

from __future__ import annotations

from .convergence import Convergence
from .errors import CheckpointError, ConfigMismatchError, NonFiniteError, NonFiniteLossError, OutputError
from .fit import FitResult
from .step import StepMetrics
from .trainer import Trainer

__all__ = [
    "CheckpointError",
    "ConfigMismatchError",
    "Convergence",
    "FitResult",
    "NonFiniteError",
    "NonFiniteLossError",
    "OutputError",
    "StepMetrics",
    "Trainer",
]
