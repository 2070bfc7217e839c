"""The stop rule "until the losses converge"."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gan_fast.words import near

from .config import whole

__all__ = ["Convergence", "ConvergenceWatch"]


@dataclasses.dataclass(frozen=True)
class Convergence:
    """Both losses are flat: their moving means stayed within a tolerance over a window.

    For each loss, the mean of the last ``window`` steps is followed over the last ``window`` steps; the loss counts as
    flat while the largest and the smallest of these means differ by at most ``tolerance``. The rule is looked at every
    ``log_every`` steps and fires when both losses were flat ``patience`` times in a row.

    Flat is not the same as good: a discriminator that has won (loss near 0) is flat as well, and the stop message says
    so.

    Attributes:
        window: steps; at least 2. The rule cannot fire before 2 * window - 1 steps.
        tolerance: in the unit of the loss (nats for "bce"); at least 0.
        patience: how many looks in a row must find both losses flat; at least 1.
        min_steps: the rule does not fire before this step.
    """

    window: int = 1000
    tolerance: float = 0.05
    patience: int = 3
    min_steps: int = 0

    def __post_init__(self) -> None:
        for name, least in (("window", 2), ("patience", 1), ("min_steps", 0)):
            object.__setattr__(self, name, whole(f"until: {name}", getattr(self, name), least))
        if not isinstance(self.tolerance, numbers.Real) or not math.isfinite(self.tolerance) or self.tolerance < 0:
            raise ValueError(f"until: tolerance must be a finite number of at least 0, got {self.tolerance!r}")
        object.__setattr__(self, "tolerance", float(self.tolerance))

    @classmethod
    def make(cls, until: Convergence | Mapping[str, Any] | bool | None) -> Convergence | None:
        """Read the argument ``until``: None or False for no rule, True for the defaults, a dict of settings, or a
        rule."""
        if until is None or until is False:
            return None
        if until is True:
            return cls()
        if isinstance(until, cls):
            return until
        known = [field.name for field in dataclasses.fields(cls)]
        if isinstance(until, Mapping):
            unknown = sorted(set(until) - set(known))
            if unknown:
                raise ValueError(f"until: unknown setting {', '.join(unknown)}; {near(unknown[0], known)}")
            return cls(**until)
        raise TypeError(f"until must be None, True, a dict with {', '.join(known)}, or a Convergence, got {until!r}")

    @classmethod
    def parse(cls, text: str) -> Convergence:
        """Read the command line's form: ``converged`` for the defaults, or ``window=500,tolerance=0.02,...``."""
        if text in ("converged", "convergence", "true"):
            return cls()
        settings: dict[str, Any] = {}
        for part in text.split(","):
            name, equals, value = part.partition("=")
            if not equals:
                raise ValueError(f"until: expected 'converged' or 'window=500,tolerance=0.02,...', got {text!r}")
            try:
                settings[name.strip()] = float(value) if name.strip() == "tolerance" else int(value)
            except ValueError:
                raise ValueError(f"until: {name.strip()}={value!r} is not a number of the right kind") from None
        rule = cls.make(settings)
        assert rule is not None
        return rule


class ConvergenceWatch:
    """Follows the losses of one run under a `Convergence` rule."""

    def __init__(self, rule: Convergence) -> None:
        self.rule = rule
        length = 2 * rule.window - 1
        self._losses: tuple[deque[float], deque[float]] = (deque(maxlen=length), deque(maxlen=length))
        self._in_a_row = 0
        self.reason: str | None = None

    def update(self, step: int, d_losses: Sequence[float], g_losses: Sequence[float]) -> str | None:
        """Take in the losses of the steps up to ``step``; returns the reason to stop, or None."""
        for kept, new in zip(self._losses, (d_losses, g_losses), strict=True):
            kept.extend(new)
        spreads = [self._spread(kept) for kept in self._losses]
        flat = all(spread is not None and spread <= self.rule.tolerance for spread in spreads)
        self._in_a_row = self._in_a_row + 1 if flat else 0
        if flat and self._in_a_row >= self.rule.patience and step >= self.rule.min_steps:
            d_mean, g_mean = (float(np.mean(list(kept)[-self.rule.window :])) for kept in self._losses)
            self.reason = (
                f"converged at step {step}: the {self.rule.window}-step means of d_loss ({d_mean:.4g}) and g_loss "
                f"({g_mean:.4g}) moved by {spreads[0]:.3g} and {spreads[1]:.3g} over the last {self.rule.window} steps "
                f"(tolerance {self.rule.tolerance:g}, {self._in_a_row} looks in a row)"
            )
            if d_mean < 0.01:
                self.reason += (
                    "; a d_loss this close to 0 means that the discriminator has won, not that the images are good"
                )
        return self.reason

    def _spread(self, losses: deque[float]) -> float | None:
        """Largest minus smallest moving mean over the last window; None while there are too few steps."""
        window = self.rule.window
        if len(losses) < 2 * window - 1:
            return None
        sums = np.cumsum(np.concatenate(([0.0], np.fromiter(losses, dtype=np.float64))))
        means = (sums[window:] - sums[:-window]) / window
        return float(means.max() - means.min())

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for a checkpoint."""
        return {
            "rule": dataclasses.asdict(self.rule),
            "d_losses": list(self._losses[0]),
            "g_losses": list(self._losses[1]),
            "in_a_row": self._in_a_row,
            "reason": self.reason,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. A rule other than the stored one starts afresh."""
        if state["rule"] != dataclasses.asdict(self.rule):
            return
        for kept, stored in zip(self._losses, (state["d_losses"], state["g_losses"]), strict=True):
            kept.clear()
            kept.extend(stored)
        self._in_a_row = int(state["in_a_row"])
        self.reason = state["reason"]
