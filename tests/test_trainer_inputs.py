"""What the Trainer refuses, with errors that name the argument, the value and what was expected; precisions."""

from __future__ import annotations

import copy
import inspect
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from native import kernels
from PIL import Image
from tiny_gan import LATENT, SHAPE, assert_same_state, images, plain, state_of, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gan_fast
from gan_fast import backends, models
from gan_fast.data import feed
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
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"lr": -1.0}, "^lr must be a positive number, got -1.0"),
        ({"d_lr": math.nan}, "d_lr must be a positive number, got nan"),
        ({"betas": (0.5, 1.0)}, "betas must be two numbers"),
        ({"eps": 0.0}, "eps must be a positive number"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"log_every": 0}, "log_every must be a positive integer"),
        ({"keep_last": 0}, "keep_last must be a positive integer"),
        ({"name": "a/b"}, "name must be a plain folder name"),
        ({"latent_dim": 5}, r"latent_dim=5, but the generator takes latents of shape \(4,\)"),
        ({"latent_dim": (7,)}, r"generator \(Sequential\) failed on z; give latent_dim= .*: input shape \(2, 7\)"),
        ({"latent_dim": 0}, "latent_dim must be a positive integer"),
        ({"latent_dim": 4.0}, "latent_dim must be a positive integer or a tuple of them, got 4.0"),
        ({"latent_dim": "4"}, "latent_dim must be a positive integer or a tuple of them, got '4'"),
        ({"latent_dim": ()}, r"latent_dim must be a positive integer or a tuple of them, got \(\)"),
        ({"batch_size": 4.0}, "batch_size must be a positive integer, got 4.0"),
        ({"lr": "1e-3"}, "^lr must be a positive number, got '1e-3'"),
        ({"lr": -1.0, "g_lr": 1.0, "d_lr": 1.0}, "^lr must be a positive number"),
        ({"loss": "bec"}, "bce"),
        ({"device": "gpu"}, "device must be"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        trainer(**settings)


def test_unknown_arguments_get_the_near_ones() -> None:
    with pytest.raises(TypeError, match=r"Trainer has no argument 'batchsize'; did you mean 'batch_size'"):
        trainer(batchsize=4)
    with pytest.raises(TypeError, match=r"Trainer.fit has no argument 'step'; did you mean 'steps'"):
        trainer().fit(images(), step=4)
    with pytest.raises(TypeError, match=r"data_options has no argument 'img_size'; did you mean 'image_size'"):
        trainer().fit(images(), steps=1, data_options={"img_size": 4})
    assert "batch_size" in inspect.signature(Trainer).parameters, "help and editors still see the arguments"


def test_numpy_s_numbers_are_taken_and_kept_as_plain_ones(tmp_path: Path) -> None:
    whole, small = np.int64, np.float32
    subject = trainer(
        latent_dim=whole(LATENT), batch_size=whole(4), lr=small(0.5), d_lr=np.float64(0.25), eps=small(1e-8),
        betas=np.array([0.5, 0.75]).tolist(), seed=whole(3), log_every=whole(2), save_every=np.int32(3),
        sample_every=np.uint8(4), keep_last=whole(2), accelerate=np.bool_(True), outdir=tmp_path, name="x",
    )  # fmt: skip
    subject.fit(feed(images(), whole(4), whole(1)), steps=whole(3), until={"window": whole(50), "tolerance": small(1)})
    assert subject.sample(whole(2), seed=whole(1)).shape == (2, *SHAPE)
    stored = json.loads((tmp_path / "00000-x" / "config.json").read_text())
    assert stored["training"] == subject.config["training"] and stored["training"]["latent_shape"] == [LATENT]
    assert (stored["training"]["g_lr"], stored["training"]["d_lr"], stored["run"]["save_every"]) == (0.5, 0.25, 3)
    assert Trainer.load(tmp_path / "00000-x", *plain()).settings == subject.settings
    shaped = trainer("convolutional", latent_dim=(whole(LATENT), 1, 1))
    assert shaped._latent.shape == (LATENT, 1, 1) and type(shaped._latent.shape[0]) is int


def test_numpy_s_numbers_as_options_of_a_model(tmp_path: Path) -> None:
    networks = models.build("dcgan28", latent_dim=np.int64(4), ngf=np.int32(2), ndf=2, channels=np.uint8(1))
    Trainer(*networks, outdir=None, device="cpu").save(tmp_path / "c")
    assert Trainer.load(tmp_path / "c", device="cpu").config["training"]["model_options"]["ngf"] == 2
    with pytest.raises(ValueError, match=r"latent_dim: got 100.0, expected a positive integer"):
        models.build("dcgan28", latent_dim=100.0)


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


@pytest.mark.parametrize("factor", [1.5, math.nan])
def test_values_are_looked_at_in_every_step(factor: float) -> None:
    subject = trainer(log_every=50)
    for _ in range(5):
        subject.train_step(images(4))
    before = [p.clone() for p in subject.generator.parameters()]
    with pytest.raises(ValueError, match=r"must lie in|NaN values"):
        subject.train_step(images(4) * factor)
    assert all(map(torch.equal, subject.generator.parameters(), before))


def test_images_without_their_channel_are_told_so() -> None:
    subject = trainer()
    with pytest.raises(ValueError, match=r"data has shape \(6, 4, 4\), expected \(N, 1, 4, 4\).*x.unsqueeze\(1\)"):
        subject.fit(images(6)[:, 0], steps=1)


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


def lazy() -> tuple[nn.Module, nn.Module]:
    """Every layer that has sizes learns them from its first input."""
    generator = nn.Sequential(
        nn.LazyConvTranspose2d(3, 4), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(1, 3, padding=1), nn.Tanh()
    )
    discriminator = nn.Sequential(nn.LazyConv2d(2, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.LazyLinear(1))
    return generator, discriminator


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_lazy_layers_learn_their_sizes(tmp_path: Path) -> None:
    options = {"latent_dim": (LATENT, 1, 1), "batch_size": 4, "outdir": None, "device": "cpu"}
    subject = Trainer(*lazy(), **options)
    assert isinstance(subject.generator[0], gan_fast.nn.ConvTranspose2d), "swapped as other layers are"
    assert subject.generator[1].num_batches_tracked == 0
    subject.train_step(images(4))
    subject.save(tmp_path / "c")
    again = Trainer.load(tmp_path / "c", *lazy(), device="cpu")
    assert_same_state({**state_of(subject), "random": None}, {**state_of(again), "random": None})
    with pytest.raises(ValueError, match="latent_dim is not given"):
        Trainer(*lazy(), outdir=None, device="cpu")
    torch.manual_seed(1)
    one = Trainer(*lazy(), **options).generator[0].weight
    torch.manual_seed(2)
    assert not torch.equal(one, Trainer(*lazy(), **options).generator[0].weight), "drawn as other weights are"


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
        ({"until": {"windw": 3}}, "unknown setting windw; did you mean 'window'[?] known: window, tolerance"),
    ],
)
def test_wrong_lengths(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        trainer().fit(images(), **arguments)


def test_wrong_data_leaves_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 channels instead of 1"):
        trainer(outdir=tmp_path / "runs").fit(images(8).repeat(1, 3, 1, 1), steps=1)
    assert not (tmp_path / "runs").exists()


# ----------------------------------------------------------------------------------------------- losses of one's own


class Strange:
    """A loss whose answers are no scalars with a gradient."""

    def __init__(self, d: Any, g: Any) -> None:
        self._d, self._g = d, g

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return self._d(fake_logits)

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        return self._g(fake_logits)


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (lambda logits: logits, ValueError, r"must return a scalar tensor, got shape \(4, 1\); take its mean\(\)"),
        (lambda logits: logits.mean().view(1), ValueError, r"got shape \(1,\)"),
        (lambda logits: 1.5, TypeError, "must return a scalar tensor, got float"),
        (lambda logits: logits.mean().detach(), ValueError, "a tensor without a gradient"),
    ],
)
def test_what_a_loss_must_return(answer: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"d_loss of the loss .*{text}"):
        trainer(loss=Strange(answer, Tensor.mean)).train_step(images(4))
    with pytest.raises(error, match=f"g_loss of the loss .*{text}"):
        trainer(loss=Strange(Tensor.mean, answer)).train_step(images(4))


