"""The article's networks against what real Keras computed: tests/golden/keras_mnist.npz, written by
tools/keras_golden.py.

Weights and inputs are drawn here by that program's own functions; their checksums in the file prove that they are
the same.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gan_fast
from gan_fast import functional, losses
from gan_fast.models import keras_mnist

ROOT = Path(__file__).resolve().parent.parent
OUTPUTS, LOSSES = 1e-5, 1e-3  # the bounds that the project promises


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """tools/keras_golden.py as a module; it imports Keras only when it runs as a program."""
    path = ROOT / "tools" / "keras_golden.py"
    spec = importlib.util.spec_from_file_location("keras_golden", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(ROOT / "tests" / "golden" / "keras_mnist.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def weights(program: ModuleType) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return program.article_weights()


def nchw(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def nhwc(images: Tensor) -> np.ndarray:
    return images.detach().permute(0, 2, 3, 1).numpy()


def test_drawn_arrays_are_those_that_keras_got(program: ModuleType, golden: dict[str, Any]) -> None:
    g_weights, d_weights = program.article_weights()
    assert program.digest(g_weights + d_weights) == str(golden["weights_sha256"])
    assert program.digest(program.inputs()) == str(golden["inputs_sha256"])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_outputs(backend: str, program: ModuleType, golden: dict[str, Any], weights: Any) -> None:
    generator, discriminator = keras_mnist.from_keras(*weights)
    with gan_fast.use_backend(backend), torch.no_grad():
        images = generator(torch.from_numpy(program.latents(0)[:8]))
        logits = discriminator(nchw(program.real_images(0)[:8]))
    assert images.shape == (8, 1, 28, 28) and logits.shape == (8, 1)
    assert np.abs(nhwc(images) - golden["g_output"]).max() < OUTPUTS
    assert np.abs(logits.numpy() - golden["d_logits"]).max() < OUTPUTS
    assert np.abs(torch.sigmoid(logits).numpy() - golden["d_probability"]).max() < OUTPUTS


def keras_epsilon(optimiser: torch.optim.Optimizer, epsilon: float, step: int) -> None:
    """Let torch's Adam divide as Keras' does in step `step` (from 1).

    Keras adds epsilon to sqrt(v) before the bias correction, torch to the corrected root: the same number is
    1 / sqrt(1 - beta_2**step) times larger there, a factor of 32 in the first step.
    """
    for group in optimiser.param_groups:
        group["eps"] = epsilon / math.sqrt(1 - group["betas"][1] ** step)


@pytest.mark.parametrize("exact_epsilon", [True, False], ids=["keras-epsilon", "torch-epsilon"])
@pytest.mark.parametrize("objective", ["bce", "minimax"])
def test_five_training_steps(
    objective: str, exact_epsilon: bool, program: ModuleType, golden: dict[str, Any], weights: Any
) -> None:
    generator, discriminator = keras_mnist.from_keras(*weights)
    loss = losses.get(objective)
    adam = program.ADAM
    g_adam, d_adam = (
        torch.optim.Adam(
            network.parameters(), adam["learning_rate"], (adam["beta_1"], adam["beta_2"]), eps=adam["epsilon"]
        )
        for network in (generator, discriminator)
    )
    history = []
    for step in range(program.STEPS):
        if exact_epsilon:
            keras_epsilon(g_adam, adam["epsilon"], step + 1)
            keras_epsilon(d_adam, adam["epsilon"], step + 1)
        real, z = nchw(program.real_images(step)), torch.from_numpy(program.latents(step))
        fake = generator(z)
        d_loss = loss.d_loss(discriminator(real), discriminator(fake.detach()))
        d_adam.zero_grad()
        d_loss.backward()
        d_adam.step()
        g_loss = loss.g_loss(discriminator(fake))
        g_adam.zero_grad()
        g_loss.backward()
        g_adam.step()
        history.append((d_loss.item(), g_loss.item()))

    worst = np.abs(np.asarray(history) - golden[f"{objective}_losses"]).max()
    if not exact_epsilon:
        # The place of epsilon alone moves the losses by up to 0.0009 here.
        assert worst < 2 * LOSSES
        return
    assert worst < LOSSES / 100
    with torch.no_grad():
        images = nhwc(generator(torch.from_numpy(program.latents(0)[:8])))
    assert np.abs(images - golden[f"{objective}_g_output"]).max() < 10 * OUTPUTS
    g_after, d_after = keras_mnist.to_keras(generator, discriminator)
    for array, (total, absolute) in zip(g_after + d_after, golden[f"{objective}_weight_sums"], strict=True):
        assert np.sum(np.abs(array), dtype=np.float64) == pytest.approx(absolute, rel=1e-4)
        assert np.sum(array, dtype=np.float64) == pytest.approx(total, abs=1e-4 * absolute)


def test_five_training_steps_through_the_trainer(program: ModuleType, golden: dict[str, Any], weights: Any) -> None:
    generator, discriminator = keras_mnist.from_keras(*weights)
    adam = program.ADAM
    trainer = gan_fast.Trainer(
        generator,
        discriminator,
        loss="bce",
        latent_dim=100,
        batch_size=program.BATCH,
        lr=adam["learning_rate"],
        betas=(adam["beta_1"], adam["beta_2"]),
        eps=adam["epsilon"],
        device="cpu",
    )
    history = []
    for step in range(program.STEPS):
        for optimiser in (trainer._step.g_optimizer, trainer._step.d_optimizer):
            keras_epsilon(optimiser, adam["epsilon"], step + 1)
        metrics = trainer.train_step(nchw(program.real_images(step)), torch.from_numpy(program.latents(step)))
        history.append((float(metrics.d_loss), float(metrics.g_loss)))
    assert np.abs(np.asarray(history) - golden["bce_losses"]).max() < LOSSES / 100


def test_weights_come_back_to_the_last_bit(weights: Any) -> None:
    g_weights, d_weights = weights
    g_back, d_back = keras_mnist.to_keras(*keras_mnist.from_keras(g_weights, d_weights))
    assert len(g_back) == 8 and len(d_back) == 6
    for before, after in zip(g_weights + d_weights, g_back + d_back, strict=True):
        assert after.dtype == np.float32 and after.shape == before.shape
        assert np.array_equal(before, after)


def test_networks_of_other_widths_come_back_too() -> None:
    generator, discriminator = gan_fast.models.build("keras_mnist", latent_dim=7, channels=3, ngf=5, ndf=6)
    g_again, d_again = keras_mnist.from_keras(*keras_mnist.to_keras(generator, discriminator))
    assert g_again.sample_shape == (3, 28, 28) and g_again.latent_shape == (7,)
    for before, after in ((generator, g_again), (discriminator, d_again)):
        assert before.state_dict().keys() == after.state_dict().keys()
        assert all(torch.equal(value, after.state_dict()[key]) for key, value in before.state_dict().items())


def test_the_usual_pytorch_geometry_is_another_network(
    program: ModuleType, golden: dict[str, Any], weights: Any
) -> None:
    """padding=2, output_padding=1 gives the same sizes and other pixels; padding=1 with the last row cropped is
    Keras' 'same'."""
    generator, _ = keras_mnist.from_keras(*weights)
    layer = generator.deconv1
    x = torch.randn(2, 128, 7, 7)
    trap = functional.conv_transpose2d(x, layer.weight, layer.bias, stride=2, padding=2, output_padding=1)
    cropped = functional.conv_transpose2d(x, layer.weight, layer.bias, stride=2, padding=1)[:, :, :-1, :-1]
    ours = layer(x)
    assert ours.shape == trap.shape == (2, 128, 14, 14)
    torch.testing.assert_close(ours, cropped, rtol=1e-4, atol=1e-5)
    assert (ours - trap).abs().mean() > 0.5 * ours.abs().mean()
    # It is the same picture one pixel further on: that is why the trap looks right.
    torch.testing.assert_close(ours[:, :, 1:, 1:], trap[:, :, :-1, :-1], rtol=1e-4, atol=1e-5)


