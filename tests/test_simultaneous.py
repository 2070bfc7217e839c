"""Trainer(update="simultaneous"): one pass over the discriminator gives exactly the gradients of two separate ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gan import assert_same_state, images, networks, state_of, trainer
from torch import Tensor, nn
from torch.nn import functional as F

from gan_fast import losses
from gan_fast.cli import main
from gan_fast.training import ConfigMismatchError, Trainer, simultaneous
from gan_fast.training.step import GanStep


class Hinge:
    """D's slope is exactly zero for a generated sample that it is sure of; G's never is."""

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        return -fake_logits.mean()


class LeastSquares:
    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return (real_logits - 1).square().mean() + fake_logits.square().mean()

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        return (fake_logits - 1).square().mean()


class Relativistic:
    """The two kinds of logits meet in D's loss."""

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return F.softplus(fake_logits - real_logits).mean()

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        return F.softplus(-fake_logits).mean()


LOSSES: dict[str, Any] = {
    "bce": losses.BCE(),
    "minimax": losses.Minimax(),
    "hinge": Hinge(),
    "least_squares": LeastSquares(),
    "relativistic": Relativistic(),
}


def convolutional(scale: float = 1.0) -> tuple[nn.Module, nn.Module]:
    """G with batch statistics, D with those of single samples, and one logit of shape (1, 1, 1)."""
    torch.manual_seed(0)
    generator = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 1, 3, padding=2), nn.Tanh()
    )
    discriminator = nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1), nn.InstanceNorm2d(5), nn.LeakyReLU(0.2), nn.Conv2d(5, 1, 5)
    )
    with torch.no_grad():
        discriminator[-1].weight.mul_(scale)
    return generator, discriminator


