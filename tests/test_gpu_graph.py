"""The GPU suite's checks of the step as one graph: green on a device that keeps to the rules (stand_in_device.py), red
on one that does not, and no verdict without one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_in_device import StandIn
from torch import Tensor

from gan_fast.training import cuda, rehearsal, step_graph

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from gpu import device, graph_checks, steps  # the folder is no package of the library

pytestmark = pytest.mark.usefixtures("settings_may_change")

TINY = device.Settings("cpu", True, Path("nowhere"))
ARTICLE, DCGAN = steps.NETWORKS["article"], steps.NETWORKS["dcgan64"]
CHECKS = [graph_checks.check_same, graph_checks.check_long, graph_checks.check_uploads, graph_checks.check_refusal]


class Deaf(StandIn):
    """Replays do nothing, as where a recording was lost."""

    def capture(self, work: Any, generators: Any) -> Any:
        replay, found = super().capture(work, generators)
        replay()
        return (lambda: None), found


class Repeating(StandIn):
    """Random numbers that are the same in each replay, as where a generator is not registered."""

    def capture(self, work: Any, generators: Sequence[torch.Generator]) -> Any:
        replay, found = super().capture(work, generators)
        states = [generator.get_state() for generator in generators]

        def again() -> None:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            replay()

        return again, found


class Early(StandIn):
    """Batches that arrive before they were copied."""

    def send(self, staged: Tensor) -> tuple[Tensor, Callable[[], None]]:
        sent, wait = super().send(staged)
        return sent.zero_(), wait


class Lenient(StandIn):
    """Says nothing of waiting until it is too late: the rehearsal finds no reason to refuse."""

    def no_waiting(self) -> Any:
        return self.aside()


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a check on a stand-in; returns "green", or why not."""

    def run(check: Any, made: StandIn | None, network: steps.Network = ARTICLE, name: str = "fp32", *more: Any) -> str:
        if made is not None:
            monkeypatch.setattr(cuda, "device_for", lambda device: made)
        (row,) = check(network, name, TINY, "auto", *more)
        return row["check"] if row["check"] == "green" else f"{row['check']}: {row['reason']}"

    return run


@pytest.mark.parametrize("check", CHECKS)
def test_green_on_a_device_that_keeps_to_the_rules(check: Any, found: Callable[..., str]) -> None:
    assert found(check, StandIn()) == "green"


@pytest.mark.parametrize(
    ("network", "more"), [(ARTICLE, ("bf16",)), (ARTICLE, ("fp32", "simultaneous")), (DCGAN, ("bf16",))]
)
def test_other_programs_are_the_same_too(network: steps.Network, more: Any, found: Callable[..., str]) -> None:
    assert found(graph_checks.check_same, StandIn(), network, *more) == "green"


@pytest.mark.parametrize("check", CHECKS)
def test_no_verdict_without_a_device(check: Any, found: Callable[..., str]) -> None:
    assert found(check, None) == "unchecked: graphs need a CUDA device"


@pytest.mark.parametrize("made", [Deaf(), Repeating()], ids=lambda made: type(made).__name__)
def test_another_training_is_red(made: StandIn, found: Callable[..., str]) -> None:
    assert "losses differ by" in found(graph_checks.check_same, made)


def test_a_resumed_run_that_is_another_is_red(found: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    undone = rehearsal.undone

    def lossy(step: Any, latent: Any) -> Any:
        for moments in step.g_optimizer.state.values():
            moments["exp_avg"].mul_(1.001)  # as if a rehearsal left traces where there is something to resume
        return undone(step, latent)

    monkeypatch.setattr(step_graph, "undone", lossy)
    assert "a resumed run differs by" in found(graph_checks.check_same, StandIn())


def test_batches_that_come_too_early_are_red(found: Callable[..., str]) -> None:
    assert "the parameters differ by" in found(graph_checks.check_uploads, Early())


def test_a_graph_that_holds_no_step_is_red(found: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_graph.StepGraph, "_recording_for", lambda self, real, z: None)
    for check in (graph_checks.check_same, graph_checks.check_uploads, graph_checks.check_refusal):
        assert "replays" in found(check, StandIn())


def test_memory_that_grows_is_red(found: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    grown = iter([(1000, 4096), (1000, 8192)])
    monkeypatch.setattr(graph_checks, "held_memory", lambda settings: next(grown))
    assert "memory was (1000, 4096) after 4 steps and is (1000, 8192) after 8" in found(
        graph_checks.check_long, StandIn()
    )


def test_a_step_that_waits_is_red(found: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def waited(settings: device.Settings) -> Iterator[None]:
        yield
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(graph_checks, "no_waiting", waited)
    assert "red: a step waits for the device" in found(graph_checks.check_long, StandIn())


def test_a_network_whose_waiting_shows_too_late_is_an_error(found: Callable[..., str]) -> None:
    with pytest.raises(RuntimeError, match="could not be recorded"):
        found(graph_checks.check_refusal, Lenient())


def test_a_step_by_a_graph_is_measured_like_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "device_for", lambda device: StandIn())
    program = steps.Program("Trainer auto graph", "fp32", trainer=True, backend="auto", cuda_graph=True)
    (row,) = steps.measure(ARTICLE, program, 2, TINY)
    assert row["check"] == "green" and row["seconds"] > 0 and "launches" not in row
