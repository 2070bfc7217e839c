"""The article's Keras GAN for MNIST, exactly: same geometry and element order; weights go over and come back unchanged.

| network | Keras layers | here |
|---|---|---|
| G | Dense(6272, input 100), Reshape(7, 7, 128) | `Generator.dense` |
| | two Conv2DTranspose(128, 5x5, strides 2, "same") | `Generator.deconv1`, `deconv2` |
| | Conv2D(1, 7x7, "same", tanh) | `Generator.conv` |
| D | two Conv2D(128, 3x3, strides 2, "same") | `Discriminator.conv1`, `conv2` |
| | Flatten, Dense(1, sigmoid) | `Discriminator.dense`; the sigmoid lives in the loss |

There is no activation between the hidden layers: that is how the article has it. `activation="leaky_relu"` puts
LeakyReLU(0.2) after every hidden layer.

Two traps on the way from Keras. "same" is not PyTorch's padding=2, output_padding=1: the transposed convolution
with kernel 5 and stride 2 starts one pixel earlier. And Dense/Reshape/Flatten count in H, W, C order: G's first
output, read in that order, is a channels_last tensor without any copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gan_fast import functional
from gan_fast.models._common import check_images, check_latents, check_sizes, record_origin
from gan_fast.nn import KerasConv2d, KerasConvTranspose2d

__all__ = ["Discriminator", "Generator", "build", "from_keras", "to_keras"]

_SIDE = 7  # height and width where G starts and D's features end


class Generator(nn.Module):
    """(N, latent_dim) -> (N, channels, 28, 28) in [-1, 1], in channels_last memory format."""

    def __init__(
        self,
        latent_dim: int = 100,
        channels: int = 1,
        ngf: int = 128,
        activation: str | None = None,
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        check_sizes(latent_dim=latent_dim, channels=channels, ngf=ngf)
        _check_activation(activation)
        self.latent_dim = latent_dim
        self.latent_shape = (latent_dim,)
        self.sample_shape = (channels, 28, 28)
        self.activation = activation
        self.negative_slope = negative_slope
        self.dense = nn.Linear(latent_dim, ngf * _SIDE * _SIDE)
        self.deconv1 = KerasConvTranspose2d(ngf, ngf, 5, stride=2, activation=activation, negative_slope=negative_slope)
        self.deconv2 = KerasConvTranspose2d(ngf, ngf, 5, stride=2, activation=activation, negative_slope=negative_slope)
        self.conv = KerasConv2d(ngf, channels, 7, activation="tanh")
        _keras_init(self)

    def forward(self, z: Tensor) -> Tensor:
        """Generate samples from latents."""
        hidden = self.dense(check_latents(z, self.latent_dim))
        if self.activation is not None:
            hidden = functional.bias_act(hidden, None, self.activation, self.negative_slope)
        hidden = hidden.view(hidden.shape[0], _SIDE, _SIDE, -1).permute(0, 3, 1, 2)
        return self.conv(self.deconv2(self.deconv1(hidden)))


class Discriminator(nn.Module):
    """(N, channels, 28, 28) -> logits (N, 1)."""

    def __init__(
        self, channels: int = 1, ndf: int = 128, activation: str | None = None, negative_slope: float = 0.2
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, ndf=ndf)
        _check_activation(activation)
        self.sample_shape = (channels, 28, 28)
        self.activation = activation
        self.negative_slope = negative_slope
        self.conv1 = KerasConv2d(channels, ndf, 3, stride=2, activation=activation, negative_slope=negative_slope)
        self.conv2 = KerasConv2d(ndf, ndf, 3, stride=2, activation=activation, negative_slope=negative_slope)
        self.dense = nn.Linear(ndf * _SIDE * _SIDE, 1)
        _keras_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """Score images; positive logits mean real."""
        check_images(images, self.sample_shape)
        # Not `contiguous`: one channel counts as contiguous in either format, and the layers go by the strides.
        features = self.conv2(self.conv1(functional.as_channels_last(images)))
        return self.dense(features.permute(0, 2, 3, 1).flatten(1))


def build(
    latent_dim: int = 100,
    channels: int = 1,
    ngf: int = 128,
    ndf: int = 128,
    activation: str | None = None,
    negative_slope: float = 0.2,
) -> tuple[Generator, Discriminator]:
    """Make G and D with Keras' initial weights (Glorot uniform kernels, zero biases).

    Args:
        latent_dim: length of a latent.
        channels: of the images.
        ngf: channels of G's hidden layers.
        ndf: channels of D's hidden layers.
        activation: after every hidden layer; None (the article) or "leaky_relu".
        negative_slope: of that LeakyReLU.
    """
    return (
        Generator(latent_dim, channels, ngf, activation, negative_slope),
        Discriminator(channels, ndf, activation, negative_slope),
    )


def from_keras(
    g_weights: Sequence[np.ndarray],
    d_weights: Sequence[np.ndarray],
    *,
    activation: str | None = None,
    negative_slope: float = 0.2,
) -> tuple[Generator, Discriminator]:
    """Build G and D from the lists that Keras' `get_weights()` returns; all sizes are read from the arrays.

    Args:
        g_weights: G's 8 arrays: kernel and bias of Dense (latent, H*W*C), Conv2DTranspose (kh, kw, out, in) twice,
            and Conv2D (kh, kw, in, out).
        d_weights: D's 6 arrays: kernel and bias of Conv2D twice, and of Dense (H*W*C, 1).
        activation: as in `build`; weights do not tell.
        negative_slope: as in `build`.

    Returns:
        (G, D) with float32 parameters, equal to the arrays to the last bit.

    Raises:
        ValueError: another number of arrays, or shapes that are not the article's network at any width.
        TypeError: no list of arrays.
    """
    g_arrays, d_arrays = _arrays(g_weights, 8, "g_weights"), _arrays(d_weights, 6, "d_weights")
    latent_dim, ngf, channels, ndf = (
        g_arrays[0].shape[0],
        g_arrays[3].shape[0],
        g_arrays[7].shape[0],
        d_arrays[1].shape[0],
    )
    options: dict[str, Any] = {
        "latent_dim": latent_dim,
        "channels": channels,
        "ngf": ngf,
        "ndf": ndf,
        "activation": activation,
        "negative_slope": negative_slope,
    }
    generator, discriminator = record_origin(build(**options), "keras_mnist", options)
    _load(generator, g_arrays, "g_weights")
    _load(discriminator, d_arrays, "d_weights")
    return generator, discriminator


def to_keras(generator: Generator, discriminator: Discriminator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return both networks' parameters as lists for Keras' `set_weights()`: the reverse of `from_keras`, float32.

    Raises:
        TypeError: a network of another class than this module's.
    """
    for argument, network, expected in (
        ("generator", generator, Generator),
        ("discriminator", discriminator, Discriminator),
    ):
        if not isinstance(network, expected):
            raise TypeError(f"{argument}: got {type(network).__name__}, expected a keras_mnist.{expected.__name__}")

    def arrays(network: nn.Module) -> list[np.ndarray]:
        return [
            np.ascontiguousarray(parameter.detach().permute(_KERAS_AXES[parameter.dim()]).cpu().float().numpy())
            for parameter in network.parameters()
        ]

    return arrays(generator), arrays(discriminator)


