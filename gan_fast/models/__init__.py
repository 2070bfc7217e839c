"""The networks that the package brings along, by name.

    G, D = gan_fast.models.build("dcgan28", latent_dim=64)

`G` maps latents of shape (N, *G.latent_shape) to samples of shape (N, *G.sample_shape) in [-1, 1]; `D` maps samples
to logits of shape (N, 1): the sigmoid lives in the loss. Names and options: `names`, `options`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from gan_fast.models import dcgan28, dcgan64, keras_mnist
from gan_fast.models._common import record_origin

__all__ = ["build", "dcgan28", "dcgan64", "keras_mnist", "names", "options"]

_BUILDERS: dict[str, Callable[..., tuple[nn.Module, nn.Module]]] = {
    "dcgan28": dcgan28.build,
    "dcgan64": dcgan64.build,
    "keras_mnist": keras_mnist.build,
}

#: Words for the same thing in other GAN programs.
_ALIASES = {"nz": "latent_dim", "z_dim": "latent_dim", "nc": "channels"}


def names() -> list[str]:
    """The names that `build` knows, sorted."""
    return sorted(_BUILDERS)


def options(name: str) -> dict[str, Any]:
    """The options of that model and their defaults.

    Raises:
        ValueError: an unknown name.
    """
    return {key: parameter.default for key, parameter in inspect.signature(_builder(name)).parameters.items()}


def build(name: str, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """Make a new generator and discriminator, initialised from torch's global generator (`torch.manual_seed`).

    Args:
        name: one of `names()`.
        settings: what `options(name)` lists; `nz` and `z_dim` mean `latent_dim`, `nc` means `channels`.

    Returns:
        (G, D). G carries `latent_shape` and `sample_shape`, both without the batch dimension. Both carry
        `built_from`, the name and options that make such a pair again; a run folder stores it.

    Raises:
        ValueError: an unknown name (the message lists the near ones), or a value that the model cannot take.
        TypeError: an option that this model does not have (the message lists those it has), or one given twice.
    """
    builder = _builder(name)
    known = options(name)
    chosen: dict[str, Any] = {}
    for key, value in settings.items():
        target = key if key in known else _ALIASES.get(key, key)
        if target not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TypeError(f"{key}: not an option of model {name!r}; {hint}its options: {', '.join(known)}")
        if target in chosen:
            raise TypeError(f"{key}: {target} was given twice, under two names")
        chosen[target] = value.item() if isinstance(value, np.generic) else value  # plain, for config.json
    return record_origin(builder(**chosen), name, {**known, **chosen})


def _builder(name: str) -> Callable[..., tuple[nn.Module, nn.Module]]:
    if name not in _BUILDERS:
        near = difflib.get_close_matches(str(name), _BUILDERS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"name: unknown model {name!r}; {hint}known: {', '.join(names())}")
    return _BUILDERS[name]
