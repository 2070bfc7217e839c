"""Steps that leave no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from . import randomness
from .latent import Latent
from .step import GanStep

__all__ = ["undone"]


def _tensors(step: GanStep) -> dict[str, Tensor]:
    """Parameters and buffers of both networks, by name."""
    return {
        f"{title}.{name}": tensor
        for title, network in (("generator", step.generator), ("discriminator", step.discriminator))
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
    }


def _moments(step: GanStep) -> dict[tuple[int, str], Tensor]:
    """The optimisers' tensors, by parameter and name."""
    return {
        (id(parameter), name): tensor
        for optimizer in (step.g_optimizer, step.d_optimizer)
        for parameter, entries in optimizer.state.items()
        for name, tensor in entries.items()
    }


@contextlib.contextmanager
def undone(step: GanStep, latent: Latent) -> Iterator[None]:
    """Afterwards networks, optimisers, loss scales and generators hold what they held before. Their tensors stay where
    they are; moments that were made inside stay too, and hold zeros as new ones do."""
    tensors = {name: tensor.detach().clone() for name, tensor in _tensors(step).items()}
    moments = {name: tensor.clone() for name, tensor in _moments(step).items()}
    scalers = [(scaler, scaler.state_dict()) for scaler in (step.g_scaler, step.d_scaler) if scaler.is_enabled()]
    random, drawn = randomness.capture(step.device), latent.generator.get_state()
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in _tensors(step).items():
                if name in tensors:
                    tensor.copy_(tensors[name])
            for key, tensor in _moments(step).items():
                tensor.copy_(moments[key]) if key in moments else tensor.zero_()
        for scaler, before in scalers:
            scaler.load_state_dict(before)
        randomness.restore(random, step.device)
        latent.generator.set_state(drawn)
        step.halfway = False
