"""gan_fast.profiling: where a step's time goes, in loops of all kinds; nothing here depends on how long anything
takes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_gan
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gan_fast
from gan_fast.profiling import Profile, Report, operators, patches

BATCH = 4


class Loop:
    """A user's own loop: `turn` is one step on a batch."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module, critics: int = 1) -> None:
        self.generator, self.discriminator, self.critics = generator, discriminator, critics
        self.g_optimizer = torch.optim.Adam(generator.parameters())
        self.d_optimizer = torch.optim.Adam(discriminator.parameters())
        self.criterion = nn.BCEWithLogitsLoss()
        self.latent = (tiny_gan.LATENT, 1, 1)

    def turn(self, real: Tensor) -> None:
        for _ in range(self.critics):
            fake = self.generator(torch.randn(len(real), *self.latent))
            self.d_optimizer.zero_grad()
            logits, judged = self.discriminator(real), self.discriminator(fake.detach())
            loss = self.criterion(logits, torch.ones_like(logits)) + self.criterion(judged, torch.zeros_like(judged))
            loss.backward()
            self.d_optimizer.step()
        self.g_optimizer.zero_grad()
        judged = self.discriminator(fake)
        self.criterion(judged, torch.ones_like(judged)).backward()
        self.g_optimizer.step()


def batches(count: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(tiny_gan.images(count * BATCH)), batch_size=BATCH)


def run(profile: Profile, loop: Loop, count: int = 8) -> Report:
    with profile:
        for (real,) in batches(count):
            loop.turn(real)
    return profile.report


