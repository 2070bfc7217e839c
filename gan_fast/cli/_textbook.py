"""The training loop of tutorials, in plain PyTorch: what `gan-fast profile --plain` looks at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gan_fast.training.latent import latent_shape

__all__ = ["Textbook"]


class Textbook:
    """One step: D on real and on generated images apart, then G against D, with two plain Adams.

    Args:
        generator, discriminator: networks; a last Sigmoid of D is met by BCELoss, logits by BCEWithLogitsLoss.
        device: where they are.
        precision: "bf16" or "fp16": autocast around the networks.
        latent_dim: size of a latent; None: the generator's own.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        device: torch.device,
        precision: str = "fp32",
        latent_dim: int | None = None,
    ) -> None:
        self.generator, self.discriminator, self.device = generator, discriminator, device
        self.latent = latent_shape(generator, latent_dim)
        sigmoid = isinstance(list(discriminator.modules())[-1], nn.Sigmoid)
        self.criterion: nn.Module = nn.BCELoss() if sigmoid else nn.BCEWithLogitsLoss()
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self.d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.g_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))

    def __call__(self, real: Tensor) -> None:
        """One step on a batch of real images."""
        real = real.to(self.device)
        z = torch.randn(len(real), *self.latent, device=self.device)
        self.d_optimizer.zero_grad()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            fake = self.generator(z)
            judged_real, judged_fake = self.discriminator(real), self.discriminator(fake.detach())
        (self._loss(judged_real, 1.0) + self._loss(judged_fake, 0.0)).backward()
        self.d_optimizer.step()
        self.g_optimizer.zero_grad()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            judged = self.discriminator(fake)
        self._loss(judged, 1.0).backward()
        self.g_optimizer.step()

    def _loss(self, logits: Tensor, target: float) -> Tensor:
        found: Tensor = self.criterion(logits.float(), torch.full_like(logits, target, dtype=torch.float32))
        return found
