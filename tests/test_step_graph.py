"""The step as one graph, on a CPU that records and replays as a device does (stand_in_device.py)."""

from __future__ import annotations

import copy
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import recorded
from native import kernels
from stand_in_device import StandIn
from tiny_gan import LATENT, SHAPE, assert_same_state, images, networks, state_of, trainer
from torch import Tensor, nn

from gan_fast import choice_table, use_backend
from gan_fast.choice_table import Choice
from gan_fast.training import NonFiniteLossError, Trainer, cuda, step_graph


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(cuda, "device_for", lambda device: made)
    return made


def state(subject: Trainer) -> dict[str, Any]:
    """Without what the two modes differ in by intent."""
    found = state_of(subject)
    for name in ("g_optimizer", "d_optimizer"):
        for group in found[name]["param_groups"]:
            del group["capturable"]
    return found


def pair(kind: str = "plain", **settings: Any) -> tuple[Trainer, Trainer]:
    """The same trainer twice: operation by operation, and as a graph."""
    return trainer(kind, **settings), trainer(kind, cuda_graph=True, **settings)


def train(subject: Trainer, steps: int, first: int = 0, given: bool = False) -> list[list[float]]:
    """Steps with batches of their own; the numbers that they told, read only at the end."""
    told = []
    for number in range(first, first + steps):
        z = torch.randn(4, LATENT, generator=torch.Generator().manual_seed(number)) if given else None
        told.append(subject.train_step(images(4, seed=number), z))
    return [[float(v) for v in (m.d_loss, m.g_loss, m.d_real, m.d_fake)] for m in told]


# ---------------------------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("plain", {}),
        ("plain", {"update": "simultaneous"}),
        ("with_statistics", {}),
        ("convolutional", {}),
        ("plain", {"precision": "bf16"}),
        ("convolutional", {"precision": "bf16"}),
        ("plain", {"loss": "minimax"}),
    ],
    ids=str,
)
def test_replays_give_the_bits_of_single_operations(kind: str, settings: dict[str, Any], device: StandIn) -> None:
    one_by_one, graph = pair(kind, **settings)
    torch.manual_seed(5)  # dropout
    expected = train(one_by_one, 20)
    torch.manual_seed(5)
    assert train(graph, 20) == expected
    assert_same_state(state(one_by_one), state(graph))
    assert device.recordings == 1 and device.replays == graph._graph.replays == 20, (
        "every step is a replay, the first one too"
    )
    for network in ("generator", "discriminator"):
        ours, theirs = getattr(graph, network), getattr(one_by_one, network)
        for mine, right in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(mine.grad, right.grad)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_our_own_operators_are_recorded_too(precision: str, device: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels()
    one_by_one, graph = pair("convolutional", precision=precision)
    with choice_table.always(Choice("cpu", "for this test")), recorded(monkeypatch) as ran:
        told = train(graph, 5)
    assert {"conv", "conv_transpose"} <= {op for op, backend in ran if backend == "cpu"}
    with choice_table.always(Choice("cpu", "for this test")):
        assert told == train(one_by_one, 5)
    assert_same_state(state(one_by_one), state(graph))
    assert (device.recordings, device.replays) == (1, 5)


def test_latents_that_are_given_and_latents_of_a_function(device: StandIn) -> None:
    one_by_one, graph = pair()
    for given in (True, False, True):  # two recordings, whose results do not get mixed up
        assert train(graph, 3, given=given) == train(one_by_one, 3, given=given)
    assert device.recordings == 2

    def uniform(n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, LATENT, generator=generator) * float(torch.rand(1, generator=generator))

    one_by_one, graph = pair(latent=uniform)
    assert train(graph, 5) == train(one_by_one, 5)
    assert_same_state(state(one_by_one), state(graph))
    assert device.replays == 9 + 5, "the function waits as it likes: it runs outside"


def test_autocast_around_a_step_leaves_no_stale_copies_of_parameters(device: StandIn) -> None:
    one_by_one, graph = pair("with_statistics", precision="bf16")
    told = []
    for subject, kept in ((one_by_one, False), (graph, True)):
        torch.manual_seed(5)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=kept):
            told.append(train(subject, 6))
    assert told[0] == told[1]
    assert_same_state(state(one_by_one), state(graph))


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_resumed_run_gives_the_bits_of_an_undisturbed_one(stop: int, device: StandIn, tmp_path: Path) -> None:
    whole, part = (trainer("with_statistics", cuda_graph=True) for _ in range(2))
    torch.manual_seed(5)
    expected = train(whole, 12)
    torch.manual_seed(5)
    told = train(part, stop)
    part.save(tmp_path / "here")
    torch.manual_seed(6)
    resumed = Trainer.load(tmp_path / "here", *networks("with_statistics", seed=9), device="cpu")
    assert resumed.settings.cuda_graph
    told += train(resumed, 12 - stop, first=stop)
    assert told == expected
    assert_same_state(state(whole), state(resumed))
    assert device.recordings == (3 if stop else 2)


