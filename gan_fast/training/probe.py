"""One small trial run of the two networks, before anything is trained: their shapes, and whether they fit together."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from . import randomness
from .latent import Latent
from .logits import TrailingSigmoid, ends_in_sigmoid, find_trailing_sigmoid

__all__ = ["Probe", "evaluating", "probe", "settle_lazy_layers", "statistics_layers"]

logger = logging.getLogger(__name__)

_SAMPLES = 2


@dataclass(frozen=True)
class Probe:
    """What the trial run found.

    Attributes:
        sample_shape: of one generated sample, without the batch.
        sigmoid: the discriminator's own trailing sigmoid, if it has one.
        mixes_samples: the discriminator's answer for a sample depends on its neighbours in the batch even in eval mode
            (minibatch standard deviation, for example), so real and generated samples must not share a batch.
        logits_per_sample: how many the discriminator gives.
    """

    sample_shape: tuple[int, ...]
    sigmoid: TrailingSigmoid | None
    mixes_samples: bool
    logits_per_sample: int


@contextlib.contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every module has the mode that it had."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def statistics_layers(network: nn.Module) -> list[nn.Module]:
    """The layers that take statistics over the batch, or keep running ones: BatchNorm of all kinds, tracking
    InstanceNorm."""
    return [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) or (isinstance(module, _InstanceNorm) and module.track_running_stats)
    ]


def settle_lazy_layers(generator: nn.Module, discriminator: nn.Module, latent: Latent) -> None:
    """Let layers that learn their sizes from their first input (nn.LazyConv2d, ...) do so, before anything asks for
    their parameters; their initial weights come from the global generator, as those of other layers do.

    Raises:
        ValueError: a network refuses its input.
    """
    lazy = [any(is_lazy(value) for value in (*net.parameters(), *net.buffers())) for net in (generator, discriminator)]
    if not any(lazy):
        return
    with evaluating(generator, discriminator), torch.no_grad():
        fakes = _call(generator, latent.draw(_SAMPLES, seed=0), "generator", "z; give latent_dim= or latent=")
        if lazy[1]:
            _call(discriminator, fakes, "discriminator", "the generator's samples; the two networks must fit together")


def probe(generator: nn.Module, discriminator: nn.Module, latent: Latent) -> Probe:
    """Run both networks on two samples, in eval mode and without touching any random state or running statistic.

    Raises:
        ValueError: the generator refuses the latents, the discriminator refuses the generator's samples, or an output
            has a form that cannot be trained on.
        TypeError: an output is not a floating-point tensor.
    """
    with evaluating(generator, discriminator), randomness.preserved(latent.device):
        with torch.no_grad():
            fakes = _call(generator, latent.draw(_SAMPLES, seed=0), "generator", "z; give latent_dim= or latent=")
            _check_batch(fakes, "generator", "samples")
            sigmoid, mixes, logits = _probe_discriminator(discriminator, fakes)
        with torch.enable_grad(), sigmoid.skipped() if sigmoid else contextlib.nullcontext():
            if ends_in_sigmoid(discriminator(fakes.requires_grad_())):
                raise ValueError(
                    f"the forward of {type(discriminator).__name__} ends in a sigmoid function; the losses need the "
                    "logits in front of it. Leave it out, or make it an nn.Sigmoid module, which the Trainer steps over"
                )
    if sigmoid is not None:
        logger.info(
            "the discriminator's trailing Sigmoid (%s) is stepped over in the losses, which take logits", sigmoid.path
        )
    return Probe(tuple(fakes.shape[1:]), sigmoid, mixes, logits)


def _probe_discriminator(discriminator: nn.Module, fakes: Tensor) -> tuple[TrailingSigmoid | None, bool, int]:
    others = torch.rand_like(fakes) * 2 - 1
    logits = _call(discriminator, fakes, "discriminator", "the generator's samples; the two networks must fit together")
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        found = str(logits.dtype) if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"the discriminator must return one floating-point tensor of logits, got {found}")
    sigmoid = find_trailing_sigmoid(discriminator, fakes)
    both = discriminator(torch.cat((fakes, others)))
    if logits.dim() == 0 or both.shape[0] != 2 * logits.shape[0] or both.shape[1:] != logits.shape[1:]:
        raise ValueError(
            "the discriminator must return logits for each sample, the batch first; it gave shape "
            f"{tuple(logits.shape)} for {_SAMPLES} samples and {tuple(both.shape)} for {2 * _SAMPLES}"
        )
    # Far above the rounding differences between batch sizes, far below what a batch statistic changes.
    same = torch.allclose(both[: logits.shape[0]], logits, rtol=1e-3, atol=1e-4, equal_nan=True)
    return sigmoid, not same, logits.numel() // _SAMPLES


def _call(network: nn.Module, x: Tensor, what: str, hint: str) -> Tensor:
    try:
        return network(x)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"the {what} ({type(network).__name__}) failed on {hint}: input shape {tuple(x.shape)}: {error}"
        ) from error


def _check_batch(samples: object, what: str, noun: str) -> None:
    if not isinstance(samples, Tensor) or not samples.is_floating_point():
        found = str(samples.dtype) if isinstance(samples, Tensor) else type(samples).__name__
        raise TypeError(f"the {what} must return one floating-point tensor of {noun}, got {found}")
    if samples.dim() < 2 or samples.shape[0] != _SAMPLES:
        raise ValueError(
            f"the {what} must return {noun} with the batch first, got shape {tuple(samples.shape)} for {_SAMPLES}"
        )
