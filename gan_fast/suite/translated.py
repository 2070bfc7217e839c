"""A network of plain torch layers as a list that other libraries' peers are made from, channels last.

Only what the article's networks consist of; anything else has no translation, and its peers are named as missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

__all__ = ["Layer", "translate"]

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """`op` is "linear" (x @ weight + bias), "conv", "conv_transpose", "reshape", "tanh" or "leaky_relu"."""

    op: str
    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    form: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def translate(network: nn.Module, sample: Shape) -> list[Layer]:
    """The layers of a `torch.nn.Sequential`.

    Convolutions' weights are (kernel..., in, out), transposed ones' (kernel..., out, in); images (N, H, W, C). A linear
    layer before an Unflatten, or after a Flatten, has its rows or columns in the order that this needs.

    Args:
        network: of layers that know no batch statistics.
        sample: shape of one input, channels first.

    Raises:
        ValueError: a layer that has no translation.
    """
    if not isinstance(network, nn.Sequential):
        raise ValueError(f"only torch.nn.Sequential can be translated, got {type(network).__name__}")
    modules = list(network)
    found: list[Layer] = []
    flattened: Shape | None = None  # channels, height, width before a Flatten
    shape = sample
    for place, module in enumerate(modules):
        if isinstance(module, nn.Linear):
            weight, bias = _numpy(module.weight).T, _numpy(module.bias)
            following = next((m for m in modules[place + 1 :] if isinstance(m, nn.Unflatten)), None)
            if flattened is not None:
                weight = weight.reshape(*flattened, -1).transpose(1, 2, 0, 3).reshape(weight.shape)
            if following is not None:
                c, h, w = following.unflattened_size
                weight = weight.reshape(-1, c, h, w).transpose(0, 2, 3, 1).reshape(weight.shape)
                bias = bias.reshape(c, h, w).transpose(1, 2, 0).reshape(-1)
            found.append(Layer("linear", {"weight": weight, "bias": bias}))
            shape = (module.out_features,)
        elif isinstance(module, nn.Unflatten):
            c, h, w = shape = tuple(module.unflattened_size)
            found.append(Layer("reshape", form={"shape": (h, w, c)}))
        elif isinstance(module, nn.Flatten):
            flattened = shape
            found.append(Layer("reshape", form={"shape": (int(np.prod(shape)),)}))
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.groups == 1 and module.dilation == (1, 1):
            found.append(_convolution(module))
            shape = (module.out_channels, *_size(module, shape[1:]))
        elif isinstance(module, nn.Tanh):
            found.append(Layer("tanh"))
        elif isinstance(module, nn.LeakyReLU):
            found.append(Layer("leaky_relu", form={"slope": module.negative_slope}))
        else:
            raise ValueError(f"{type(module).__name__} has no translation")
    return found


def _numpy(parameter: Any) -> np.ndarray:
    return np.ascontiguousarray(parameter.detach().numpy())


def _convolution(module: nn.Conv2d | nn.ConvTranspose2d) -> Layer:
    # torch: (out, in, kernel) of a convolution, (in, out, kernel) of a transposed one.
    weight = np.ascontiguousarray(_numpy(module.weight).transpose(2, 3, 1, 0))
    form = {"stride": module.stride[0], "padding": module.padding[0], "extra": module.output_padding[0]}
    op = "conv_transpose" if isinstance(module, nn.ConvTranspose2d) else "conv"
    return Layer(op, {"weight": weight, "bias": _numpy(module.bias)}, form)


def _size(module: nn.Conv2d | nn.ConvTranspose2d, size: Shape) -> Shape:
    kernel, stride, padding = module.kernel_size[0], module.stride[0], int(module.padding[0])
    if isinstance(module, nn.ConvTranspose2d):
        return tuple((n - 1) * stride - 2 * padding + kernel + module.output_padding[0] for n in size)
    return tuple((n + 2 * padding - kernel) // stride + 1 for n in size)
