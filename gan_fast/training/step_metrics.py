"""What one training step tells."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["StepMetrics"]


class StepMetrics:
    """The result of one step. All are tensors on the training's device; reading one as a number waits for the device.

    Attributes:
        d_loss: (), the discriminator's loss before its update, real term plus generated term.
        g_loss: (), the generator's loss against the updated discriminator; in a simultaneous update, against the
            discriminator before its update.
    """

    __slots__ = ("_fake_logits", "_real_logits", "d_loss", "g_loss")

    def __init__(self, d_loss: Tensor, g_loss: Tensor, real_logits: Tensor, fake_logits: Tensor) -> None:
        self.d_loss = d_loss
        self.g_loss = g_loss
        self._real_logits = real_logits
        self._fake_logits = fake_logits

    @property
    def d_real(self) -> Tensor:
        """(), mean of the discriminator's probability for the real samples, before its update. Computed when asked
        for."""
        return torch.sigmoid(self._real_logits.float()).mean()

    @property
    def d_fake(self) -> Tensor:
        """(), mean of the discriminator's probability for the generated samples, before its update."""
        return torch.sigmoid(self._fake_logits.float()).mean()

    def copied(self) -> StepMetrics:
        """The same in memory of its own, by one kernel."""
        parts = (self.d_loss, self.g_loss, self._real_logits, self._fake_logits)
        packed = torch.cat([part.reshape(-1) for part in parts])
        pieces = packed.split([part.numel() for part in parts])
        return StepMetrics(*(piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)))

    def __repr__(self) -> str:
        values = (f"{name}={float(getattr(self, name)):.4f}" for name in ("d_loss", "g_loss", "d_real", "d_fake"))
        return f"StepMetrics({', '.join(values)})"
