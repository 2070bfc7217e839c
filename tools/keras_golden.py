"""Write tests/golden/keras_mnist.npz: what real Keras computes for the article's two networks.

Needs Keras with the TensorFlow backend (``pip install "gan_fast[keras]"``) and nothing of gan_fast. Run from the
repository root:

    python tools/keras_golden.py [--out tests/golden/keras_mnist.npz]

The file stays small because weights and inputs are not stored: both sides draw them with `article_weights`,
`latents` and `real_images` below (tests import this module), and the file keeps their checksums. Only
``numpy.random.RandomState.uniform`` is
used: its stream is frozen by NumPy's compatibility policy and it calls no transcendental function, so the arrays
are the same bits everywhere.

Contents (float32 unless said):

| key | shape | meaning |
|---|---|---|
| g_output | (8, 28, 28, 1) | G on ``latents(0)[:8]``, before any training |
| d_logits, d_probability | (8, 1) | D on ``real_images(0)[:8]``, before and after its sigmoid |
| bce_losses, minimax_losses | (5, 2) | d_loss and g_loss of five training steps from the same start |
| bce_g_output, minimax_g_output | (8, 28, 28, 1) | G on ``latents(0)[:8]`` after those steps |
| bce_weight_sums, minimax_weight_sums | (14, 2) float64 | sum and sum of |w| of G's 8 and D's 6 arrays after them |
| weights_sha256, inputs_sha256 | str | checksums of the drawn arrays |
| versions | str | the Keras, TensorFlow and NumPy that wrote the file |
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20240607
STEPS = 5
BATCH = 16
LATENT_DIM = 100
ADAM = {"learning_rate": 2e-4, "beta_1": 0.5, "beta_2": 0.999, "epsilon": 1e-7}

#: (shape, fan_in, fan_out) as `get_weights()` orders the arrays; biases have no fans and are drawn small but
#: non-zero, so that a forgotten or misplaced bias shows.
G_SHAPES: list[tuple[tuple[int, ...], int, int]] = [
    ((100, 6272), 100, 6272), ((6272,), 0, 0),
    ((5, 5, 128, 128), 3200, 3200), ((128,), 0, 0),
    ((5, 5, 128, 128), 3200, 3200), ((128,), 0, 0),
    ((7, 7, 128, 1), 6272, 49), ((1,), 0, 0),
]  # fmt: skip
D_SHAPES: list[tuple[tuple[int, ...], int, int]] = [
    ((3, 3, 1, 128), 9, 1152), ((128,), 0, 0),
    ((3, 3, 128, 128), 1152, 1152), ((128,), 0, 0),
    ((6272, 1), 6272, 1), ((1,), 0, 0),
]  # fmt: skip


def article_weights() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights of G and D in Keras' `get_weights()` order and layout: Glorot uniform kernels, biases uniform in
    [-0.05, 0.05]."""
    rng = np.random.RandomState(SEED)

    def draw(shapes: list[tuple[tuple[int, ...], int, int]]) -> list[np.ndarray]:
        arrays = []
        for shape, fan_in, fan_out in shapes:
            limit = (6.0 / (fan_in + fan_out)) ** 0.5 if fan_in else 0.05
            arrays.append(rng.uniform(-limit, limit, size=shape).astype(np.float32))
        return arrays

    return draw(G_SHAPES), draw(D_SHAPES)


def latents(step: int) -> np.ndarray:
    """(BATCH, 100) float32 latents of one step: uniform with unit variance."""
    limit = 3.0**0.5
    return np.random.RandomState(SEED + 1 + step).uniform(-limit, limit, size=(BATCH, LATENT_DIM)).astype(np.float32)


def real_images(step: int) -> np.ndarray:
    """(BATCH, 28, 28, 1) float32 images in {-1, 1}: a disc of random place and size, so that D has something to
    learn."""
    rng = np.random.RandomState(SEED + 1001 + step)
    centre_y, centre_x = rng.uniform(8.0, 20.0, size=(2, BATCH))
    radius = rng.uniform(3.0, 8.0, size=BATCH)
    y, x = np.mgrid[0:28, 0:28].astype(np.float64)
    distance = (y - np.reshape(centre_y, (-1, 1, 1))) ** 2 + (x - np.reshape(centre_x, (-1, 1, 1))) ** 2
    return np.where(distance <= np.reshape(radius, (-1, 1, 1)) ** 2, 1.0, -1.0).astype(np.float32)[..., None]


