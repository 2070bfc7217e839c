"""What the Trainer refuses, with errors that name the argument, the value and what was expected; precisions."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gan import LATENT, SHAPE, images, plain, state_of, trainer
from torch import Tensor, nn

from gan_fast.training import Trainer

# ------------------------------------------------------------------------------------------------------- precision


def test_bf16_keeps_parameters_and_losses_in_fp32() -> None:
    subject = trainer("convolutional", precision="bf16")
    dtypes: list[torch.dtype] = []
    subject.discriminator.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    metrics = subject.train_step(images(4))
    assert set(dtypes) == {torch.bfloat16}
    assert metrics.d_loss.dtype == metrics.g_loss.dtype == torch.float32
    assert {p.dtype for p in subject.generator.parameters()} == {torch.float32}
    exact = trainer("convolutional").train_step(images(4))
    torch.testing.assert_close(metrics.d_loss, exact.d_loss, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_and_latents_of_other_widths_are_cast(dtype: torch.dtype) -> None:
    """Both where D sees one batch and where it sees two: neither half of the step may meet another dtype."""
    for kind, latent in (("plain", (LATENT,)), ("convolutional", (LATENT, 1, 1))):
        metrics = trainer(kind).train_step(images(4).to(dtype), torch.randn(4, *latent).to(dtype))
        assert metrics.d_loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("word", "expected"), [("bf-16", "mean 'bf16'"), ("float32", "'fp32'"), ("?", "known: fp32, bf16")]
)
def test_unknown_precision_gives_near_words(word: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"precision='{word}' is unknown") + f".*{expected}"):
        trainer(precision=word)


@pytest.mark.parametrize("word", ["fp16", "tf32"])
def test_cuda_only_precisions_say_so_on_the_cpu(word: str) -> None:
    with pytest.raises(ValueError, match=f"precision='{word}' needs a CUDA device"):
        trainer(precision=word)


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"lr": -1.0}, "g_lr must be a positive number, got -1.0"),
        ({"d_lr": math.nan}, "d_lr must be a positive number, got nan"),
        ({"betas": (0.5, 1.0)}, "betas must be two numbers"),
        ({"eps": 0.0}, "eps must be a positive number"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"log_every": 0}, "log_every must be an integer of at least 1"),
        ({"keep_last": 0}, "keep_last must be an integer of at least 1"),
        ({"name": "a/b"}, "name must be a plain folder name"),
        ({"latent_dim": 5}, r"latent_dim=5, but the generator takes latents of shape \(4,\)"),
        ({"latent_dim": (7,)}, r"generator \(Sequential\) failed on z; give latent_dim= .*: input shape \(2, 7\)"),
        ({"latent_dim": 0}, "latent_dim must be a positive integer"),
        ({"loss": "bec"}, "bce"),
        ({"device": "gpu"}, "device must be"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        trainer(**settings)


def test_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        with pytest.raises(ValueError, match="CUDA devices, counted from 0"):
            trainer(device="cuda:99")
    else:
        with pytest.raises(ValueError, match="PyTorch sees no CUDA device"):
            trainer(device="cuda")


@pytest.mark.parametrize(
    ("real", "error", "text"),
    [
        (images(4).numpy(), TypeError, "real must be a tensor of shape .N, 1, 4, 4. in .-1, 1., got ndarray"),
        ((images(4) * 100).to(torch.uint8), TypeError, "uint8.*127.5 - 1"),
        (images(4)[0], ValueError, r"got \(1, 4, 4\)"),
        (images(4).repeat(1, 3, 1, 1), ValueError, "3 channels instead of 1"),
        (images(4)[..., :3], ValueError, "another size"),
        (images(4)[:0], ValueError, "empty batch"),
        (images(4) * 127.5 + 127.5, ValueError, r"real must lie in \[-1, 1\], got values from .* 127.5 - 1"),
        (images(4) * 3, ValueError, r"real must lie in \[-1, 1\]"),
        (torch.full((4, *SHAPE), math.nan), ValueError, "real holds 64 NaN values"),
        (torch.full((4, *SHAPE), math.inf), ValueError, r"real must lie in \[-1, 1\]"),
    ],
)
def test_wrong_real_images_are_refused_and_nothing_is_lost(real: Any, error: type[Exception], text: str) -> None:
    subject = trainer()
    subject.train_step(images(4))
    before = copy.deepcopy(state_of(subject)["generator"])
    with pytest.raises(error, match=text):
        subject.train_step(real)
    assert subject.step == 1
    assert all(torch.equal(before[name], value) for name, value in subject.generator.state_dict().items())


def test_values_are_looked_at_again_every_log_every() -> None:
    subject = trainer(log_every=5)
    for _ in range(4):
        subject.train_step(images(4))
    subject.train_step(images(4) * 1.5)  # the fifth step: not looked at
    with pytest.raises(ValueError, match="must lie in"):
        subject.train_step(images(4) * 1.5)  # the sixth, after 5 steps, is


@pytest.mark.parametrize("z", [torch.randn(4, 5), torch.randn(3, LATENT), torch.randn(4, LATENT, 1, 1)])
def test_wrong_latents_are_refused(z: Tensor) -> None:
    with pytest.raises(ValueError, match=r"z must have shape \(4, 4\)"):
        trainer().train_step(images(4), z)


def test_latents_of_a_wrong_type() -> None:
    with pytest.raises(TypeError, match=r"z must be a floating-point tensor, got torch.int64"):
        trainer().train_step(images(4), torch.zeros(4, LATENT, dtype=torch.int64))


def test_networks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"the discriminator .* failed on the generator's samples"):
        Trainer(plain()[0], nn.Linear(7, 1), outdir=None, device="cpu")
    with pytest.raises(TypeError, match=r"generator must be a torch.nn.Module"):
        Trainer("dcgan28", plain()[1], outdir=None, device="cpu")  # type: ignore[arg-type]  # that is the test
    with pytest.raises(ValueError, match="logits for each sample"):

        class Mean(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.mean()

        Trainer(plain()[0], nn.Sequential(nn.Flatten(), nn.Linear(16, 1), Mean()), outdir=None, device="cpu")
    generator, discriminator = plain()
    with pytest.raises(ValueError, match="has no parameter with requires_grad=True"):
        Trainer(generator, discriminator.requires_grad_(False), outdir=None, device="cpu")
    shared = nn.Linear(16, 16)
    with pytest.raises(ValueError, match="share 2 parameters"):
        Trainer(
            nn.Sequential(nn.Linear(LATENT, 16), shared, nn.Unflatten(1, SHAPE)),
            nn.Sequential(nn.Flatten(), shared, nn.Linear(16, 1)),
            outdir=None,
            device="cpu",
        )


def test_latent_shape_cannot_be_guessed() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(LATENT, 16))

        def forward(self, z: Tensor) -> Tensor:
            return torch.tanh(z @ self.weight).view(-1, *SHAPE)

    with pytest.raises(ValueError, match="latent_dim is not given"):
        Trainer(Opaque(), plain()[1], outdir=None, device="cpu")
    assert Trainer(Opaque(), plain()[1], latent_dim=LATENT, outdir=None, device="cpu").sample(2).shape == (2, *SHAPE)


def test_batch_larger_than_the_data_set() -> None:
    with pytest.raises(ValueError, match=r"batch_size=4 is larger than the data set.*3 samples"):
        trainer().fit(images(3), steps=1)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "give steps=, epochs= or until="),
        ({"steps": 0}, "steps must be a positive integer, got 0"),
        ({"epochs": 1.5}, "epochs must be a positive integer, got 1.5"),
        ({"steps": 1, "epochs": 1}, "give steps or epochs, not both"),
        ({"until": {"windw": 3}}, "unknown setting windw; it has window, tolerance"),
    ],
)
def test_wrong_lengths(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        trainer().fit(images(), **arguments)


def test_wrong_data_leaves_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 channels instead of 1"):
        trainer(outdir=tmp_path / "runs").fit(images(8).repeat(1, 3, 1, 1), steps=1)
    assert not (tmp_path / "runs").exists()
