"""GAN objectives on logits: what D minimises and what G minimises.

D gives logits of any shape (one per image, or a map of them as PatchGAN does); every loss is the mean over all of
them. Logits in half precision (autocast) are raised to float32 first, so means are always accumulated in float32.

With x the logits of real and y those of generated samples, s the sigmoid:

| name | d_loss | g_loss |
|---|---|---|
| `bce` | mean -log s(x)  +  mean -log(1 - s(y)) | mean -log s(y), the non-saturating form |
| `minimax` | the same | mean log(1 - s(y)), the value function's own second term |

Both are computed through `gan_fast.functional.binary_cross_entropy_with_logits`, whose value stays finite for every
finite logit.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from gan_fast import functional

__all__ = ["BCE", "Loss", "Minimax", "get", "names", "register"]

_HALF_PRECISION = ("torch.float16", "torch.bfloat16")


@runtime_checkable
class Loss(Protocol):
    """What the Trainer needs of an objective; any object with these two methods will do."""

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Scalar that D minimises: the term of the real samples plus the term of the generated ones."""

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        """Scalar that G minimises."""


def _logits(value: Tensor, argument: str) -> Tensor:
    """Check that `value` can be logits; raise half precision to float32."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{argument}: got {type(value).__name__}, expected one tensor of logits; "
            "a discriminator with several outputs needs a loss of its own (gan_fast.losses.register)"
        )
    if not value.is_floating_point():
        raise TypeError(f"{argument}: got dtype {value.dtype}, expected floating-point logits")
    if value.numel() == 0:
        raise ValueError(f"{argument}: got an empty tensor of shape {tuple(value.shape)}, expected at least one logit")
    return value.float() if str(value.dtype) in _HALF_PRECISION else value


class BCE:
    """Non-saturating GAN loss (Goodfellow et al. 2014, section 3): G maximises log D(G(z))."""

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """mean -log s(real_logits) + mean -log(1 - s(fake_logits)); the two may differ in shape. Scalar."""
        real = functional.binary_cross_entropy_with_logits(_logits(real_logits, "real_logits"), 1.0)
        fake = functional.binary_cross_entropy_with_logits(_logits(fake_logits, "fake_logits"), 0.0)
        return real + fake

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        """mean -log s(fake_logits). Scalar, never negative."""
        return functional.binary_cross_entropy_with_logits(_logits(fake_logits, "fake_logits"), 1.0)

    def __repr__(self) -> str:
        return f"gan_fast.losses.{type(self).__name__}()"


class Minimax(BCE):
    """The minimax value V(D, G) = E[log D(x)] + E[log(1 - D(G(z)))]: D ascends it, G descends it.

    Its gradient for G vanishes where D is sure of the fakes (that is what "bce" cures); `g_loss` is negative.
    """

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        """mean log(1 - s(fake_logits)): minus the cross entropy against 0 and as stable. Scalar, never positive."""
        return -functional.binary_cross_entropy_with_logits(_logits(fake_logits, "fake_logits"), 0.0)


_REGISTRY: dict[str, Callable[[], Loss]] = {"bce": BCE, "minimax": Minimax}


def names() -> list[str]:
    """The names that `get` knows, sorted."""
    return sorted(_REGISTRY)


def get(loss: str | Loss) -> Loss:
    """Return the objective of that name, or `loss` itself if it already is one.

    Raises:
        ValueError: an unknown name; the message lists the near ones.
        TypeError: neither a name nor an object with `d_loss` and `g_loss`.
    """
    if isinstance(loss, str):
        if loss not in _REGISTRY:
            near = difflib.get_close_matches(loss, _REGISTRY, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise ValueError(f"loss: unknown name {loss!r}; {hint}known: {', '.join(names())}")
        return _REGISTRY[loss]()
    if isinstance(loss, type) or not isinstance(loss, Loss):
        raise TypeError(
            f"loss: got {loss!r}, expected one of {', '.join(names())}, or an object with d_loss() and g_loss()"
        )
    return loss


def register(name: str, factory: Callable[[], Loss]) -> None:
    """Make `get(name)` return `factory()`; a class with a constructor without arguments is a factory.

    Raises:
        ValueError: the name is empty or taken.
        TypeError: `factory` cannot be called, or does not give an object with `d_loss` and `g_loss`.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"name: got {name!r}, expected a non-empty string")
    if name in _REGISTRY:
        raise ValueError(f"name: {name!r} is already registered; choose another one")
    if not callable(factory):
        raise TypeError(f"factory: got {factory!r}, expected a callable that returns a loss")
    made = factory()
    if isinstance(made, type) or not isinstance(made, Loss):
        raise TypeError(f"factory: it returned {made!r}, expected an object with d_loss() and g_loss()")
    _REGISTRY[name] = factory