def digest(arrays: Iterable[np.ndarray]) -> str:
    """sha256 over the little-endian float32 bytes of the arrays in order."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
    return total.hexdigest()


def inputs() -> list[np.ndarray]:
    """Every drawn input in a fixed order, for the checksum."""
    return [latents(step) for step in range(STEPS)] + [real_images(step) for step in range(STEPS)]


def build_networks(keras: Any) -> tuple[Any, Any, Any]:
    """The article's generator, its discriminator, and the same discriminator without the last sigmoid (shared
    layers)."""
    layers = keras.layers
    generator = keras.Sequential(
        [
            keras.Input((LATENT_DIM,)),
            layers.Dense(128 * 7 * 7),
            layers.Reshape((7, 7, 128)),
            layers.Conv2DTranspose(128, (5, 5), strides=(2, 2), padding="same"),
            layers.Conv2DTranspose(128, (5, 5), strides=(2, 2), padding="same"),
            layers.Conv2D(1, (7, 7), padding="same", activation="tanh"),
        ]
    )
    image = keras.Input((28, 28, 1))
    hidden = layers.Conv2D(128, (3, 3), strides=(2, 2), padding="same")(image)
    hidden = layers.Conv2D(128, (3, 3), strides=(2, 2), padding="same")(hidden)
    logit = layers.Dense(1)(layers.Flatten()(hidden))
    probability = layers.Activation("sigmoid")(logit)
    return generator, keras.Model(image, probability), keras.Model(image, logit)


def train(keras: Any, tf: Any, objective: str) -> dict[str, np.ndarray]:
    """Five steps of the article's loop: D on mean(real) + mean(fake), then G on the same fakes against the updated D.

    `objective` "bce": G minimises -mean log D(G(z)); "minimax": G minimises mean log(1 - D(G(z))).
    """
    generator, discriminator, _ = build_networks(keras)
    g_weights, d_weights = article_weights()
    generator.set_weights(g_weights)
    discriminator.set_weights(d_weights)
    g_adam, d_adam = keras.optimizers.Adam(**ADAM), keras.optimizers.Adam(**ADAM)
    cross_entropy = keras.losses.BinaryCrossentropy()
    losses = []
    for step in range(STEPS):
        z, real = tf.constant(latents(step)), tf.constant(real_images(step))
        with tf.GradientTape() as g_tape:
            fake = generator(z, training=True)
            with tf.GradientTape() as d_tape:
                d_real = discriminator(real, training=True)
                d_fake = discriminator(tf.stop_gradient(fake), training=True)
                d_loss = cross_entropy(tf.ones_like(d_real), d_real) + cross_entropy(tf.zeros_like(d_fake), d_fake)
            d_gradients = d_tape.gradient(d_loss, discriminator.trainable_variables)
            d_adam.apply_gradients(zip(d_gradients, discriminator.trainable_variables, strict=True))
            judged = discriminator(fake, training=True)
            if objective == "bce":
                g_loss = cross_entropy(tf.ones_like(judged), judged)
            else:
                g_loss = -cross_entropy(tf.zeros_like(judged), judged)
        g_gradients = g_tape.gradient(g_loss, generator.trainable_variables)
        g_adam.apply_gradients(zip(g_gradients, generator.trainable_variables, strict=True))
        losses.append((float(d_loss), float(g_loss)))
    after = generator.get_weights() + discriminator.get_weights()
    sums = [(float(np.sum(w, dtype=np.float64)), float(np.sum(np.abs(w), dtype=np.float64))) for w in after]
    return {
        f"{objective}_losses": np.asarray(losses, np.float32),
        f"{objective}_g_output": np.asarray(generator(latents(0)[:8]), np.float32),
        f"{objective}_weight_sums": np.asarray(sums, np.float64),
    }


def main() -> None:
    """Run Keras and write the file."""
    parser = argparse.ArgumentParser(description="write the golden arrays of the article's Keras networks")
    parser.add_argument("--out", type=Path, default=Path("tests/golden/keras_mnist.npz"))
    options = parser.parse_args()

    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # one kernel family on every machine
    import keras
    import tensorflow as tf

    # One thread and deterministic kernels: a second run on the same machine writes the same bits.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()

    generator, discriminator, logit_model = build_networks(keras)
    g_weights, d_weights = article_weights()
    generator.set_weights(g_weights)
    discriminator.set_weights(d_weights)
    golden: dict[str, Any] = {
        "g_output": np.asarray(generator(latents(0)[:8]), np.float32),
        "d_logits": np.asarray(logit_model(real_images(0)[:8]), np.float32),
        "d_probability": np.asarray(discriminator(real_images(0)[:8]), np.float32),
        "weights_sha256": digest(g_weights + d_weights),
        "inputs_sha256": digest(inputs()),
        "versions": f"keras {keras.__version__}, tensorflow {tf.__version__}, numpy {np.__version__}",
    }
    for objective in ("bce", "minimax"):
        golden.update(train(keras, tf, objective))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out, **golden)
    print(f"{options.out}: {options.out.stat().st_size} bytes, {golden['versions']}")
    for objective in ("bce", "minimax"):
        print(objective, golden[f"{objective}_losses"].tolist())


if __name__ == "__main__":
    main()