@pytest.fixture
def loop() -> Loop:
    return Loop(*tiny_gan.networks("convolutional"))


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Whatever a profile watched is as it was, and no optimiser has a hook left."""
    from torch.optim import optimizer

    places = [(nn.Module, "__call__"), *((owner, name) for owner, name, _, _ in patches._places())]
    before = [vars(owner)[name] for owner, name in places]
    yield
    assert [vars(owner)[name] for owner, name in places] == before
    assert not optimizer._global_optimizer_pre_hooks and not optimizer._global_optimizer_post_hooks


# ------------------------------------------------------------------------------------------------------- phases


def test_a_loop_of_one_s_own_by_phases(loop: Loop) -> None:
    report = run(Profile(loop.generator, loop.discriminator, detail=1), loop)
    assert report.counts == {"timed": 2, "bare": 2, "detail": 1, "counted": 1}
    found = {(row.phase, row.update) for row in report.phases}
    assert found == {
        ("data", ""),
        ("host gaps", ""),
        ("generator forward", "discriminator"),
        *((f"{phase}", update) for phase in ("loss", "backward", "optimiser", "discriminator forward")
          for update in ("discriminator", "generator")),
    }  # fmt: skip
    assert all(row.seconds > 0 for row in report.phases)
    assert sum(row.seconds for row in report.phases) == pytest.approx(report.wall, rel=1e-6)
    assert sum(row.share for row in report.phases) == pytest.approx(1, rel=1e-6)
    assert set(report.overhead) == {"timing the phases", "layers and operators"} and report.step > 0
    assert report.notes == []
    text = str(report)
    assert "they add up to 100.0% of the wall time" in text and "overhead of profiling, against 2 unprofiled" in text


def test_networks_are_found_by_themselves(loop: Loop) -> None:
    report = run(Profile(detail=1), loop)
    names = {row.phase for row in report.phases}
    assert names >= {"generator forward", "discriminator forward", "data", "loss"} and report.counts["timed"] >= 1


def test_several_updates_of_one_network_are_one_step() -> None:
    loop = Loop(*tiny_gan.networks("convolutional"), critics=3)
    report = run(Profile(loop.generator, loop.discriminator, detail=1), loop)
    assert report.counts == {"timed": 2, "bare": 2, "detail": 1, "counted": 1}
    convolution = next(row for row in report.operators if row.operator == "aten::convolution")
    # Forward: 3 times G (2 convolutions) and D on both kinds (2 each), and D once more.
    assert convolution.calls == 3 * (2 + 2 * 2) + 2


def test_a_network_that_nobody_updates_does_not_hold_up_the_steps(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan_fast.profiling.recorder._PATIENCE", 2)
    judge = nn.Linear(16, 1)
    with Profile(detail=0) as profile:
        for (real,) in batches(12):
            judge(real.flatten(1))
            loop.turn(real)
    assert profile.report.counts["timed"] >= 2
    assert "judge forward" in {row.phase for row in profile.report.phases}


def test_steps_phases_and_loaders_of_one_s_own() -> None:
    network = nn.Linear(3, 1)
    with Profile(network, detail=0) as profile:
        for x in profile.loader(torch.ones(7, 2, 3)):
            with profile.phase("augmentation"):
                x = x + 1
            network(x).mean().backward()
            profile.step()
    report = profile.report
    assert report.counts["timed"] == 2 and report.counts["bare"] == 2
    assert {row.phase for row in report.phases} == {"data", "augmentation", "Linear forward", "backward", "host gaps"}


def test_a_transform_that_is_a_module_is_data() -> None:
    flip = nn.Flatten(0)

    class Flipped(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            return flip(super().__getitem__(index)[0])

    network = nn.Linear(16, 1)
    with Profile(network, detail=0) as profile:
        for x in DataLoader(Flipped(tiny_gan.images(12)), batch_size=2):
            nn.Tanh()(network(x)).mean().backward()
            profile.step()
    assert {row.phase for row in profile.report.phases} == {"data", "Linear forward", "Tanh", "backward", "host gaps"}


def test_a_loop_that_is_too_short_says_so(loop: Loop) -> None:
    report = run(Profile(loop.generator, loop.discriminator), loop, count=2)
    assert report.phases == [] and "no phases: too few steps" in report.notes[0] and "note: no phases" in str(report)
    with Profile() as profile:
        pass
    assert profile.report.notes[0] == "no network was called inside the with block"


# ------------------------------------------------------------------------------------- layers, operators, counts


def test_layers_and_operators_of_plain_networks(loop: Loop) -> None:
    report = run(Profile(loop.generator, loop.discriminator, detail=2), loop)
    layers = {row.layer: row for row in report.layers}
    assert set(layers) >= {f"{name}.{i}" for name in ("generator", "discriminator") for i in range(3)}
    for name in ("generator.0", "generator.2", "discriminator.0", "discriminator.2"):
        row = layers[name]
        assert row.forward > 0 and row.backward > 0 and row.flops > 0 and row.roof is not None and row.roof > 0
        assert (row.forward_backend, row.backward_backend) == ("torch", "torch") and "not accelerated" in row.why
    assert layers["generator.0"].kind == "ConvTranspose2d"
    # G's first layer, once forward; its input needs no gradient: 2 * batch * 4*3*4*4 products in each of two passes.
    assert layers["generator.0"].flops == 2 * (2 * BATCH * tiny_gan.LATENT * 3 * 16)
    found = {row.operator: row for row in report.operators}
    assert {"aten::convolution", "aten::convolution_backward", operators.PYTHON} <= set(found)
    assert found["aten::convolution"].calls == 8 and found["aten::convolution"].flops > 0
    assert sum(row.flops for row in report.operators) == report.flops == sum(row.flops for row in report.layers)
    assert report.outside is not None and 0 <= report.outside <= 1
    assert any("accelerate(generator) would swap 2 layers" in sentence for sentence in report.verdict)


def test_layers_and_operators_of_accelerated_networks(loop: Loop) -> None:
    gan_fast.accelerate(loop.generator, loop.discriminator)
    with gan_fast.use_backend("reference"):
        report = run(Profile(loop.generator, loop.discriminator, detail=1), loop)
    layers = {row.layer: row for row in report.layers}
    assert layers["generator.0"].forward_backend == layers["generator.0"].backward_backend == "reference"
    assert layers["generator.0"].why == "asked for by name"
    # Profiling leaves activations where they were fused: these layers never run.
    assert not {"generator.1", "generator.3", "discriminator.1"} & set(layers)
    row = next(row for row in report.operators if row.operator == "gan_fast::conv_transpose")
    assert row.served == {"reference": "asked for by name"} and row.flops > 0
    assert report.spread is not None and report.spread >= 0
    assert not any("would swap" in sentence for sentence in report.verdict)


def test_a_compiled_network_is_one_layer_and_compiled_once(loop: Loop) -> None:
    from torch._dynamo.utils import counters

    class Wrapped(nn.Module):  # PyTorch's own containers are not compiled in this way
        def __init__(self, main: nn.Module) -> None:
            super().__init__()
            self.main = main

        def forward(self, z: Tensor) -> Tensor:
            return self.main(z)

    loop.generator = Wrapped(loop.generator)
    loop.generator.compile(backend="eager")
    counters.clear()
    report = run(Profile(loop.generator, loop.discriminator, detail=1), loop)
    assert counters["stats"]["unique_graphs"] == 1
    layers = {row.layer for row in report.layers}
    assert {"generator", "discriminator.0"} <= layers and "generator.main.0" not in layers


# --------------------------------------------------------------------------------------------- trainer, training


@pytest.mark.parametrize("update", ["alternating", "simultaneous"])
def test_a_trainer_is_profiled_and_trains_as_ever(update: str, tmp_path: Path) -> None:
    steps = 8
    undisturbed = tiny_gan.trainer("convolutional", update="alternating")
    if update == "simultaneous":
        undisturbed = tiny_gan.trainer("plain", update=update)
    undisturbed.fit(tiny_gan.images(), steps=steps)
    kind = "plain" if update == "simultaneous" else "convolutional"
    trainer = tiny_gan.trainer(kind, update=update, outdir=tmp_path, log_every=2)
    with Profile(trainer, detail=1) as profile:
        trainer.fit(tiny_gan.images(), steps=steps)
    for name in ("generator", "discriminator"):
        one, other = getattr(trainer, name).state_dict(), getattr(undisturbed, name).state_dict()
        tiny_gan.assert_same_state(dict(one), dict(other))
    found = {row.phase for row in profile.report.phases}
    assert found >= {"data", "logging", "loss", "backward", "optimiser", "generator forward", "discriminator forward"}


def test_checkpoints_and_pictures_have_a_phase_of_their_own(tmp_path: Path) -> None:
    trainer = tiny_gan.trainer("convolutional", outdir=tmp_path, save_every=1)
    with Profile(trainer, detail=0) as profile:
        trainer.fit(tiny_gan.images(), steps=8)
    assert "checkpoints and pictures" in {row.phase for row in profile.report.phases}


def test_stop_after_ends_the_loop_and_nothing_else_does(loop: Loop, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    with Profile(loop.generator, loop.discriminator, stop_after=2, detail=1, trace=trace) as profile:
        for _ in itertools.count():
            loop.turn(tiny_gan.images(BATCH))
    assert profile.report.counts["timed"] == profile.report.counts["bare"] == 2
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"phase: backward", "layer: generator.0", "aten::convolution"} <= names
    with pytest.raises(ZeroDivisionError), Profile(loop.generator) as profile:
        _ = 1 / 0
    assert profile.report.phases == []


def test_an_error_under_the_counter_and_the_profiler_leaves_nothing_open(loop: Loop) -> None:
    for done in (3, 4):  # in the counted step, and in the one under torch.profiler
        with pytest.raises(ZeroDivisionError), Profile(loop.generator, loop.discriminator, warmup=2):
            for number, (real,) in enumerate(batches(8), 1):
                loop.turn(real)
                if number == done:
                    raise ZeroDivisionError
        assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Profile(3), TypeError, r"networks\[0\]: got int, expected a torch.nn.Module or a gan_fast.Trainer"),
        (lambda: Profile(G="net"), TypeError, "G: got str, expected a torch.nn.Module"),
        (lambda: Profile(nn.Tanh(), nn.Tanh(), nn.Tanh()), ValueError, "Tanh: two networks of this name"),
        (lambda: Profile(warmup=0), ValueError, "warmup must be an integer of at least 1, got 0"),
        (lambda: Profile(trace="nowhere/t.json"), ValueError, "there is no folder .*nowhere"),
        (lambda: Profile(trace="t.json", detail=0), ValueError, "detail must be at least 1, got 0"),
        (lambda: Profile().report, RuntimeError, "when the with block of the Profile is over"),
    ],
)
def test_wrong_use(make: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_a_profile_is_used_once() -> None:
    with Profile() as profile:
        pass
    with pytest.raises(RuntimeError, match="make a new one"), profile:
        pass
