"""What the models share: checks of their options, latents of either shape, DCGAN's initial weights."""

from __future__ import annotations

import numbers
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["check_images", "check_latents", "check_sizes", "dcgan_init", "record_origin"]

Networks = TypeVar("Networks", bound=tuple[nn.Module, nn.Module])


def check_sizes(**sizes: int) -> None:
    """Raise ValueError unless every value is a positive integer; the keyword names the argument in the message."""
    for argument, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{argument}: got {value!r}, expected a positive integer")


def check_images(images: Tensor, sample_shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless `images` has the shape (N, *sample_shape)."""
    if images.dim() != 4 or tuple(images.shape[1:]) != sample_shape:
        expected = ", ".join(map(str, sample_shape))
        raise ValueError(f"images: got shape {tuple(images.shape)}, expected (N, {expected})")


def check_latents(z: Tensor, latent_dim: int) -> Tensor:
    """Return `z` as (N, latent_dim); it may come as (N, latent_dim) or with trailing dimensions of size 1.

    Raises:
        ValueError: any other shape.
    """
    if z.dim() < 2 or z.shape[1] != latent_dim or any(size != 1 for size in z.shape[2:]):
        raise ValueError(f"z: got shape {tuple(z.shape)}, expected (N, {latent_dim}) or (N, {latent_dim}, 1, 1)")
    return z.reshape(z.shape[0], latent_dim)


def record_origin(networks: Networks, name: str, options: dict[str, Any]) -> Networks:
    """Note on each network what `gan_fast.models.build` has to be called with to make the pair again; returns them."""
    for network in networks:
        network.__dict__["built_from"] = {"model": name, "options": dict(options)}
    return networks


def dcgan_init(network: nn.Module) -> None:
    """Draw DCGAN's initial weights in place: N(0, 0.02), batch-norm scales N(1, 0.02), biases 0.

    Source: Radford et al. (2015), section 4; the scales as in PyTorch's example.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
