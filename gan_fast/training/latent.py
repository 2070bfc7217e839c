"""Latent vectors: their shape, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.modules.lazy import LazyModuleMixin

from .config import whole

__all__ = ["Latent", "LatentSource", "latent_shape"]

LatentSource = Callable[[int, torch.Generator], Tensor]
"""``latent(n, generator) -> z`` of shape (n, ...): draws n latents, all its randomness from ``generator``."""


class Latent:
    """The trainer's own stream of latents: standard normal, or what the user's function makes of the generator.

    Args:
        shape: of one latent, without the batch.
        source: the user's function, or None.
        device: where the latents are drawn.
        seed: of the stream.
    """

    def __init__(self, shape: tuple[int, ...], source: LatentSource | None, device: torch.device, seed: int) -> None:
        self.shape = shape
        self.source = source
        self.device = device
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def draw(self, n: int, *, seed: int | None = None) -> Tensor:
        """The next ``n`` latents, (n, *shape); with ``seed`` from a fresh stream, which leaves the trainer's where it
        is."""
        generator = self.generator if seed is None else torch.Generator(device=self.device).manual_seed(seed)
        if self.source is None:
            return torch.randn(n, *self.shape, generator=generator, device=self.device)
        z = self.source(n, generator)
        if not isinstance(z, Tensor) or z.shape[:1] != (n,):
            found = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(f"latent must return a tensor with {n} latents in its first dimension, got {found}")
        return z.to(self.device, torch.float32)

    def check(self, z: Tensor, n: int) -> Tensor:
        """Refuse latents of another shape than (n, *shape)."""
        if not isinstance(z, Tensor) or not z.is_floating_point():
            found = str(z.dtype) if isinstance(z, Tensor) else type(z).__name__
            raise TypeError(f"z must be a floating-point tensor, got {found}")
        if z.shape != (n, *self.shape):
            raise ValueError(
                f"z must have shape {(n, *self.shape)} (one latent for each real image), got {tuple(z.shape)}"
            )
        return z.to(self.device, torch.float32)


def latent_shape(generator: nn.Module, latent_dim: int | Sequence[int] | None) -> tuple[int, ...]:
    """The shape of one latent, without the batch.

    Taken from ``latent_dim`` if that is a tuple; else from the generator's own ``latent_shape`` attribute; else from
    its first layer: (d,) for a Linear, (d, 1, 1) for a ConvTranspose2d as in PyTorch's DCGAN example.

    Raises:
        ValueError: nothing says the shape, or ``latent_dim`` contradicts the generator.
    """
    if latent_dim is not None:
        sizes = latent_dim if isinstance(latent_dim, Sequence) else (latent_dim,)
        try:
            shape = tuple(whole("latent_dim", size, 1) for size in sizes)
        except ValueError:
            shape = ()
        if not shape:
            raise ValueError(f"latent_dim must be a positive integer or a tuple of them, got {latent_dim!r}")
        if isinstance(latent_dim, Sequence):
            return shape
        latent_dim = shape[0]
    own = getattr(generator, "latent_shape", None)
    found = tuple(int(size) for size in own) if own is not None else _from_first_layer(generator)
    if found is None:
        if latent_dim is None:
            raise ValueError(
                f"latent_dim is not given, and neither a latent_shape attribute nor the first layer of "
                f"{type(generator).__name__} tells it; give latent_dim=100, latent_dim=(100, 1, 1) or latent=a function"
            )
        return (latent_dim,)
    if latent_dim is not None and found[0] != latent_dim:
        raise ValueError(f"latent_dim={latent_dim}, but the generator takes latents of shape {found}")
    return found


def _from_first_layer(generator: nn.Module) -> tuple[int, ...] | None:
    for layer in generator.modules():
        if isinstance(layer, LazyModuleMixin):
            return None  # it learns its sizes from the first latents
        if isinstance(layer, nn.Linear):
            return (layer.in_features,)
        if isinstance(layer, _ConvTransposeNd):
            return (layer.in_channels, *(1 for _ in layer.kernel_size))
        if next(layer.parameters(recurse=False), None) is not None:
            return None
    return None
