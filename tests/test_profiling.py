"""gan_fast.profiling: where a step's time goes, in loops of all kinds; nothing here depends on how long anything
takes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_gan
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import gan_fast
from gan_fast.profiling import Profile, Report, advice, memory, operators, patches, phases
from gan_fast.profiling.counting import counting
from gan_fast.profiling.networks import Networks, Tracker
from gan_fast.profiling.report import LayerRow, PhaseRow

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


class Ticks:
    """A clock that goes on by a power of two at each look, so that every sum tells what it is made of."""

    def __init__(self) -> None:
        self._times = itertools.accumulate(2.0**i for i in range(60))

    def now(self) -> float:
        return next(self._times)

    def seconds(self, begin: float, end: float) -> float:
        return end - begin


def test_time_is_the_innermost_phase_s_and_none_is_lost() -> None:
    timer = phases.PhaseTimer(Ticks())
    timer.enter("outer")  # opened before the step: no stamp is taken
    timer.start()
    timer.enter("inner", of_update=True)
    timer.leave()
    timer.stepped(["D"])
    timer.leave()
    timer.enter("later", of_update=True)
    timer.leave()
    segments = timer.stop()
    found = [(s.label, s.update, s.end - s.begin) for s in segments]
    assert found == [
        ("outer", "", 2),
        ("inner", "D", 4),
        ("outer", "", 8),
        ("outer", "", 16),
        (phases.GAPS, "", 32),
        ("later", "", 64),
        (phases.GAPS, "", 128),
    ]
    assert all(one.end == other.begin for one, other in itertools.pairwise(segments))
    timer.enter("between steps")
    assert timer.label == "between steps" and not timer.running


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
    assert names >= {"Sequential forward", "Sequential 2 forward", "data", "loss"} and report.counts["timed"] >= 1


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
    assert "Linear forward" in {row.phase for row in profile.report.phases}


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
    assert not any("would swap" in sentence for sentence in report.verdict)


@pytest.mark.parametrize("accelerated", [False, True])
def test_flops_are_those_of_torch_s_own_counter(accelerated: bool) -> None:
    """Of plain layers by torch's formulas; of ours by the formulas that this package adds to them."""
    networks = [nn.Conv2d(4, 6, 5, stride=2, padding=1, groups=2), nn.ConvTranspose2d(6, 3, 4, stride=2, padding=1)]
    x = torch.randn(2, 4, 13, 13, requires_grad=True)

    def step() -> None:
        networks[1](networks[0](x)).sum().backward()

    with FlopCounterMode(display=False) as expected:
        networks[0].requires_grad_(False)  # torch counts the weight gradient of groups as if there were none
        step()
    if accelerated:
        gan_fast.accelerate(*networks)
    with gan_fast.use_backend("reference"), counting(Tracker()) as counter:
        step()
    with gan_fast.use_backend("reference"), FlopCounterMode(display=False) as registered:
        step()
    wanted = expected.get_total_flops()
    assert wanted > 0 and sum(count.flops for count in counter.counts.values()) == wanted
    assert registered.get_total_flops() == wanted
    assert any(name.startswith("gan_fast::") for _, _, name in counter.counts) == accelerated


def test_bytes_are_those_of_the_tensors() -> None:
    x = torch.ones(8, 8)
    with counting(Tracker()) as counter:
        x.t()  # views move nothing
        torch.relu(x)
        x.new_ones(1).expand(64) + x.view(64)  # an expanded tensor is one number
        torch.empty(100)
    found = {name: count.bytes for (_, _, name), count in counter.counts.items()}
    assert found["aten::relu"] == 2 * 256 and found["aten::add"] == 4 + 2 * 256
    assert found["aten::t"] == found["aten::view"] == found["aten::expand"] == found["aten::empty"] == 0


def test_gradients_are_the_layer_s_that_they_flow_through() -> None:
    layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    tracker = Tracker()
    with counting(tracker) as counter:
        value = torch.ones(2, 3)
        for name, layer in layers.named_children():
            tracker.enter(name)
            value = layer(value)
            tracker.leave()
        value.sum().backward()
    backward = {(layer, name) for layer, is_backward, name in counter.counts if is_backward}
    assert {("2", "aten::mm"), ("1", "aten::tanh_backward"), ("0", "aten::mm")} <= backward
    assert not {("0", "aten::tanh_backward"), ("2", "aten::tanh_backward")} & backward


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


# -------------------------------------------------------------------------------------------- words, CUDA, errors


def a_report(**shares: float) -> Report:
    report = Report({}, {}, 1.0, 1.0)
    report.phases = [PhaseRow("", name.replace("_", " "), share, share) for name, share in shares.items()]
    return report


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"data": 0.62, "D_forward": 0.38}, "data-bound: 62% waiting for the loader"),
        ({"host_gaps": 0.4, "data": 0.3, "D_forward": 0.3}, "host-bound: 40%"),
        ({"logging": 0.5, "D_forward": 0.5}, "logging-bound: 50%"),
        ({"optimiser": 0.5, "D_forward": 0.5}, "optimiser-bound: 50%"),
        ({"data": 0.1, "D_forward": 0.8, "host_gaps": 0.1}, "compute-bound: 80% in the networks and losses, 10%"),
    ],
)
def test_the_verdict_names_what_binds(shares: dict[str, float], words: str) -> None:
    assert advice.sentences(a_report(**shares))[0].startswith(words)


