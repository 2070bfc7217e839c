"""DCGAN for 64x64 images, layer for layer as in PyTorch's own DCGAN example, so that its checkpoints load.

Source of the architecture: Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks" (2015), in the form of `dcgan/main.py` of the pytorch/examples repository: keys and
shapes of both state_dicts are the same. One difference: D ends in logits, without the example's Sigmoid (which has
no parameters).
"""

from __future__ import annotations

from torch import Tensor, nn

from gan_fast.accelerate import accelerate as swap_layers
from gan_fast.models._common import check_images, check_latents, check_sizes, dcgan_init

__all__ = ["Discriminator", "Generator", "build"]


class Generator(nn.Module):
    """(N, latent_dim, 1, 1) or (N, latent_dim) -> (N, channels, 64, 64) in [-1, 1].

    Transposed convolutions with kernel 4 and without bias, each but the last followed by batch normalisation and
    ReLU; 4x4 to 64x64 with ngf * 8 down to ngf channels.
    """

    def __init__(self, latent_dim: int = 100, channels: int = 3, ngf: int = 64) -> None:
        super().__init__()
        check_sizes(latent_dim=latent_dim, channels=channels, ngf=ngf)
        self.latent_dim = latent_dim
        self.latent_shape = (latent_dim, 1, 1)
        self.sample_shape = (channels, 64, 64)
        layers: list[nn.Module] = [*_up(latent_dim, ngf * 8, stride=1, padding=0)]
        for width in (ngf * 4, ngf * 2, ngf):
            layers += _up(width * 2, width, stride=2, padding=1)
        layers += [nn.ConvTranspose2d(ngf, channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Generate samples from latents."""
        return self.main(check_latents(z, self.latent_dim)[:, :, None, None])


class Discriminator(nn.Module):
    """(N, channels, 64, 64) -> logits (N, 1): convolutions with kernel 4, batch normalisation, LeakyReLU(0.2)."""

    def __init__(self, channels: int = 3, ndf: int = 64) -> None:
        super().__init__()
        check_sizes(channels=channels, ndf=ndf)
        layers: list[nn.Module] = [nn.Conv2d(channels, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for width in (ndf, ndf * 2, ndf * 4):
            layers += [
                nn.Conv2d(width, width * 2, 4, 2, 1, bias=False),
                nn.BatchNorm2d(width * 2),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        layers += [nn.Conv2d(ndf * 8, 1, 4, 1, 0, bias=False)]
        self.main = nn.Sequential(*layers)
        self.sample_shape = (channels, 64, 64)

    def forward(self, images: Tensor) -> Tensor:
        """Score images; positive logits mean real."""
        check_images(images, self.sample_shape)
        return self.main(images).reshape(-1, 1)


def _up(inputs: int, outputs: int, stride: int, padding: int) -> list[nn.Module]:
    return [
        nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def build(
    latent_dim: int = 100, channels: int = 3, ngf: int = 64, ndf: int = 64, accelerate: bool = True
) -> tuple[Generator, Discriminator]:
    """Make G and D with DCGAN's initial weights.

    Args:
        latent_dim: length of a latent (`nz` in the example).
        channels: of the images (`nc`).
        ngf: width of G: its last hidden layer has this many channels, its first 8 times as many.
        ndf: width of D, likewise from its first layer on.
        accelerate: pass both through `gan_fast.accelerate`; False leaves plain torch.nn layers (same weights for
            the same seed).
    """
    generator, discriminator = Generator(latent_dim, channels, ngf), Discriminator(channels, ndf)
    dcgan_init(generator)
    dcgan_init(discriminator)
    if accelerate:
        swap_layers(generator, discriminator)
    return generator, discriminator
