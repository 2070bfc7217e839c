"""The Trainer's step, checks, sampling and stop reasons."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_gan import LATENT, SHAPE, images, networks, plain, state_of, trainer, with_statistics
from torch import Tensor, nn

from gan_fast.training import NonFiniteError, NonFiniteLossError, Trainer


def reference_step(
    generator: nn.Module, discriminator: nn.Module, real: Tensor, z: Tensor, lr: float
) -> tuple[Tensor, Tensor]:
    """The step in plain PyTorch: D on real and detached fakes, then G against the updated D."""
    for_g = torch.optim.Adam(generator.parameters(), lr=lr, betas=(0.5, 0.999))
    for_d = torch.optim.Adam(discriminator.parameters(), lr=lr, betas=(0.5, 0.999))
    fakes = generator(z)
    real_logits, fake_logits = discriminator(real), discriminator(fakes.detach())
    d_loss = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    d_loss = d_loss + F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    d_loss.backward()
    for_d.step()
    for_g.zero_grad()
    logits = discriminator(fakes)
    g_loss = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    g_loss.backward()
    for_g.step()
    return d_loss.detach(), g_loss.detach()


@pytest.mark.parametrize("kind", ["plain", "with_statistics", "convolutional"])
def test_step_equals_plain_pytorch(kind: str) -> None:
    generator, discriminator = networks(kind)
    for layer in discriminator.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # otherwise only the draws would differ
    ours = copy.deepcopy((generator, discriminator))
    subject = Trainer(*ours, batch_size=4, lr=1e-3, outdir=None, device="cpu")
    real = images(4)
    z = torch.randn(4, LATENT, 1, 1) if kind == "convolutional" else torch.randn(4, LATENT)
    expected = reference_step(generator, discriminator, real, z, lr=1e-3)
    metrics = subject.train_step(real, z)
    torch.testing.assert_close((metrics.d_loss, metrics.g_loss), expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in ((subject.generator, generator), (subject.discriminator, discriminator)):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_metrics_are_means_of_probabilities() -> None:
    subject = trainer()
    real, z = images(4), torch.randn(4, LATENT)
    with torch.no_grad():
        d_real = torch.sigmoid(subject.discriminator(real)).mean()
        d_fake = torch.sigmoid(subject.discriminator(subject.generator(z))).mean()
    metrics = subject.train_step(real, z)
    torch.testing.assert_close(metrics.d_real, d_real)
    torch.testing.assert_close(metrics.d_fake, d_fake)
    assert metrics.d_loss.shape == metrics.g_loss.shape == () and not metrics.d_loss.requires_grad
    assert repr(metrics).startswith("StepMetrics(d_loss=")


class Counting(nn.Module):
    """Passes its input on and remembers the batch sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return x


@pytest.mark.parametrize(("statistics", "batches"), [(False, [8, 4]), (True, [4, 4, 4])])
def test_discriminator_sees_one_batch_unless_it_takes_statistics(statistics: bool, batches: list[int]) -> None:
    generator, discriminator = with_statistics() if statistics else plain()
    in_g, in_d = Counting(), Counting()
    subject = Trainer(
        nn.Sequential(in_g, generator), nn.Sequential(in_d, discriminator), batch_size=4, outdir=None, device="cpu"
    )
    in_g.seen.clear()
    in_d.seen.clear()
    subject.train_step(images(4))
    assert in_g.seen == [4], "the generator runs forward once"
    assert in_d.seen == batches


def test_statistics_held_in_eval_mode_allow_one_batch() -> None:
    generator, discriminator = with_statistics()
    counter = Counting()
    subject = Trainer(generator, nn.Sequential(counter, discriminator), batch_size=4, outdir=None, device="cpu")
    for layer in discriminator.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.eval()
    counter.seen.clear()
    subject.train_step(images(4))
    assert counter.seen == [8, 4]