def test_convolution_same_pads_at_the_end_only(weights: Any) -> None:
    _, discriminator = keras_mnist.from_keras(*weights)
    layer = discriminator.conv1
    x = torch.randn(2, 1, 28, 28)
    padded = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (0, 1, 0, 1)), layer.weight, layer.bias, stride=2)
    torch.testing.assert_close(layer(x), padded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, d: (g[:-1], d), r"g_weights: got 7 arrays, expected 8"),
        (lambda g, d: (g, [*d, d[0]]), r"d_weights: got 7 arrays, expected 6"),
        (lambda g, d: ([g[2], *g[1:]], d), r"g_weights\[0\]: got shape \(5, 5, 128, 128\), expected 2 dimensions"),
        (lambda g, d: ([*g[:6], g[6][:5], g[7]], d), r"g_weights\[6\] \(conv.weight\): got shape \(5, 7, 128, 1\)"),
        (
            lambda g, d: (g, [*d[:4], d[4][:-1], d[5]]),
            r"d_weights\[4\] \(dense.weight\): got shape \(6271, 1\), expected \(6272, 1\)",
        ),
    ],
    ids=["too-few", "too-many", "rank", "kernel", "dense"],
)
def test_other_arrays_are_refused(change: Any, message: str, weights: Any) -> None:
    with pytest.raises(ValueError, match=message):
        keras_mnist.from_keras(*change(*weights))


def test_what_is_no_list_of_arrays_is_refused(weights: Any) -> None:
    g_weights, d_weights = weights
    with pytest.raises(TypeError, match=r"g_weights: got NoneType, expected the list that get_weights\(\) returns"):
        keras_mnist.from_keras(None, d_weights)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TypeError, match=r"d_weights: got Linear, expected the list"):
        keras_mnist.from_keras(g_weights, torch.nn.Linear(1, 1))  # type: ignore[arg-type]  # wrong on purpose


def test_to_keras_takes_these_networks_only() -> None:
    generator, discriminator = gan_fast.models.build("keras_mnist", ngf=4, ndf=4)
    with pytest.raises(TypeError, match="discriminator: got Linear"):
        keras_mnist.to_keras(generator, torch.nn.Linear(1, 1))  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TypeError, match="generator: got Discriminator"):
        keras_mnist.to_keras(discriminator, discriminator)  # type: ignore[arg-type]  # wrong on purpose
