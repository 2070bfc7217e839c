"""A discriminator's own trailing sigmoid: finding it, and computing the logits in front of it.

The losses here take logits: sigmoid and logarithm in one formula neither overflow nor lose digits, and autocast refuses
the separate form. Many published discriminators end in ``nn.Sigmoid`` all the same. Such a module is found once, and
stepped over while the losses are computed; everywhere else the network keeps giving probabilities, as its owner
expects.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TrailingSigmoid", "ends_in_sigmoid", "find_trailing_sigmoid"]

# Autograd nodes that only rearrange elements, by the start of their names.
_REARRANGING = (
    "View",
    "UnsafeView",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Unflatten",
    "Permute",
    "Transpose",
    "T",
    "Alias",
)


class TrailingSigmoid:
    """One sigmoid at the end of a network.

    Args:
        owner: the module that holds it.
        name: the child's name in ``owner``; or "" where ``owner`` is a layer with a fused ``activation="sigmoid"``.
        path: its name in the whole network, for messages.
    """

    def __init__(self, owner: nn.Module, name: str, path: str) -> None:
        self.path = path
        self._owner = owner
        self._name = name
        self._identity = nn.Identity()

    @contextlib.contextmanager
    def skipped(self) -> Iterator[None]:
        """Inside the block the network gives logits; afterwards it is as it was, whatever happened."""
        owner, name = self._owner, self._name
        if not name:
            layer: Any = owner
            activation = layer.activation
            layer.activation = None
            try:
                yield
            finally:
                layer.activation = activation
            return
        sigmoid = owner._modules[name]
        owner._modules[name] = self._identity
        try:
            yield
        finally:
            owner._modules[name] = sigmoid


def find_trailing_sigmoid(discriminator: nn.Module, x: Tensor) -> TrailingSigmoid | None:
    """The sigmoid whose removal turns the discriminator's probabilities for ``x`` into logits.

    Proven on values, because the order in which modules are registered need not be the order in which they run. Call it
    with the network in eval mode and without gradients.
    """
    candidates = [
        TrailingSigmoid(owner, name, f"{prefix}.{name}" if prefix else name)
        for prefix, owner in discriminator.named_modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.Sigmoid)
    ]
    candidates += [
        TrailingSigmoid(layer, "", path)
        for path, layer in discriminator.named_modules()
        if getattr(layer, "activation", None) == "sigmoid"
    ]
    if not candidates:
        return None
    probabilities = discriminator(x)
    if not isinstance(probabilities, Tensor):
        return None  # reported by the check of the output's form
    for candidate in reversed(candidates):
        with candidate.skipped():
            logits = discriminator(x)
        if torch.allclose(torch.sigmoid(logits), probabilities, rtol=1e-4, atol=1e-6):
            return candidate
    return None


def ends_in_sigmoid(output: Tensor) -> bool:
    """Whether a sigmoid was the last operation that changed values, as autograd's record of ``output`` tells."""
    node = output.grad_fn
    while node is not None:
        name = node.name()
        if name.startswith("SigmoidBackward"):
            return True
        if not name.startswith(_REARRANGING) or not node.next_functions:
            return False
        node = node.next_functions[0][0]
    return False