class MinibatchMean(nn.Module):
    """Lets the samples of a batch see each other, in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 10 * x.mean(0, keepdim=True)


def test_a_discriminator_that_mixes_samples_gets_separate_batches() -> None:
    generator, discriminator = plain()
    counter = Counting()
    subject = Trainer(
        generator, nn.Sequential(counter, MinibatchMean(), discriminator), batch_size=4, outdir=None, device="cpu"
    )
    counter.seen.clear()
    subject.train_step(images(4))
    assert counter.seen == [4, 4, 4]


def test_discriminator_is_frozen_in_the_generator_s_step_and_thawed_after_errors() -> None:
    asked: list[bool] = []

    class Watching:
        def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
            return fake_logits.mean() - real_logits.mean()

        def g_loss(self, fake_logits: Tensor) -> Tensor:
            asked.extend(p.requires_grad for p in subject.discriminator.parameters())
            if fail:
                raise ZeroDivisionError
            return -fake_logits.mean()

    fail = False
    subject = trainer(loss=Watching())
    frozen_by_owner = next(subject.discriminator.parameters())
    subject.train_step(images(4))
    assert asked and not any(asked)
    frozen_by_owner.requires_grad_(False)
    fail = True
    with pytest.raises(ZeroDivisionError):
        subject.train_step(images(4))
    assert [p.requires_grad for p in subject.discriminator.parameters()] == [False, True, True, True]


def test_weight_gradients_of_the_discriminator_are_those_of_its_own_step() -> None:
    subject = trainer()
    subject.train_step(images(4), torch.randn(4, LATENT))
    before = [p.grad.clone() for p in subject.discriminator.parameters() if p.grad is not None]
    assert len(before) == 4
    real, z = images(4, seed=5), torch.randn(4, LATENT)
    twin = copy.deepcopy(subject.discriminator)
    real_logits, fake_logits = twin(real), twin(subject.generator(z).detach())
    twin.zero_grad()
    (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()).backward()
    subject.train_step(real, z)
    for mine, theirs in zip(subject.discriminator.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------ trailing sigmoid


class Hidden(nn.Module):
    """A sigmoid in the middle, and one at the end, registered the other way round."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.last = nn.Sigmoid()
        self.gate = nn.Sigmoid()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x * self.gate(x))).view(-1)


@pytest.mark.parametrize(
    "wrap", [lambda d: nn.Sequential(d, nn.Sigmoid()), lambda d: nn.Sequential(nn.Sequential(d, nn.Sigmoid()))]
)
def test_trailing_sigmoid_is_stepped_over(wrap: Any, caplog: pytest.LogCaptureFixture) -> None:
    generator, discriminator = networks()
    twins = copy.deepcopy((generator, discriminator))
    with caplog.at_level("INFO", logger="gan_fast"):
        subject = Trainer(generator, wrap(discriminator), batch_size=4, outdir=None, device="cpu")
    assert sum("Sigmoid" in record.message and "stepped over" in record.message for record in caplog.records) == 1
    real, z = images(4), torch.randn(4, LATENT)
    mine = subject.train_step(real, z)
    theirs = Trainer(*twins, batch_size=4, outdir=None, device="cpu").train_step(real, z)
    torch.testing.assert_close((mine.d_loss, mine.g_loss), (theirs.d_loss, theirs.g_loss))
    probabilities = subject.discriminator(real)
    assert probabilities.min() > 0 and probabilities.max() < 1, "outside the step the network gives probabilities"


def test_the_right_sigmoid_is_found() -> None:
    generator, body = networks()
    wrapped = Hidden(body)
    subject = Trainer(generator, wrapped, batch_size=4, outdir=None, device="cpu")
    real, z = images(4), torch.randn(4, LATENT)
    with torch.no_grad():
        expected = body(real * torch.sigmoid(real)).sigmoid().mean()
    torch.testing.assert_close(subject.train_step(real, z).d_real, expected)
    assert isinstance(wrapped.last, nn.Sigmoid)


