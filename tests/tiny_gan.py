"""Networks and data small enough that a training step takes a millisecond; shared by the tests of the training
package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gan_fast.training import Trainer

LATENT = 4
SHAPE = (1, 4, 4)


def plain() -> tuple[nn.Module, nn.Module]:
    """Linear networks without randomness or statistics."""
    generator = nn.Sequential(nn.Linear(LATENT, 16), nn.Tanh(), nn.Unflatten(1, SHAPE))
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    return generator, discriminator


def with_statistics() -> tuple[nn.Module, nn.Module]:
    """BatchNorm in both networks, dropout in the discriminator: running statistics and the global generator matter."""
    generator = nn.Sequential(nn.Linear(LATENT, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Unflatten(1, SHAPE))
    discriminator = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(8, 1)
    )
    return generator, discriminator


def convolutional() -> tuple[nn.Module, nn.Module]:
    """One transposed convolution against one convolution, as in a DCGAN; latents of shape (4, 1, 1), maps of logits."""
    generator = nn.Sequential(nn.ConvTranspose2d(LATENT, 3, 4), nn.ReLU(), nn.Conv2d(3, 1, 3, padding=1), nn.Tanh())
    discriminator = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(3, 1, 2))
    return generator, discriminator


KINDS = {"plain": plain, "with_statistics": with_statistics, "convolutional": convolutional}


def networks(kind: str = "plain", seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """New networks, the same for the same seed; sets the global generator."""
    torch.manual_seed(seed)
    return KINDS[kind]()


def images(n: int = 22, seed: int = 1) -> Tensor:
    """(n, 1, 4, 4) in [-1, 1]."""
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def trainer(kind: str = "plain", **settings: Any) -> Trainer:
    """A trainer of new networks; writes nothing unless an ``outdir`` is given."""
    defaults: dict[str, Any] = {"batch_size": 4, "outdir": None, "device": "cpu", "progress": False, "lr": 1e-2}
    return Trainer(*networks(kind), **{**defaults, **settings})


def assert_same_state(one: Any, other: Any, where: str = "state") -> None:
    """Nested dictionaries, lists and tensors are equal bit for bit."""
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), f"{where} differs"
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_state(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same_state(a, b, f"{where}[{number}]")
    else:
        assert one == other, f"{where}: {one!r} is not {other!r}"


def state_of(subject: Trainer) -> dict[str, Any]:
    """Everything that decides how the training goes on: networks, optimisers, generators, position in the data,
    losses."""
    from gan_fast.training import restoring

    state = restoring.state_of(subject)
    del state["seconds"]
    return {
        **state,
        "generator": dict(subject.generator.state_dict()),
        "discriminator": dict(subject.discriminator.state_dict()),
    }