# ------------------------------------------------------------------------------------------------------ environment


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("refrence", ValueError, "GAN_FAST_BACKEND: unknown backend 'refrence', expected one of auto, .*'reference'"),
        (
            "cuda",
            RuntimeError,
            r"GAN_FAST_BACKEND: backend 'cuda' cannot run here \(not built .*expected one of auto, r",
        ),
    ],
)
def test_a_backend_that_cannot_run_is_reported_as_itself(
    value: str, error: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAN_FAST_BACKEND", value)
    with pytest.raises(error, match=f"^{text}"):
        trainer("convolutional")
    with backends.use_backend("triton"), pytest.raises(RuntimeError, match=r"^use_backend: .*'triton' cannot run"):
        trainer("convolutional")


def test_an_instruction_level_that_is_not_there_is_reported_as_itself() -> None:
    kernels()
    code = "import tiny_gan; tiny_gan.trainer('plain')"
    environment = {**os.environ, "GAN_FAST_CPU_ISA": "avx9", "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ValueError: GAN_FAST_CPU_ISA='avx9': expected one of the levels")


# ------------------------------------------------------------------------------------------------- images by name


def test_images_by_name_are_brought_to_the_generator_s_size(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("RGB", (9, 7), (number, 0, 99)).save(tmp_path / "a" / f"{number}.png")
    subject = trainer()
    subject.fit(tmp_path / "a", steps=1)
    assert subject.config["data"]["shape"] == list(SHAPE)
    assert subject.config["data"]["options"] == {"channels": 1, "image_size": 4}
    trainer(outdir=tmp_path / "runs", name="x").fit(tmp_path / "a", steps=1, data_options={"image_size": np.int64(4)})
    (stored,) = (tmp_path / "runs").glob("*/config.json")
    assert json.loads(stored.read_text())["data"]["options"] == {"channels": 1, "image_size": 4}
    with pytest.raises(ValueError, match=r"a batch of a must have shape \(N, 1, 4, 4\).*got \(4, 1, 6, 6\): an"):
        trainer().fit(str(tmp_path / "a"), steps=1, data_options={"image_size": np.int64(6)})
    with pytest.raises(ValueError, match=r"a batch of a must .*got \(4, 3, 4, 4\): 3 channels instead of 1"):
        trainer().fit(tmp_path / "a", steps=1, data_options={"channels": 3})


@pytest.mark.parametrize("excess", [2e-7, 5e-3])
def test_rounding_may_step_over_the_edge(excess: float) -> None:
    """Wherever values are looked at: in a tensor, in a data set's batch, in a step."""
    over = images(8).sign() * (1 + excess)
    subject = trainer()
    subject.fit(over, steps=1)
    subject.fit(TensorDataset(over, torch.zeros(8)), steps=1)
    subject.fit(DataLoader(over, batch_size=4), steps=1)
    subject.train_step(over[:4])
    for data in (over * 1.02, DataLoader(over * 1.02, batch_size=4)):
        with pytest.raises(ValueError, match=r"lie outside \[-1, 1\]"):
            trainer().fit(data, steps=1)