def test_sigmoid_fused_into_a_convolution_is_stepped_over() -> None:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.ConvTranspose2d(LATENT, 1, 4), nn.Tanh())
    discriminator = nn.Sequential(nn.Conv2d(1, 1, 4), nn.Sigmoid())
    bare = copy.deepcopy(discriminator[0])
    subject = Trainer(generator, discriminator, batch_size=4, outdir=None, device="cpu", accelerate=True)
    real = images(4)
    expected = torch.sigmoid(bare(real)).mean()
    torch.testing.assert_close(subject.train_step(real).d_real, expected)
    assert type(discriminator[1]) is nn.Sigmoid


def test_sigmoid_as_a_function_is_refused() -> None:
    class Ending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = plain()[1]

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.body(x)).view(-1)

    with pytest.raises(ValueError, match="ends in a sigmoid"):
        Trainer(plain()[0], Ending(), outdir=None, device="cpu")


def test_the_sigmoid_comes_back_after_an_error() -> None:
    generator, discriminator = plain()
    wrapped = nn.Sequential(discriminator, nn.Sigmoid())
    subject = Trainer(generator, wrapped, batch_size=4, outdir=None, device="cpu")
    discriminator[1].weight = nn.Parameter(torch.zeros(3, 3))  # no longer fits
    with pytest.raises(RuntimeError):
        subject.train_step(images(4))
    assert isinstance(wrapped[1], nn.Sigmoid)


# ------------------------------------------------------------------------------------------- latents and sampling


def test_latents_come_from_the_trainer_s_own_generator() -> None:
    one, other = trainer(seed=3), trainer(seed=3)
    torch.manual_seed(123)  # the global generator has no say
    a = one.train_step(images(4))
    torch.manual_seed(456)
    b = other.train_step(images(4))
    assert torch.equal(a.d_loss, b.d_loss) and torch.equal(a.g_loss, b.g_loss)
    assert not torch.equal(a.d_loss, trainer(seed=4).train_step(images(4)).d_loss)


