"""The step in JAX: one jitted function for both updates. Needs jax; imported on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from torch import Tensor, nn

from gan_fast.suite.translated import Layer, translate

__all__ = ["step"]

NUMBERS = ("NHWC", "HWIO", "NHWC")


def forward(layers: list[Layer], parameters: list[Any], x: Any) -> Any:
    """The network's output, channels last."""
    for layer, weights in zip(layers, parameters, strict=True):
        form = layer.form
        if layer.op == "linear":
            x = x @ weights["weight"] + weights["bias"]
        elif layer.op == "reshape":
            x = x.reshape(x.shape[0], *form["shape"])
        elif layer.op == "conv":
            padding = [(form["padding"],) * 2] * 2
            stride = (form["stride"],) * 2
            x = lax.conv_general_dilated(x, weights["weight"], stride, padding, dimension_numbers=NUMBERS)
            x = x + weights["bias"]
        elif layer.op == "conv_transpose":
            # A convolution of the input with zeros between its pixels.
            kernel = jnp.flip(weights["weight"], (0, 1)).swapaxes(2, 3)
            begin = kernel.shape[0] - 1 - form["padding"]
            padding = [(begin, begin + form["extra"])] * 2
            x = lax.conv_general_dilated(
                x, kernel, (1, 1), padding, lhs_dilation=(form["stride"],) * 2, dimension_numbers=NUMBERS
            )
            x = x + weights["bias"]
        elif layer.op == "tanh":
            x = jnp.tanh(x)
        else:
            x = jnp.where(x > 0, x, form["slope"] * x)
    return x


def step(
    generator: nn.Module,
    discriminator: nn.Module,
    real: Tensor,
    z: Tensor,
    lr: float = 2e-4,
    betas: tuple[float, float] = (0.5, 0.999),
    eps: float = 1e-8,
) -> Callable[[], tuple[Any, Any]]:
    """A program as :func:`gan_fast.suite.steps.recipes` has them.

    Raises:
        ValueError: networks that have no translation.
    """
    g_layers = translate(generator, tuple(z.shape[1:]))
    d_layers = translate(discriminator, tuple(real.shape[1:]))
    images, latents = jnp.asarray(real.permute(0, 2, 3, 1).contiguous().numpy()), jnp.asarray(z.numpy())

    def adam(parameters: Any, gradients: Any, state: Any) -> tuple[Any, Any]:
        count, first, second = state
        count = count + 1
        first = jax.tree.map(lambda m, g: betas[0] * m + (1 - betas[0]) * g, first, gradients)
        second = jax.tree.map(lambda v, g: betas[1] * v + (1 - betas[1]) * g * g, second, gradients)
        one, two = 1 - betas[0] ** count, 1 - betas[1] ** count

        def moved(p: Any, m: Any, v: Any) -> Any:
            return p - lr * (m / one) / (jnp.sqrt(v / two) + eps)

        return jax.tree.map(moved, parameters, first, second), (count, first, second)

    def d_loss(d: Any, fake: Any) -> Any:
        judged_real, judged_fake = forward(d_layers, d, images), forward(d_layers, d, fake)
        return jax.nn.softplus(-judged_real).mean() + jax.nn.softplus(judged_fake).mean()

    def g_loss(fake: Any, d: Any) -> Any:
        return jax.nn.softplus(-forward(d_layers, d, fake)).mean()

    @jax.jit
    def update(g: Any, d: Any, g_state: Any, d_state: Any) -> tuple[Any, ...]:
        fake, pull_back = jax.vjp(lambda parameters: forward(g_layers, parameters, latents), g)
        loss_d, gradients = jax.value_and_grad(d_loss)(d, fake)
        d, d_state = adam(d, gradients, d_state)
        loss_g, upstream = jax.value_and_grad(g_loss)(fake, d)
        g, g_state = adam(g, pull_back(upstream)[0], g_state)
        return g, d, g_state, d_state, loss_d, loss_g

    parameters = [
        [{name: jnp.asarray(value) for name, value in layer.weights.items()} for layer in layers]
        for layers in (g_layers, d_layers)
    ]
    states = [(jnp.float32(0), *(jax.tree.map(jnp.zeros_like, tree) for _ in "mv")) for tree in parameters]
    held: list[Any] = [*parameters, *states]

    def run() -> tuple[Any, Any]:
        *held[:], loss_d, loss_g = update(*held)
        jax.block_until_ready(held)
        return loss_d, loss_g

    return run
