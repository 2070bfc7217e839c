"""The step in TensorFlow's graph mode with Keras' Adam. Needs tensorflow; imported on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import torch
from torch import Tensor, nn

from gan_fast.suite.translated import Layer, translate

__all__ = ["step"]


def forward(layers: list[Layer], parameters: list[Any], x: Any) -> Any:
    """The network's output, channels last."""
    for layer, weights in zip(layers, parameters, strict=True):
        form = layer.form
        if layer.op == "linear":
            x = tf.linalg.matmul(x, weights["weight"]) + weights["bias"]
        elif layer.op == "reshape":
            x = tf.reshape(x, (x.shape[0], *form["shape"]))
        elif layer.op == "conv":
            padding = [[0, 0], *[[form["padding"]] * 2] * 2, [0, 0]]
            x = tf.nn.bias_add(tf.nn.conv2d(x, weights["weight"], form["stride"], padding), weights["bias"])
        elif layer.op == "conv_transpose":
            kernel, begin = weights["weight"], form["padding"]
            sides = [(n - 1) * form["stride"] - 2 * begin + kernel.shape[0] + form["extra"] for n in x.shape[1:3]]
            padding = [[0, 0], *[[begin, begin - form["extra"]]] * 2, [0, 0]]
            size = (x.shape[0], *sides, kernel.shape[2])
            x = tf.nn.bias_add(tf.nn.conv2d_transpose(x, kernel, size, form["stride"], padding), weights["bias"])
        elif layer.op == "tanh":
            x = tf.tanh(x)
        else:
            x = tf.nn.leaky_relu(x, form["slope"])
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
    """A program as :func:`gan_fast.suite.steps.recipes` has them, on as many threads as PyTorch has now.

    Raises:
        ValueError: networks that have no translation.
    """
    g_layers = translate(generator, tuple(z.shape[1:]))
    d_layers = translate(discriminator, tuple(real.shape[1:]))
    try:
        tf.config.threading.set_intra_op_parallelism_threads(torch.get_num_threads())
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        pass  # it runs already, on the threads of an earlier call
    images, latents = tf.constant(real.permute(0, 2, 3, 1).contiguous().numpy()), tf.constant(z.numpy())
    g, d = (
        [{name: tf.Variable(value) for name, value in layer.weights.items()} for layer in layers]
        for layers in (g_layers, d_layers)
    )
    g_variables, d_variables = ([v for layer in tree for v in layer.values()] for tree in (g, d))
    g_adam, d_adam = (tf.keras.optimizers.Adam(lr, *betas, epsilon=eps) for _ in "gd")
    for adam, variables in ((g_adam, g_variables), (d_adam, d_variables)):
        adam.build(variables)

    @tf.function
    def update() -> tuple[Any, Any]:
        with tf.GradientTape() as g_tape:
            fake = forward(g_layers, g, latents)
            with tf.GradientTape() as d_tape:
                judged_real, judged_fake = forward(d_layers, d, images), forward(d_layers, d, tf.stop_gradient(fake))
                d_loss = tf.reduce_mean(tf.nn.softplus(-judged_real)) + tf.reduce_mean(tf.nn.softplus(judged_fake))
            d_adam.apply_gradients(zip(d_tape.gradient(d_loss, d_variables), d_variables, strict=True))
            g_loss = tf.reduce_mean(tf.nn.softplus(-forward(d_layers, d, fake)))
        g_adam.apply_gradients(zip(g_tape.gradient(g_loss, g_variables), g_variables, strict=True))
        return d_loss, g_loss

    def run() -> tuple[Any, Any]:
        return tuple(loss.numpy() for loss in update())

    return run
