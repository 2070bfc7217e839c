"""Trainer(precision="bf16") on the CPU: what is in which dtype, exact resume, and how near it is to autocast alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checks import BFLOAT16_BACKENDS, level_of, recorded
from native import kernels
from tiny_gan import assert_same_state, images, networks, state_of, trainer
from torch import Tensor

from gan_fast import choice_table, models
from gan_fast.choice_table import Choice
from gan_fast.training import NonFiniteLossError, Trainer

SIZES = {"dcgan28": 4, "keras_mnist": 4, "dcgan64": 2}


@pytest.fixture
def kernels_serve() -> Iterator[None]:
    """The kernels run whatever can run on them, however small."""
    kernels()
    with choice_table.always(Choice("cpu", "for this test")):
        yield


def model(name: str, **settings: object) -> Trainer:
    torch.manual_seed(0)
    pair = models.build(name)
    return Trainer(*pair, batch_size=SIZES[name], outdir=None, device="cpu", progress=False, **settings)  # type: ignore[arg-type]  # settings are the Trainer's own


def batch(subject: Trainer, seed: int) -> Tensor:
    shape = (subject.settings.batch_size, *subject.sample_shape)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.mark.usefixtures("kernels_serve")
@pytest.mark.parametrize("name", SIZES)
def test_parameters_moments_and_losses_stay_in_fp32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = model(name, precision="bf16")
    seen: dict[str, set[torch.dtype]] = {}
    for layer in (*subject.generator.modules(), *subject.discriminator.modules()):
        if not list(layer.children()):
            kept = seen.setdefault(type(layer).__name__, set())
            layer.register_forward_hook(lambda _m, _a, out, kept=kept: kept.add(out.dtype))
    with recorded(monkeypatch) as ran:
        metrics = subject.train_step(batch(subject, 0))
    expected = {"batch_norm_act", "batch_norm_act_backward"} if name != "keras_mnist" else set()
    assert expected <= {op for op, backend in ran if backend == "cpu"}
    for kind, dtypes in seen.items():
        if kind not in ("Flatten", "Dropout", "Dropout2d"):  # of the images, which come in fp32
            assert dtypes == {torch.bfloat16}, kind
    assert metrics.d_loss.dtype == metrics.g_loss.dtype == torch.float32
    for network, optimizer in (
        (subject.generator, subject._step.g_optimizer),
        (subject.discriminator, subject._step.d_optimizer),
    ):
        tensors = [t for t in network.state_dict().values() if t.is_floating_point()]
        moments = [t for state in optimizer.state.values() for t in state.values()]
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert moments and gradients
        assert {t.dtype for t in (*tensors, *moments, *gradients)} == {torch.float32}
        assert optimizer.defaults["fused"]
    samples = subject.sample(2)
    assert samples.dtype == torch.float32 and samples.abs().max() <= 1


@pytest.mark.parametrize("kind", ["plain", "with_statistics", "convolutional"])
@pytest.mark.usefixtures("kernels_serve")
def test_resume_is_exact(kind: str, tmp_path: Path) -> None:
    def fresh(folder: str, seed: int) -> Trainer:
        return Trainer(
            *networks(kind, seed), precision="bf16", batch_size=4, outdir=tmp_path / folder, name="run", device="cpu",
            progress=False, log_every=2, save_every=3, sample_every=0,
        )  # fmt: skip

    whole, first = fresh("whole", 0), fresh("parts", 0)
    data = images(22)
    for subject, steps in ((whole, 11), (first, 4)):
        torch.manual_seed(7)
        subject.fit(data, steps=steps)
    torch.manual_seed(1234)  # a new process has another state
    second = Trainer.load(tmp_path / "parts" / "00000-run", *networks(kind, seed=99), device="cpu")
    assert second.settings.precision == "bf16"
    second.fit(data, steps=7)
    assert_same_state(state_of(whole), state_of(second))


def test_losses_that_are_not_finite_stop_it() -> None:
    subject = trainer("convolutional", precision="bf16")
    with torch.no_grad():
        next(subject.discriminator.parameters()).fill_(math.inf)
    with pytest.raises(NonFiniteLossError):
        subject.fit(images(8), steps=1)


def test_fp32_sees_no_other_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a layer, not in an operator."""
    subject = trainer("convolutional", precision="fp32")
    seen: set[torch.dtype] = set()
    for layer in (*subject.generator.modules(), *subject.discriminator.modules()):
        layer.register_forward_hook(lambda _m, _a, out: seen.add(out.dtype))
    subject.train_step(images(4))
    assert seen == {torch.float32}


