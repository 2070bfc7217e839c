"""The parts of gan_fast.profiling, each by itself: the clock of phases, counting, a device's events, words."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_gan
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

import gan_fast
from gan_fast.choice_table import Choice
from gan_fast.profiling import Report, advice, assemble, memory, operators, patches, phases
from gan_fast.profiling.counting import Count, counting
from gan_fast.profiling.networks import Networks, Tracker
from gan_fast.profiling.report import LayerRow, PhaseRow


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


# ----------------------------------------------------------------------------------------------------- counting


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


def test_waiting_for_data_is_no_work_of_python_s() -> None:
    fetched = event("aten::stack", 2, 5)
    waiting = event(phases.DATA, 0, 9, (event("enumerate(DataLoader)", 1, 8, (fetched,), is_user_annotation=True),))
    waiting.name = patches.PHASE + phases.DATA
    detail = operators.analyse([waiting, event(patches.PHASE + "backward", 9, 12)], Tracker(), {"aten::stack"}, [1.0])
    assert detail.seconds == pytest.approx(
        {("", False, operators.WAITING): 6e-6, ("", False, "aten::stack"): 3e-6, ("", False, operators.PYTHON): 3e-6}
    )


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


def test_nvtx_ranges_where_there_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    open_ranges: list[str] = []
    seen: set[str] = set()

    def push(name: str) -> None:
        open_ranges.append(name)
        seen.add(name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", push)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", open_ranges.pop)
    generator = tiny_gan.networks("convolutional")[0]
    timer, tracker = phases.PhaseTimer(Ticks()), Tracker()
    watching = patches.Patches(timer, Networks({"G": generator}))
    watching.tracker, watching.ranges = tracker, True
    watching.install()
    generator(torch.randn(1, tiny_gan.LATENT, 1, 1))
    watching.remove()
    assert open_ranges == [] and {"phase: G forward", "layer: G", "layer: G.0"} <= seen


@pytest.mark.parametrize(
    ("served", "expected", "words"),
    [
        ({"cpu": "the kernel"}, Choice("cpu", "a rule"), "the kernel"),
        ({}, Choice("torch", "too small"), "too small"),
        ({}, Choice("cpu", "a rule"), "PyTorch, though the rules have a kernel for it"),
        ({}, None, ""),
    ],
)
def test_the_reason_of_a_layer_is_that_of_what_ran(served: dict[str, str], expected: Choice | None, words: str) -> None:
    counts = {
        ("D.0", False, "aten::convolution"): Count(1, 1, 1, served),
        ("D.0", True, "x"): Count(1, 1, 1, {"b": "no"}),
    }
    found = assemble._reason(counts, expected)
    assert found.startswith(words) and bool(found) == bool(words)


def test_peak_memory_is_told() -> None:
    found = memory.PeakMemory("cpu")()
    assert found["peak"] > 1 << 20 and "resident memory" in found["of"]