def gradients(network: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def two_passes(G: nn.Module, D: nn.Module, loss: Any, real: Tensor, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of D's loss for D and of G's loss for G, each by a forward and a backward pass of its own."""
    fakes = G(z)
    d_loss = loss.d_loss(D(real), D(fakes.detach()))
    of_d = torch.autograd.grad(d_loss, list(D.parameters()), allow_unused=True)
    of_g = torch.autograd.grad(loss.g_loss(D(fakes)), list(G.parameters()))
    return [g for g in of_d if g is not None], list(of_g)


def made(pair: tuple[nn.Module, nn.Module], loss: Any, dtype: torch.dtype, **settings: Any) -> GanStep:
    """The step alone, on networks of this dtype; the Trainer's data are float32."""
    subject = Trainer(
        *pair, loss=loss, latent_dim=(4, 1, 1), update="simultaneous", outdir=None, device="cpu", **settings
    )
    for network in pair:
        network.to(dtype)
    return subject._step


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("name", LOSSES)
def test_exact_in_float64(name: str, scale: float) -> None:
    """With every weight of D's last layer 40 times as large, sigmoids saturate and hinges let go."""
    generator = torch.Generator().manual_seed(1)
    real = torch.randn(7, 1, 5, 5, generator=generator, dtype=torch.float64)
    z = torch.randn(7, 4, 1, 1, generator=generator, dtype=torch.float64)
    pair = convolutional(scale)
    step = made(pair, LOSSES[name], torch.float64, lr=1e-30)
    expected = two_passes(*copy.deepcopy(pair), LOSSES[name], real, z)
    metrics = step(real, z)
    for network, truth in zip(reversed(pair), expected, strict=True):
        found = gradients(network)
        assert len(found) == len(truth)
        largest = max(float(g.abs().max()) for g in truth)  # some biases have no gradient but what rounding leaves
        for mine, other in zip(found, truth, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-13 * largest)
    with torch.no_grad():
        fakes = pair[0](z)
        torch.testing.assert_close(metrics.d_loss, LOSSES[name].d_loss(pair[1](real), pair[1](fakes)))
        torch.testing.assert_close(metrics.g_loss, LOSSES[name].g_loss(pair[1](fakes)))
        torch.testing.assert_close(metrics.d_real, torch.sigmoid(pair[1](real).float()).mean())


@pytest.mark.parametrize("logit", [-300.0, -95.0, -50.0, 0.0, 50.0, 300.0])
@pytest.mark.parametrize("name", ["bce", "minimax", "hinge"])
def test_sure_discriminators_leave_the_generator_its_gradient(name: str, logit: float) -> None:
    """In float32, where d' underflows from -104 on: both gradients are those of passes of their own."""
    pair = convolutional()
    with torch.no_grad():
        pair[1][-1].bias.fill_(logit)
    real, z = torch.randn(6, 1, 5, 5), torch.randn(6, 4, 1, 1)
    of_d, of_g = two_passes(*copy.deepcopy(pair), LOSSES[name], real, z)
    step = made(pair, LOSSES[name], torch.float32, lr=1e-30)
    step(real, z)
    for network, truth in ((pair[0], of_g), (pair[1], of_d)):
        largest = max(float(g.abs().max()) for g in truth)  # some biases have no gradient but what rounding leaves
        assert largest > 1e-3 or network is pair[1] or name == "minimax" or logit > 0, "G has nothing to learn here"
        for mine, other in zip(gradients(network), truth, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=max(1e-5 * largest, 1e-17))


def test_the_discriminator_runs_once() -> None:
    pair = networks("plain")
    calls: list[int] = []
    pair[1].register_forward_hook(lambda module, args, out: calls.append(len(out)))
    subject = Trainer(*pair, update="simultaneous", batch_size=4, outdir=None, device="cpu")
    calls.clear()
    metrics = subject.train_step(images(4))
    assert calls == [8]
    assert float(metrics.d_loss) > 0 and float(metrics.g_loss) > 0
    assert all(parameter.grad is not None for network in pair for parameter in network.parameters())


def test_both_networks_learn_as_in_the_alternating_update() -> None:
    """One step from the same weights: D's update is the same, G's differs by D's update alone."""
    ones, others = trainer(lr=1e-4), trainer(lr=1e-4, update="simultaneous")
    z = torch.randn(4, 4)
    before = copy.deepcopy(others.generator.state_dict())
    first, second = ones.train_step(images(4), z), others.train_step(images(4), z)
    torch.testing.assert_close(first.d_loss, second.d_loss)
    assert abs(float(first.g_loss - second.g_loss)) < 1e-3
    for mine, other in zip(ones.discriminator.parameters(), others.discriminator.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(before[key], value) for key, value in others.generator.state_dict().items())


def test_bf16_and_a_trailing_sigmoid() -> None:
    pair = networks("plain")
    pair[1].append(nn.Sigmoid())
    subject = Trainer(*pair, update="simultaneous", precision="bf16", batch_size=4, outdir=None, device="cpu")
    real, z = images(4), torch.randn(4, 4)
    plain = copy.deepcopy(pair)
    del plain[1][-1]
    of_d, of_g = two_passes(*plain, losses.BCE(), real, z)
    subject.train_step(real, z)
    for network, truth in ((pair[0], of_g), (pair[1], of_d)):
        for mine, other in zip(gradients(network), truth, strict=True):
            torch.testing.assert_close(mine, other, rtol=0.05, atol=0.05 * float(other.abs().max()))


# ---------------------------------------------------------------------------------------------- what it does not take


class MinibatchDeviation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.std(0, keepdim=True)


def test_refused_where_samples_mix() -> None:
    with pytest.raises(ValueError, match=r"simultaneous.*statistics over the batch.*alternating"):
        trainer("with_statistics", update="simultaneous")
    generator, discriminator = networks("with_statistics")
    discriminator.eval()  # the first step would put it into train mode
    with pytest.raises(ValueError, match="statistics over the batch"):
        Trainer(generator, discriminator, update="simultaneous", outdir=None, device="cpu")
    generator, discriminator = networks("plain")
    discriminator.insert(1, MinibatchDeviation())
    with pytest.raises(ValueError, match="statistics over the batch"):
        Trainer(generator, discriminator, update="simultaneous", outdir=None, device="cpu")


def test_frozen_statistics_are_taken_until_they_thaw() -> None:
    generator, discriminator = networks("with_statistics")
    discriminator[2].eval()
    subject = Trainer(generator, discriminator, update="simultaneous", batch_size=4, outdir=None, device="cpu")
    subject.train_step(images(4))
    discriminator[2].train()
    before = copy.deepcopy(generator.state_dict())
    with pytest.raises(ValueError, match="statistics over the batch"):
        subject.train_step(images(4))
    assert torch.equal(before["0.weight"], generator.state_dict()["0.weight"])


def test_refused_for_maps_of_logits_fp16_and_unknown_words() -> None:
    generator, discriminator = networks("convolutional")
    discriminator[-1] = nn.Conv2d(3, 1, 1)
    with pytest.raises(ValueError, match=r"one logit for each sample; this one gives 4\b.*alternating"):
        Trainer(generator, discriminator, update="simultaneous", outdir=None, device="cpu")
    with pytest.raises(ValueError, match=r"fp16.*bf16"):
        trainer(update="simultaneous", precision="fp16")
    with pytest.raises(ValueError, match="update='simultanous' is unknown; did you mean 'simultaneous'"):
        trainer(update="simultanous")


def test_a_discriminator_that_ignores_its_input_is_named() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logit = nn.Parameter(torch.zeros(1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.logit.expand(len(x), 1)

    subject = Trainer(networks()[0], Constant(), update="simultaneous", batch_size=4, outdir=None, device="cpu")
    with pytest.raises(ValueError, match="do not depend on its input"):
        subject.train_step(images(4))


def test_the_smallest_slope_leaves_room_on_both_sides() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        least = simultaneous.smallest(dtype)
        assert float(torch.tensor(least, dtype=dtype)) > 0 and float(torch.tensor(1 / least, dtype=dtype)) < float(
            "inf"
        )


# ------------------------------------------------------------------------------------------- resume, configuration, CLI


def test_resume_is_exact_and_asks_for_the_same_update(tmp_path: Path) -> None:
    whole = trainer(update="simultaneous")
    whole.fit(images(), steps=5)
    part = trainer(update="simultaneous")
    part.fit(images(), steps=3)
    part.save(tmp_path / "c")
    assert json.loads((tmp_path / "c" / "config.json").read_text())["training"]["update"] == "simultaneous"
    rest = Trainer.load(tmp_path / "c", *networks(seed=5), device="cpu")
    assert rest.settings.update == "simultaneous"
    rest.fit(images(), steps=2)
    assert_same_state(state_of(whole), state_of(rest))
    with pytest.raises(ConfigMismatchError, match="update: 'simultaneous' in the checkpoint, 'alternating' now"):
        Trainer.load(tmp_path / "c", *networks(), device="cpu", update="alternating")


def test_checkpoints_from_before_the_choice_are_alternating(tmp_path: Path) -> None:
    subject = trainer()
    subject.train_step(images(4))
    contents = subject._contents()
    del contents["config"]["training"]["update"]
    from gan_fast.training import checkpoint

    checkpoint.write(tmp_path / "c", **contents)
    assert Trainer.load(tmp_path / "c", *networks(), device="cpu").settings.update == "alternating"


def test_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="gan_fast.training"):
        trainer(update="simultaneous")
        trainer("with_statistics")
        trainer()
    said = [record.getMessage() for record in caplog.records if "discriminator in a step" in record.getMessage()]
    assert len(said) == 3
    assert "one forward and one backward pass" in said[0] and "apart" in said[1] and "in one batch" in said[2]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "train",
        "--data",
        "digits",
        "--model",
        "keras_mnist",
        "--batch-size",
        "4",
        "--steps",
        "1",
        "--dry-run",
    ]
    code = main([*arguments, "--update", "simultaneous", "--outdir", str(tmp_path)])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert "update         simultaneous" in shown.out
    assert main([*arguments, "--update", "both", "--outdir", str(tmp_path)]) != 0
    assert "update='both' is unknown" in capsys.readouterr().err
