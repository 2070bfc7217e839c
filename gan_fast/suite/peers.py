"""The programs that gan_fast is measured against, in plain PyTorch; nothing here imports gan_fast.

Networks (functions that return (G, D) of plain `torch.nn` layers; D gives logits (N, 1)):

* `article`: the article's MNIST networks: no activation between hidden layers, tanh at G's end.
* `article_act`: the same with LeakyReLU(0.2) after every hidden layer.
* `pytorch_gan_dcgan`: the DCGAN of the PyTorch-GAN collection at 32x32: Upsample and convolution on the way up.
* `dcgan64`: the DCGAN of PyTorch's examples at 64x64; not in NETWORKS, where gan_fast.models has it.

Steps (classes with `step(real, z) -> (d_loss, g_loss)`, detached scalars), one update of D and one of G on the same
fakes:

* `Textbook`: what users write. The fakes are detached for D, D's weight gradients are computed in G's step too (and
  thrown away), plain Adam, D runs on real and fake separately.
* `Frozen`: the same mathematics without the waste. D runs once on both batches, has no weight gradients in G's
  step, fused Adam. Only for a D without batch statistics, since it sees real and fake as one batch, and without
  dropout, whose masks would be others; `apart=True` is for the others: D runs twice, and the rest is the same.

A ratio always names the network, the step, the memory format and the allocator (default, or tuned by GLIBC_TUNABLES).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["NETWORKS", "STEPS", "Frozen", "Textbook", "article", "article_act", "dcgan64", "pytorch_gan_dcgan"]

#: How a program for PyTorch says "double the size" and "halve it". "torch" is what its users write (padding 2 and
#: output padding 1, padding 1); "keras" is the article's own geometry, which plain PyTorch can only say with a crop
#: and a pad.
GEOMETRIES = ("torch", "keras")


class Crop(nn.Module):
    """Drop the last row and column: what Keras' "same" does to a stride-2 transposed convolution with kernel 5 and
    padding 1."""

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H - 1, W - 1)."""
        return images[:, :, :-1, :-1]