def test_sampling_and_saving_between_replays_change_nothing(device: StandIn, tmp_path: Path) -> None:
    calm, busy = (trainer("with_statistics", cuda_graph=True) for _ in range(2))
    torch.manual_seed(5)
    train(calm, 6)
    torch.manual_seed(5)
    for number in range(6):
        train(busy, 1, first=number)
        busy.sample(3)
        busy.generator.eval()  # left so by its owner
        busy.save(tmp_path / str(number))
    assert_same_state(state(calm), state(busy))
    assert device.recordings == 2


def test_fit_with_a_short_last_batch(device: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    one_by_one, graph = pair("with_statistics", log_every=3)
    for subject in (one_by_one, graph):
        torch.manual_seed(5)
        with caplog.at_level(logging.INFO, logger="gan_fast"):
            subject.fit(images(22), epochs=3, data_options={"drop_last": False})
    assert_same_state(state(one_by_one), state(graph))
    assert device.replays == 15 and graph.step == 18
    said = [record.message for record in caplog.records if "batch_size" in record.message]
    assert len(said) == 1 and "batch_size=4, such as this one of 2," in said[0]


def test_gradients_are_those_of_the_last_step_whoever_made_it(device: StandIn) -> None:
    subjects = pair()
    steps = [(4, False), (2, False), (4, False), (4, True), (4, False), (4, False)]
    for number, (count, given) in enumerate(steps):
        found = []
        for subject in subjects:
            z = images(count).flatten(1)[:, :LATENT] if given else None
            subject.train_step(images(count, seed=number), z)
            networks = (subject.generator, subject.discriminator)
            found.append([p.grad.clone() for network in networks for p in network.parameters() if p.grad is not None])
        assert_same_state(*found, where=f"gradients of step {number}")
    assert device.recordings == 2


# --------------------------------------------------------------------------------------------- fp16 and its scaling


class Overflowing:
    """A loss for the discriminator that overflows fp16's gradients when it is told to, by a tensor."""

    def __init__(self) -> None:
        self.factor = torch.ones(())

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return (fake_logits.mean() - real_logits.mean()) * self.factor

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        return -fake_logits.mean()


def test_loss_scales_live_in_the_graph(device: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    # The CPU has fp16 only for this test: the Trainer gives it to CUDA alone.
    monkeypatch.setattr(sys.modules["gan_fast.precision"], "_CUDA_ONLY", ())
    losses = Overflowing(), Overflowing()
    one_by_one, graph = (
        trainer(precision="fp16", loss=loss, cuda_graph=on) for loss, on in zip(losses, (False, True), strict=True)
    )
    for subject, loss in zip((one_by_one, graph), losses, strict=True):
        train(subject, 3)
        before = copy.deepcopy(subject.discriminator.state_dict())
        scale = subject._step.d_scaler.get_scale()
        loss.factor.fill_(float("inf"))
        train(subject, 1, first=3)
        assert subject._step.d_scaler.get_scale() == scale / 2, "halved after an overflow"
        assert_same_state(dict(before), dict(subject.discriminator.state_dict()))  # and that update was left out
        loss.factor.fill_(1.0)
        train(subject, 2, first=4)
    assert_same_state(state(one_by_one), state(graph))
    assert device.recordings == 1 and device.replays == 6


def test_losses_that_are_not_finite_end_the_training(device: StandIn) -> None:
    loss = Overflowing()
    subject = trainer(loss=loss, cuda_graph=True)
    subject.fit(images(22), steps=3)
    loss.factor.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="d_loss is nan at step 4"):
        subject.fit(images(22), steps=3)
    assert device.recordings == 1


# --------------------------------------------------------------------------------- what cannot be recorded, and says so


class Reads(nn.Module):
    """Waits for a value in its forward pass, or in a hook of its backward pass."""

    def __init__(self, backward: bool) -> None:
        super().__init__()
        self.backward = backward
        self.seen = 0.0

    def look(self, value: Tensor) -> None:
        self.seen += float(value.detach().abs().sum())

    def forward(self, x: Tensor) -> Tensor:
        if not self.backward:
            self.look(x)
        elif x.requires_grad:
            x.register_hook(self.look)
        return x


@pytest.mark.parametrize("backward", [False, True])
def test_networks_that_read_values_run_operation_by_operation(
    backward: bool, device: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    def make(cuda_graph: bool) -> Trainer:
        generator, discriminator = networks("with_statistics")
        wrapped = nn.Sequential(Reads(backward), discriminator)
        return Trainer(generator, wrapped, batch_size=4, outdir=None, device="cpu", cuda_graph=cuda_graph)

    one_by_one, graph = make(False), make(True)
    torch.manual_seed(5)
    expected = train(one_by_one, 4)
    torch.manual_seed(5)
    assert train(graph, 4) == expected, "the rehearsal left no trace"
    assert_same_state(state(one_by_one), state(graph))
    said = [record.getMessage() for record in caplog.records if "operation by operation" in record.message]
    assert len(said) == 1 and device.recordings == 0
    assert "test_step_graph.py" in said[0] and "self.seen += float(value" in said[0]


class Replaces(nn.Module):
    """Keeps a running mean by a new tensor each time."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().flatten(1).mean(0)
        return x - self.mean.view(1, *x.shape[1:])


def test_a_module_that_replaces_its_buffers_is_not_recorded(device: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    def make(cuda_graph: bool) -> Trainer:
        generator, discriminator = networks()
        wrapped = nn.Sequential(Replaces(), discriminator)
        return Trainer(generator, wrapped, batch_size=4, outdir=None, device="cpu", cuda_graph=cuda_graph)

    one_by_one, graph = make(False), make(True)
    assert train(graph, 4) == train(one_by_one, 4)
    assert device.replays == 0 and caplog.text.count("replaces its parameters or buffers") == 1


class Late(nn.Module):
    """Draws from a generator of its own, which nobody registers."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=self.generator)


def test_a_recording_that_breaks_off_is_an_error_and_costs_nothing(device: StandIn) -> None:
    generator, discriminator = networks()
    subject = Trainer(
        generator, nn.Sequential(Late(), discriminator), batch_size=4, outdir=None, device="cpu", cuda_graph=True
    )
    before = copy.deepcopy((dict(generator.state_dict()), dict(discriminator.state_dict())))
    with pytest.raises(RuntimeError, match=r"could not be recorded .*not registered.* cuda_graph=False"):
        subject.train_step(images(4))
    assert_same_state(before, (dict(generator.state_dict()), dict(discriminator.state_dict())))
    assert subject.step == 0 and not subject.halfway


def test_an_error_of_the_networks_is_the_caller_s(device: StandIn) -> None:
    subject = trainer(cuda_graph=True)
    subject.discriminator[1].weight = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        subject.train_step(images(4))
    assert not subject.halfway, "the rehearsal that met it is undone"


# ------------------------------------------------------------------------------------------------- recorded again


def mode(subject: Trainer) -> None:
    subject.discriminator[2].eval()


def rate(subject: Trainer) -> None:
    subject._step.d_optimizer.param_groups[0]["lr"] = 0.5


def moved(subject: Trainer) -> None:
    weight = next(subject.generator.parameters())
    weight.data = weight.data.clone() * 0.5


def frozen(subject: Trainer) -> None:
    next(subject.generator.parameters()).requires_grad_(False)


def loaded(subject: Trainer) -> None:
    subject._step.load_state_dict(copy.deepcopy(subject._step.state_dict()))


@pytest.mark.parametrize("change", [mode, rate, moved, frozen, loaded])
def test_what_a_recording_stands_on_is_looked_at(change: Any, device: StandIn) -> None:
    one_by_one, graph = pair("with_statistics")
    for subject in (one_by_one, graph):
        torch.manual_seed(5)
        train(subject, 3)
        change(subject)
        train(subject, 3, first=3)
    assert_same_state(state(one_by_one), state(graph))
    assert (device.recordings, device.replays) == (2, 6)


def test_another_backend_is_recorded_anew(device: StandIn) -> None:
    subject = trainer("convolutional", cuda_graph=True)
    train(subject, 2)
    with use_backend("reference"):
        train(subject, 2)
    assert device.recordings == 2


class Counting(nn.Module):
    """Counts its calls, which only Python can."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def test_python_runs_while_a_step_is_rehearsed_and_recorded_only(device: StandIn) -> None:
    counter = Counting()
    generator, discriminator = networks()
    subject = Trainer(
        nn.Sequential(counter, generator), discriminator, latent_dim=LATENT, batch_size=4, outdir=None, device="cpu",
        cuda_graph=True,
    )  # fmt: skip
    counter.calls = 0
    train(subject, 10)
    assert counter.calls == step_graph._REHEARSALS + 1 and device.replays == 10


# --------------------------------------------------------------------------------------------- batches on their way


def test_batches_go_through_two_buffers_in_turn(device: StandIn) -> None:
    subject = trainer(cuda_graph=True)
    batches = [images(4, seed=number) for number in range(5)]
    sent = [subject.send(batch.clone()) for batch in batches]
    for there, batch in zip(sent, batches, strict=True):
        assert torch.equal(there, batch), "each in memory of its own"
    first, second = (buffer for what, buffer in device.copies[:2] if what == "send")
    assert first != second
    turn = [("wait", first), ("send", first), ("wait", second), ("send", second)]
    assert device.copies[2:] == [*turn, *turn[:2]], "only the copy of the last batch but one is waited for"
    assert subject.send(images(2)).shape == (2, *SHAPE)


def test_batches_of_a_data_set_are_sent(device: StandIn) -> None:
    class Pictures(torch.utils.data.Dataset[Tensor]):
        def __len__(self) -> int:
            return 22

        def __getitem__(self, index: int) -> Tensor:
            return images(22)[index]

    one_by_one, graph = pair()
    for subject in (one_by_one, graph):
        subject.fit(Pictures(), steps=8)
    assert_same_state(state(one_by_one), state(graph))
    assert [what for what, _ in device.copies].count("send") == 8


# ------------------------------------------------------------------------------------------------- without a device


def test_without_a_device_a_line_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one_by_one, subject = pair()
    assert caplog.text.count("cuda_graph=True needs a CUDA device; on 'cpu' the steps run operation by operation") == 1
    assert train(subject, 3) == train(one_by_one, 3)
    subject.save(tmp_path / "here")
    assert Trainer.load(tmp_path / "here", *networks()).settings.cuda_graph
    with pytest.raises(ValueError, match="cuda_graph: True in the checkpoint, False now"):
        Trainer.load(tmp_path / "here", *networks(), cuda_graph=False)