@pytest.mark.slow
@pytest.mark.usefixtures("kernels_serve")
@pytest.mark.parametrize("name", SIZES)
def test_losses_are_near_those_of_autocast_alone(name: str) -> None:
    """50 steps with the kernels, with PyTorch's autocast and in fp32: rounding makes paths differ, not where they go.

    The kernels' losses are as near to autocast's as fp32's are, or nearer.
    """
    curves = {}
    for label, settings in (
        ("ours", {"precision": "bf16"}),
        ("autocast", {"precision": "bf16", "accelerate": False}),
        ("fp32", {"precision": "fp32", "accelerate": False}),
    ):
        subject = model(name, **settings)
        rows = [subject.train_step(batch(subject, step)) for step in range(50)]
        curves[label] = torch.stack([torch.stack([m.d_loss, m.g_loss]) for m in rows])
        assert curves[label].isfinite().all()
    ours, autocast, exact = (curves[label] for label in ("ours", "autocast", "fp32"))
    torch.testing.assert_close(ours[0], autocast[0], rtol=0.02, atol=0.02)
    near = (exact - autocast).abs().mean(0)
    assert ((ours - autocast).abs().mean(0) <= 2 * near + 0.02).all(), name
    assert ((ours - exact).abs().mean(0) <= 2 * near + 0.02).all(), name


#: Networks of a few channels: their sizes, learning rate and batch size, and how far from fp32's a loss may be at any
#: of 50 steps. Measured on four paths of kernels and on PyTorch's: 0.002 and 0.004. Larger rates let GANs diverge from
#: the last bit on, whatever the precision.
SMALL: dict[str, tuple[dict[str, int], float, int, float]] = {
    "dcgan28": ({"ngf": 8, "ndf": 8}, 1e-4, 32, 0.005),
    "keras_mnist": ({"ngf": 8, "ndf": 8}, 1e-3, 16, 0.01),
}


def blobs(n: int, seed: int) -> Tensor:
    """Something to learn: a bright spot in each image, of any place and size. (n, 1, 28, 28) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(n, 2, 1, 1, generator=generator) * 1.2 - 0.6
    radius = torch.rand(n, 1, 1, generator=generator) * 0.3 + 0.15
    axis = torch.linspace(-1, 1, 28)
    distance = (axis.view(1, -1, 1) - centre[:, 0]) ** 2 + (axis.view(1, 1, -1) - centre[:, 1]) ** 2
    return (2 * torch.exp(-distance / radius**2) - 1).unsqueeze(1)


def curve(name: str, precision: str, accelerate: bool = True, faster: float = 1.0) -> Tensor:
    """(50, 2): the losses of D and G, step by step."""
    sizes, lr, batch_size, _ = SMALL[name]
    torch.manual_seed(0)
    subject = Trainer(
        *models.build(name, **sizes), precision=precision, accelerate=accelerate, lr=faster * lr, outdir=None,
        batch_size=batch_size, device="cpu", progress=False,
    )  # fmt: skip
    rows = [subject.train_step(blobs(batch_size, step)) for step in range(50)]
    return torch.stack([torch.stack([m.d_loss, m.g_loss]) for m in rows])


@functools.cache
def in_fp32(name: str) -> Tensor:
    """The curve to follow; at a rate 1.25 times as high it is outside of the band."""
    exact, band = curve(name, "fp32"), SMALL[name][3]
    assert (exact[-1] - exact[0]).abs().max() > 10 * band, (
        "a curve that stays where it is could be followed by anything"
    )
    assert (curve(name, "fp32", faster=1.25) - exact).abs().max() > 2 * band
    return exact


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "reference", *BFLOAT16_BACKENDS])
@pytest.mark.parametrize("name", SMALL)
def test_losses_follow_those_of_fp32(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernels of each level, with those for AVX512_BF16 emulated, and by PyTorch: no machine needs such
    instructions."""
    exact = in_fp32(name)
    if backend == "auto":
        losses = curve(name, "bf16")
    elif backend == "reference":
        losses = curve(name, "bf16", accelerate=False)
    else:
        with choice_table.always(Choice("cpu", "for this test")), level_of(backend, monkeypatch):
            with recorded(monkeypatch) as ran:
                losses = curve(name, "bf16")
        assert {"conv", "conv_transpose", "conv_weight_grad"} <= {op for op, by in ran if by == "cpu"}
    assert losses.isfinite().all() and not torch.equal(losses, exact)
    assert (losses - exact).abs().max() <= SMALL[name][3]