#: By rank: how to permute PyTorch's axes into Keras' order, and back. (out, in, kh, kw) <-> (kh, kw, in, out); a
#: transposed convolution's (in, out, kh, kw) <-> (kh, kw, out, in) is the same permutation.
_KERAS_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
_TORCH_AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}


def _arrays(weights: Sequence[np.ndarray], count: int, argument: str) -> list[np.ndarray]:
    if not isinstance(weights, Iterable):
        raise TypeError(f"{argument}: got {type(weights).__name__}, expected the list that get_weights() returns")
    arrays = [np.asarray(array) for array in weights]
    if len(arrays) != count:
        raise ValueError(
            f"{argument}: got {len(arrays)} arrays, expected {count} (kernel and bias of each layer, as get_weights())"
        )
    expected = [4, 1] * (count // 2)
    expected[0 if argument == "g_weights" else count - 2] = 2  # the Dense layer: first in G, last in D
    for index, (array, rank) in enumerate(zip(arrays, expected, strict=True)):
        if array.ndim != rank:
            raise ValueError(f"{argument}[{index}]: got shape {array.shape}, expected {rank} dimensions")
    return arrays


def _load(network: nn.Module, arrays: Sequence[np.ndarray], argument: str) -> None:
    """Copy Keras arrays into the parameters, which are registered in Keras' order."""
    for index, ((name, parameter), array) in enumerate(zip(network.named_parameters(), arrays, strict=True)):
        value = array.transpose(_TORCH_AXES[array.ndim])
        if tuple(value.shape) != tuple(parameter.shape):
            wanted = tuple(parameter.shape[axis] for axis in _KERAS_AXES[parameter.dim()])
            raise ValueError(f"{argument}[{index}] ({name}): got shape {array.shape}, expected {wanted}")
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)))


def _check_activation(activation: str | None) -> None:
    if activation not in (None, "leaky_relu"):
        raise ValueError(f"activation: got {activation!r}, expected None (the article's networks) or 'leaky_relu'")


def _keras_init(network: nn.Module) -> None:
    """Keras' defaults: kernels Glorot uniform with fans from kernel area times channels, biases zero."""
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.zeros_(parameter)