def article(
    latent_dim: int = 100, width: int = 128, channels: int = 1, *, geometry: str = "torch", activation: bool = False
) -> tuple[nn.Sequential, nn.Sequential]:
    """The article's generator and discriminator.

    Args:
        latent_dim: length of a latent; G takes (N, latent_dim).
        width: channels of every hidden layer.
        channels: of the images, which are 28x28.
        geometry: one of `GEOMETRIES`; sizes and work are the same, the results are one pixel apart.
        activation: put LeakyReLU(0.2) after every hidden layer.
    """
    if geometry not in GEOMETRIES:
        raise ValueError(f"geometry: got {geometry!r}, expected one of {', '.join(GEOMETRIES)}")
    keras = geometry == "keras"

    def hidden(*layers: nn.Module) -> list[nn.Module]:
        return [*layers, nn.LeakyReLU(0.2)] if activation else list(layers)

    def up() -> list[nn.Module]:
        if keras:
            return hidden(nn.ConvTranspose2d(width, width, 5, stride=2, padding=1), Crop())
        return hidden(nn.ConvTranspose2d(width, width, 5, stride=2, padding=2, output_padding=1))

    def down(inputs: int) -> list[nn.Module]:
        if keras:
            return hidden(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(inputs, width, 3, stride=2))
        return hidden(nn.Conv2d(inputs, width, 3, stride=2, padding=1))

    generator = nn.Sequential(
        *hidden(nn.Linear(latent_dim, width * 7 * 7)),
        nn.Unflatten(1, (width, 7, 7)),
        *up(),
        *up(),
        nn.Conv2d(width, channels, 7, padding=3),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(*down(channels), *down(width), nn.Flatten(), nn.Linear(width * 7 * 7, 1))
    return generator, discriminator


def article_act(
    latent_dim: int = 100, width: int = 128, channels: int = 1, *, geometry: str = "torch"
) -> tuple[nn.Sequential, nn.Sequential]:
    """`article` with LeakyReLU(0.2) after every hidden layer."""
    return article(latent_dim, width, channels, geometry=geometry, activation=True)


def pytorch_gan_dcgan(
    latent_dim: int = 100, channels: int = 1, size: int = 32, width: int = 128
) -> tuple[nn.Sequential, nn.Sequential]:
    """PyTorch-GAN's DCGAN; its sigmoid at D's end is left to the loss.

    Args:
        latent_dim: length of a latent; G takes (N, latent_dim).
        channels: of the images.
        size: height and width of the images, a multiple of 16.
        width: channels of G's first layer and D's last.
    """
    slope, eps = 0.2, 0.8  # that eps is what the collection's second argument of BatchNorm2d comes to

    def down(inputs: int, outputs: int, normalise: bool = True) -> list[nn.Module]:
        layers = [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.LeakyReLU(slope, inplace=True), nn.Dropout2d(0.25)]
        return [*layers, nn.BatchNorm2d(outputs, eps)] if normalise else layers

    start = size // 4
    generator = nn.Sequential(
        nn.Linear(latent_dim, width * start**2),
        nn.Unflatten(1, (width, start, start)),
        nn.BatchNorm2d(width),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(width, width, 3, stride=1, padding=1),
        nn.BatchNorm2d(width, eps),
        nn.LeakyReLU(slope, inplace=True),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(width, width // 2, 3, stride=1, padding=1),
        nn.BatchNorm2d(width // 2, eps),
        nn.LeakyReLU(slope, inplace=True),
        nn.Conv2d(width // 2, channels, 3, stride=1, padding=1),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        *down(channels, width // 8, normalise=False),
        *down(width // 8, width // 4),
        *down(width // 4, width // 2),
        *down(width // 2, width),
        nn.Flatten(),
        nn.Linear(width * (size // 16) ** 2, 1),
    )
    return generator, discriminator


def dcgan64(latent_dim: int = 100, channels: int = 3, width: int = 64) -> tuple[nn.Sequential, nn.Sequential]:
    """The DCGAN of PyTorch's examples, with its initial weights; its sigmoid at D's end is left to the loss.

    Args:
        latent_dim: channels of a latent; G takes (N, latent_dim, 1, 1).
        channels: of the images, which are 64x64.
        width: channels of G's last hidden layer and of D's first.
    """

    def up(inputs: int, outputs: int, stride: int, padding: int) -> list[nn.Module]:
        layer = nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False)
        return [layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    def down(inputs: int, outputs: int) -> list[nn.Module]:
        layer = nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False)
        return [layer, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, inplace=True)]

    generator = nn.Sequential(
        *up(latent_dim, width * 8, 1, 0),
        *up(width * 8, width * 4, 2, 1),
        *up(width * 4, width * 2, 2, 1),
        *up(width * 2, width, 2, 1),
        nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(channels, width, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
        *down(width, width * 2),
        *down(width * 2, width * 4),
        *down(width * 4, width * 8),
        nn.Conv2d(width * 8, 1, 4, 1, 0, bias=False),
        nn.Flatten(),
    )
    for layer in (*generator, *discriminator):
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
    return generator, discriminator


def _full(logits: Tensor) -> Tensor:
    """Logits in at least float32: no loss is computed in a 16-bit type."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


class _Step:
    """What both steps share: the networks, their memory format, the optimisers, autocast.

    Args:
        generator, discriminator: moved to `memory_format` in place.
        lr, betas, eps: of both Adams.
        memory_format: `torch.contiguous_format` (NCHW) or `torch.channels_last`; applied to the weights and the
            real images.
        autocast: a dtype to run both networks under autocast with, or None.
        capturable: keep Adam's counters on the device, as the capture of a CUDA graph needs it.
    """

    fused_adam = False

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        eps: float = 1e-8,
        memory_format: torch.memory_format = torch.contiguous_format,
        autocast: torch.dtype | None = None,
        capturable: bool = False,
    ) -> None:
        self.generator = generator.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch types 4-D only
        self.discriminator = discriminator.to(memory_format=memory_format)  # type: ignore[call-overload]  # the same
        self.memory_format = memory_format
        self.autocast = autocast
        settings: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "capturable": capturable}
        settings["fused"] = True if self.fused_adam else None
        self.g_optimiser = torch.optim.Adam(generator.parameters(), **settings)
        self.d_optimiser = torch.optim.Adam(discriminator.parameters(), **settings)

    def _precision(self, images: Tensor) -> contextlib.AbstractContextManager[object]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(images.device.type, dtype=self.autocast)


class Textbook(_Step):
    """The loop of tutorials and examples, without their calls of `.item()`."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module, **settings: object) -> None:
        super().__init__(generator, discriminator, **settings)  # type: ignore[arg-type]  # the keywords of _Step
        self.criterion = nn.BCEWithLogitsLoss()

    def step(self, real: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """One step on `real` (N, C, H, W) and latents `z` (N, latent_dim); returns (d_loss, g_loss)."""
        real = real.to(memory_format=self.memory_format)
        self.d_optimiser.zero_grad()
        with self._precision(real):
            fake = self.generator(z)
            judged_real, judged_fake = self.discriminator(real), self.discriminator(fake.detach())
        d_loss = self.criterion(judged_real.float(), torch.ones_like(judged_real, dtype=torch.float32))
        d_loss = d_loss + self.criterion(judged_fake.float(), torch.zeros_like(judged_fake, dtype=torch.float32))
        d_loss.backward()
        self.d_optimiser.step()

        self.g_optimiser.zero_grad()
        with self._precision(real):
            judged = self.discriminator(fake)
        g_loss = self.criterion(judged.float(), torch.ones_like(judged, dtype=torch.float32))
        g_loss.backward()
        self.g_optimiser.step()
        return d_loss.detach(), g_loss.detach()


class Frozen(_Step):
    """The careful loop: one D pass over both batches, D without weight gradients in G's step, fused Adam."""

    fused_adam = True

    def __init__(
        self, generator: nn.Module, discriminator: nn.Module, *, apart: bool = False, **settings: object
    ) -> None:
        super().__init__(generator, discriminator, **settings)  # type: ignore[arg-type]  # the keywords of _Step
        self.apart = apart

    def _judge(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        if self.apart:
            return self.discriminator(real), self.discriminator(fake)
        judged = self.discriminator(torch.cat([real, fake]))
        return judged[: real.shape[0]], judged[real.shape[0] :]

    def step(self, real: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """One step on `real` (N, C, H, W) and latents `z` (N, latent_dim); returns (d_loss, g_loss)."""
        real = real.to(memory_format=self.memory_format)
        self.d_optimiser.zero_grad(set_to_none=True)
        with self._precision(real):
            fake = self.generator(z)
            judged_real, judged_fake = self._judge(real, fake.detach())
        # softplus(-x) is -log s(x), softplus(x) is -log(1 - s(x)): no target tensors.
        d_loss = F.softplus(-_full(judged_real)).mean() + F.softplus(_full(judged_fake)).mean()
        d_loss.backward()
        self.d_optimiser.step()

        self.g_optimiser.zero_grad(set_to_none=True)
        self.discriminator.requires_grad_(False)
        with self._precision(real):
            judged = self.discriminator(fake)
        g_loss = F.softplus(-_full(judged)).mean()
        g_loss.backward()
        self.discriminator.requires_grad_(True)
        self.g_optimiser.step()
        return d_loss.detach(), g_loss.detach()


NETWORKS: dict[str, Callable[..., tuple[nn.Sequential, nn.Sequential]]] = {
    "article": article,
    "article_act": article_act,
    "pytorch_gan_dcgan": pytorch_gan_dcgan,
}
STEPS: dict[str, type[Textbook] | type[Frozen]] = {"textbook": Textbook, "frozen": Frozen}