def test_a_latent_function_of_one_s_own() -> None:
    def uniform(n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, LATENT, generator=generator)

    subject = trainer(latent=uniform)
    subject.train_step(images(4))
    assert subject.sample(3).shape == (3, *SHAPE)

    def short(n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(1, LATENT, generator=generator)

    with pytest.raises(ValueError, match="latent must return a tensor with 2 latents"):
        trainer(latent=short)


def test_sample_is_in_eval_mode_and_leaves_no_trace() -> None:
    subject = trainer("with_statistics")
    subject.train_step(images(4))
    before = state_of(subject)
    before = copy.deepcopy(before)
    one, again, other = subject.sample(9, seed=1), subject.sample(9, seed=1), subject.sample(9, seed=2)
    assert one.shape == (9, *SHAPE) and one.abs().max() <= 1 and not one.requires_grad
    assert torch.equal(one, again) and not torch.equal(one, other)
    from tiny_gan import assert_same_state

    assert_same_state(before, state_of(subject))
    assert subject.generator.training
    subject.generator.eval()
    z = torch.randn(9, LATENT, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(subject.generator(z), one)
    with pytest.raises(ValueError, match="n must be a positive integer"):
        subject.sample(0)


def test_making_a_trainer_touches_no_random_state_and_no_statistics() -> None:
    generator, discriminator = networks("with_statistics")
    before = torch.get_rng_state()
    buffers = copy.deepcopy([dict(net.named_buffers()) for net in (generator, discriminator)])
    Trainer(generator, discriminator, outdir=None, device="cpu")
    assert torch.equal(before, torch.get_rng_state())
    for net, stored in zip((generator, discriminator), buffers, strict=True):
        assert net.training
        assert all(torch.equal(value, stored[name]) for name, value in net.named_buffers())


# -------------------------------------------------------------------------------------------------------------- fit


def test_fit_counts_steps_and_epochs(tmp_path: Path) -> None:
    subject = trainer()
    result = subject.fit(images(22), epochs=2)
    assert (result.steps, result.step, result.reason, result.folder) == (10, 10, "reached step 10", None)
    assert result.img_s > 0 and not result.converged
    assert subject.fit(images(22), steps=3).step == 13, "without resume, steps are further steps"
    assert not list(tmp_path.iterdir())


def test_fit_calls_an_overridden_step() -> None:
    class Mine(Trainer):
        calls = 0

        def train_step(self, real: Tensor, z: Tensor | None = None) -> Any:
            self.calls += 1
            return super().train_step(real, z)

    subject = Mine(*plain(), batch_size=4, outdir=None, device="cpu")
    subject.fit(images(), steps=3)
    assert subject.calls == 3


def test_eval_mode_left_behind_is_mended_but_single_layers_are_respected() -> None:
    subject = trainer("with_statistics")
    subject.generator.eval()
    subject.train_step(images(4))
    assert all(module.training for module in subject.generator.modules())
    subject.generator[1].eval()
    subject.train_step(images(4))
    assert not subject.generator[1].training


class Exploding:
    """A loss that becomes NaN at one step."""

    def __init__(self, at: int, which: str = "g_loss") -> None:
        self.at, self.which, self.step = at, which, 0

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        self.step += 1
        return self._spoil("d_loss", F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        return self._spoil("g_loss", F.softplus(-fake_logits).mean())

    def _spoil(self, which: str, value: Tensor) -> Tensor:
        return value * math.nan if which == self.which and self.step == self.at else value


@pytest.mark.parametrize("which", ["d_loss", "g_loss"])
def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path, which: str) -> None:
    subject = trainer(loss=Exploding(at=8, which=which), outdir=tmp_path, name="x", save_every=3, log_every=2)
    with pytest.raises(NonFiniteLossError, match=f"{which} is nan at step 8") as caught:
        subject.fit(images(), steps=20)
    assert (caught.value.step, caught.value.which) == (8, which)
    assert "step_00000006" in str(caught.value)
    run = tmp_path / "00000-x"
    assert sorted(place.name for place in (run / "checkpoints").iterdir()) == ["step_00000003", "step_00000006"]
    assert (run / "loss_curves.png").exists()
    with pytest.raises(NonFiniteError, match="not finite after step 8"):
        subject.save(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    loaded = Trainer.load(run, *networks(), loss=Exploding(at=-1))
    assert loaded.step == 6
    assert loaded.fit(images(), steps=4).step == 10


def test_infinite_parameters_found_at_a_checkpoint_name_the_last_good_one(tmp_path: Path) -> None:
    subject = trainer(outdir=tmp_path, name="x", save_every=2)

    class Spoiling(type(subject._step)):  # type: ignore[misc]  # the step's own class
        def __call__(self, real: Tensor, z: Tensor) -> Any:
            metrics = super().__call__(real, z)
            if subject.step == 3:  # the fourth step: its loss is finite, its weights no longer are
                with torch.no_grad():
                    next(subject.generator.parameters())[0] = math.inf
            return metrics

    subject._step.__class__ = Spoiling
    with pytest.raises(NonFiniteError, match=r"not finite after step 4.*last good checkpoint is .*step_00000002"):
        subject.fit(images(), steps=6)


def test_infinite_parameters_are_never_saved(tmp_path: Path) -> None:
    subject = trainer()
    subject.train_step(images(4))
    subject.save(tmp_path / "good")
    with torch.no_grad():
        next(subject.generator.parameters())[0] = math.inf
    with pytest.raises(NonFiniteError, match=r"generator 0.weight is not finite after step 1; this step was not saved"):
        subject.save(tmp_path / "good")
    assert Trainer.load(tmp_path / "good", *networks()).step == 1


def test_progress_bar_shows_speed_and_probabilities(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(progress=True, log_every=1).fit(images(), steps=3)
    shown = capsys.readouterr().err
    assert "3/3" in shown and "img/s" in shown and "D(x)" in shown and "D(G(z))" in shown


def test_without_a_terminal_lines_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="gan_fast.training.progress"):
        trainer(progress=False, log_every=2).fit(images(), steps=5)
    lines = [record.getMessage() for record in caplog.records if record.name == "gan_fast.training.progress"]
    assert [line.split()[:2] for line in lines] == [["step", "2/5"], ["step", "4/5"]]
