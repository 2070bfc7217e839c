"""From torch.profiler's events to times by layer and by operator, and to a CUDA device's kernels and gaps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch.autograd import DeviceType

from .networks import Tracker
from .patches import LAYER, PHASE
from .phases import DATA

__all__ = ["AUTOGRAD", "PYTHON", "WAITING", "Detail", "Kernels", "analyse"]

#: Host time inside layers and phases in which no operator ran, and autograd's own.
PYTHON = "(Python)"
AUTOGRAD = "(autograd)"
#: Host time in the data phase in which no operator ran.
WAITING = "(waiting for data)"

_NODE = "autograd::engine::evaluate_function: "
Key = tuple[str, bool, str]


@dataclass
class Kernels:
    """What a CUDA device did.

    Attributes:
        seconds: kernel's name -> its time.
        busy, span: time in which any kernel ran; from the first one's start to the last one's end.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    busy: float = 0.0
    span: float = 0.0


@dataclass
class Detail:
    """Times in the steps under torch.profiler, all of them together.

    Attributes:
        seconds, calls: (layer, whether in its backward pass, operator) -> time and number.
        kernels: a device's, empty on the CPU.
        wall: seconds of the steps themselves.
        steps: how many.
    """

    seconds: dict[Key, float]
    calls: dict[Key, int]
    kernels: Kernels
    wall: float
    steps: int


def analyse(events: Iterable[Any], tracker: Tracker, counted: set[str], steps: list[float]) -> Detail:
    """Distribute the time of the events over layers and operators.

    Args:
        events: ``profile.events()`` of torch.profiler.
        tracker: it knew the layers meanwhile.
        counted: operators that appear as they are; others are taken apart until such a one is met.
        steps: seconds of each step.
    """
    seconds: dict[Key, float] = defaultdict(float)
    calls: dict[Key, int] = defaultdict(int)
    every = list(events)
    on_device = [event for event in every if event.device_type == DeviceType.CUDA and not event.is_user_annotation]

    def time_of(event: Any, own: bool) -> float:
        if on_device:
            micro = event.self_device_time_total if own else event.device_time_total
        else:
            micro = event.self_cpu_time_total if own else event.cpu_time_total
        return max(0.0, float(micro)) / 1e6

    def visit(event: Any, layer: str, backward: bool, python: str = PYTHON) -> None:
        name, operator = event.name, event.name
        if name.startswith(_NODE):
            layer, backward = tracker.of_number(event.sequence_nr), True
        if name in counted:
            seconds[layer, backward, name] += time_of(event, own=False)
            calls[layer, backward, name] += 1
            return
        if name.startswith(LAYER):
            layer, operator = name.removeprefix(LAYER), python
        elif name.startswith(PHASE) or event.is_user_annotation:
            python = WAITING if name == PHASE + DATA else python
            operator = python
        elif "::" not in name or name.startswith(("autograd::", "torch::autograd")):
            operator = AUTOGRAD
        seconds[layer, backward, operator] += time_of(event, own=True)
        calls[layer, backward, operator] += 1
        for child in event.cpu_children:
            visit(child, layer, backward, python)

    hosts = [event for event in every if event.device_type == DeviceType.CPU and event.cpu_parent is None]
    for event in sorted(hosts, key=lambda event: event.time_range.start):
        visit(event, "", False)
    return Detail(dict(seconds), dict(calls), _kernels(on_device), sum(steps), len(steps))


def _kernels(events: list[Any]) -> Kernels:
    found = Kernels()
    reached = 0.0
    for event in sorted(events, key=lambda event: event.time_range.start):
        begin, end = float(event.time_range.start), float(event.time_range.end)
        found.seconds[event.name] = found.seconds.get(event.name, 0.0) + (end - begin) / 1e6
        found.busy += max(0.0, end - max(begin, reached)) / 1e6
        reached = max(reached, end)
    if events:
        found.span = (reached - min(float(event.time_range.start) for event in events)) / 1e6
    return found