def test_the_verdict_on_layers_and_gaps() -> None:
    report = a_report(D_forward=1.0)
    report.layers = [
        LayerRow("D.0", "Conv2d", 0.2, 0.1, 1, 1, 0.5, "cpu", "cpu", ""),
        LayerRow("D.1", "Conv2d", 0.05, 0.05, 1, 1, None, "cpu", "cpu", ""),
    ]
    report.gaps, report.outside = 0.3, 0.5
    said = "\n".join(advice.sentences(report))
    assert "the longest layer is D.0 (Conv2d): 75% of the operators' time, at 50% of the roof" in said
    assert "the device waits for the host 30% of the time" in said and "no operator ran in 50%" in said


def test_what_accelerate_would_bring() -> None:
    networks = Networks({"D": nn.Sequential(nn.Conv2d(64, 64, 5), nn.ReLU()), "E": nn.Sequential(nn.Conv3d(1, 1, 1))})
    networks.saw("D", (torch.empty(64, 64, 20, 20),))
    rows = [LayerRow("D.0", "Conv2d", 0.3, 0.3, 1, 1, None, "torch", "torch", ""),
            LayerRow("", "", 0.4, 0.0, 0, 0, None, "", "", "")]  # fmt: skip
    said = advice.prospects(networks, rows)
    served = 1 if gan_fast.backends.extension() is not None else 0
    assert f"accelerate(D) would swap 1 layers; kernels would serve {served} of them" in said[0]
    assert not served or "take 60% of the operators' time" in said[0]
    assert type(networks.modules["D"][0]) is nn.Conv2d, "the networks themselves stay as they are"  # type: ignore[index]  # a Sequential
    plain = Networks({"E": nn.PReLU()})
    assert advice.prospects(plain, []) == [
        "accelerate(E) would swap nothing: it has no layer that gan_fast has kernels for"
    ]


def event(name: str, begin: float, end: float, children: tuple[Any, ...] = (), **more: Any) -> SimpleNamespace:
    made = SimpleNamespace(name=name, time_range=SimpleNamespace(start=begin, end=end), cpu_children=children)
    made.device_type, made.is_user_annotation, made.sequence_nr, made.cpu_parent = DeviceType.CPU, False, -1, None
    made.cpu_time_total, made.device_time_total = end - begin, 0.0
    vars(made).update(more)
    for child in children:
        child.cpu_parent = made
    made.self_cpu_time_total = made.cpu_time_total - sum(child.cpu_time_total for child in children)
    made.self_device_time_total = made.device_time_total - sum(child.device_time_total for child in children)
    return made


def test_a_device_s_kernels_and_gaps() -> None:
    cuda = {"device_type": DeviceType.CUDA}
    launch = event("aten::mm", 0, 5, device_time_total=70.0)
    layer = event(f"{patches.LAYER}D.0", 0, 8, (launch,), device_time_total=70.0)
    events = [
        layer,
        event("gemm", 10, 50, **cuda),
        event("copy", 40, 60, **cuda),  # overlaps
        event("gemm", 80, 110, **cuda),
        event("phase", 0, 200, **{**cuda, "is_user_annotation": True}),
    ]
    detail = operators.analyse(events, Tracker(), {"aten::mm"}, [1e-3])
    assert detail.seconds["D.0", False, "aten::mm"] == pytest.approx(70e-6), "the device's time, not the launch's"
    assert detail.kernels.seconds == pytest.approx({"gemm": 70e-6, "copy": 20e-6})
    assert detail.kernels.busy == pytest.approx(80e-6) and detail.kernels.span == pytest.approx(100e-6)


def test_a_device_s_clock_takes_events(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("synchronize")

        def elapsed_time(self, other: Event) -> float:
            return 12.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = phases.clock("cuda")
    assert clock.seconds(clock.now(), clock.now()) == 0.0125
    assert calls == ["record", "record", "synchronize"]


def test_nvtx_ranges_where_there_is_cuda(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    open_ranges: list[str] = []
    seen: set[str] = set()

    def push(name: str) -> None:
        open_ranges.append(name)
        seen.add(name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", push)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", open_ranges.pop)
    timer, tracker = phases.PhaseTimer(Ticks()), Tracker()
    watching = patches.Patches(timer, Networks({"G": loop.generator}))
    watching.tracker, watching.ranges = tracker, True
    watching.install()
    loop.generator(torch.randn(1, *loop.latent))
    watching.remove()
    assert open_ranges == [] and {"phase: G forward", "layer: G", "layer: G.0"} <= seen


def test_peak_memory_is_told() -> None:
    found = memory.PeakMemory("cpu")()
    assert found["peak"] > 1 << 20 and "resident memory" in found["of"]


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
