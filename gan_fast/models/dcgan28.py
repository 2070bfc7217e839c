"""DCGAN for 28x28 images such as MNIST: the article's layout, normalised and activated as DCGAN does.

The generator keeps the article's sequence (a linear layer to 7x7, two transposed convolutions with kernel 5 and
stride 2, a 7x7 convolution with tanh). The rest follows Radford et al. (2015): batch normalisation everywhere but
at G's output and D's input, no bias under a batch normalisation, weights from N(0, 0.02).
"""

from __future__ import annotations

from torch import Tensor, nn

from gan_fast.accelerate import accelerate as swap_layers
from gan_fast.models._common import check_images, check_latents, check_sizes, dcgan_init

__all__ = ["Discriminator", "Generator", "build"]


class Generator(nn.Module):
    """(N, latent_dim) -> (N, channels, 28, 28) in [-1, 1]; 2 * ngf channels at 7x7, ngf at 14x14 and 28x28."""

    def __init__(self, latent_dim: int = 100, channels: int = 1, ngf: int = 64) -> None:
        super().__init__()
        check_sizes(latent_dim=latent_dim, channels=channels, ngf=ngf)
        self.latent_dim = latent_dim
        self.latent_shape = (latent_dim,)
        self.sample_shape = (channels, 28, 28)
        self.main = nn.Sequential(
            nn.Linear(latent_dim, 2 * ngf * 7 * 7, bias=False),
            nn.Unflatten(1, (2 * ngf, 7, 7)),
            nn.BatchNorm2d(2 * ngf),
            nn.LeakyReLU(0.2, inplace=True),
            nn.ConvTranspose2d(2 * ngf, ngf, 5, stride=2, padding=2, output_padding=1, bias=False),
            nn.BatchNorm2d(ngf),
            nn.LeakyReLU(0.2, inplace=True),
            nn.ConvTranspose2d(ngf, ngf, 5, stride=2, padding=2, output_padding=1, bias=False),
            nn.BatchNorm2d(ngf),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ngf, channels, 7, padding=3),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Generate samples from latents."""
        return self.main(check_latents(z, self.latent_dim))


class Discriminator(nn.Module):
    """(N, channels, 28, 28) -> logits (N, 1); ndf channels at 14x14, 2 * ndf at 7x7."""

    def __init__(self, channels: int = 1, ndf: int = 64) -> None:
        super().__init__()
        check_sizes(channels=channels, ndf=ndf)
        self.sample_shape = (channels, 28, 28)
        self.main = nn.Sequential(
            nn.Conv2d(channels, ndf, 5, stride=2, padding=2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf, 2 * ndf, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(2 * ndf),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Flatten(),
            nn.Linear(2 * ndf * 7 * 7, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Score images; positive logits mean real."""
        check_images(images, self.sample_shape)
        return self.main(images)


def build(
    latent_dim: int = 100, channels: int = 1, ngf: int = 64, ndf: int = 64, accelerate: bool = True
) -> tuple[Generator, Discriminator]:
    """Make G and D with DCGAN's initial weights.

    Args:
        latent_dim: length of a latent.
        channels: of the images.
        ngf: width of G: channels of its last hidden layers.
        ndf: width of D: channels of its first layer.
        accelerate: pass both through `gan_fast.accelerate`; False leaves plain torch.nn layers (same weights for
            the same seed).
    """
    generator, discriminator = Generator(latent_dim, channels, ngf), Discriminator(channels, ndf)
    dcgan_init(generator)
    dcgan_init(discriminator)
    if accelerate:
        swap_layers(generator, discriminator)
    return generator, discriminator
