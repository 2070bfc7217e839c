"""Cells of a GPU: what they hold for, what is refused, what follows them, and how programs are timed there.

test_triton_tuning.py measures Triton's kernels, in its interpreter.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_fast import backends, choice_table, machine, tuning
from gan_fast.bench import on_device
from gan_fast.ops import OPERATORS, first_use
from gan_fast.ops._triton import Tile
from gan_fast.precision import float32_products

pytestmark = pytest.mark.usefixtures("settings_may_change")

HERE = {"device": "NVIDIA H100 80GB HBM3", "capability": "9.0", "driver": "580.95.05", "cudnn": "91002",
        "torch": "2.11.0+cu130", "triton": "3.6.0"}  # fmt: skip
FACTS = {"elements": 1000}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file for the cells of a GPU that is not there."""
    monkeypatch.setenv("GAN_FAST_CACHE", str(tmp_path))
    monkeypatch.delenv("GAN_FAST_TABLE", raising=False)
    monkeypatch.setattr(machine, "device", lambda which: HERE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    choice_table.forget()
    yield tmp_path / "tuned" / "nvidia-h100-80gb-hbm3.json"
    monkeypatch.undo()
    choice_table.forget()


def call(dtype: torch.dtype = torch.float32, **facts: Any) -> tuning.Call:
    asked = backends.question(device="cuda", dtype=dtype, **(facts or FACTS))
    return tuning.Call("bias_act", asked, (), "cuda", ("triton",))


def choice(dtype: torch.dtype = torch.float32, **facts: Any) -> choice_table.Choice:
    return backends.choose("bias_act", device="cuda", dtype=dtype, **(facts or FACTS))


def tile(dtype: torch.dtype = torch.float32) -> tuple[int, ...] | None:
    return choice_table.tile("bias_act", backends.question(device="cuda", dtype=dtype, **FACTS))


def test_a_gpu_s_cells_are_followed_and_only_they(table: Path) -> None:
    assert choice().backend == "torch" and "has not measured" in choice().reason
    before = backends.table_hash("cuda"), backends.table_hash("cpu")
    fastest = Tile(64, 64, 32, 4, 3)
    assert tuning.save([tuning.Cell(call(), {"triton": 1e-3, "torch": 2e-3}, fastest)]) == table
    assert choice() == ("triton", "measured here by gan-fast tune: triton 1 ms, PyTorch 2 ms")
    assert tile() == fastest
    assert choice(elements=1001).backend == choice(torch.bfloat16).backend == "torch"
    assert backends.choose("bias_act", device="cpu", **FACTS).backend != "triton", "the processor has its own table"
    assert backends.table_hash("cuda") != before[0] and backends.table_hash("cpu") == before[1]


def test_pytorch_stays_where_it_wins_and_the_tile_is_kept_for_who_asks_by_name(table: Path) -> None:
    fastest = Tile(128, 64, 32, 8, 4)
    tuning.save([tuning.Cell(call(), {"triton": 2e-3, "torch": 1e-3}, fastest)])
    assert choice().backend == "torch" and "PyTorch 1 ms" in choice().reason and tile() == fastest
    tuning.save([tuning.Cell(call(), {"triton": 1.01e-3, "torch": 1e-3}, fastest)])
    assert choice().backend == "torch" and "has not measured" in choice().reason and tile() == fastest
    tuning.save([tuning.Cell(call(), {"cuda": 0.5e-3, "torch": 1e-3})])
    assert choice().backend == "cuda" and tile() is None


def test_tf32_has_cells_of_its_own(table: Path) -> None:
    with float32_products("tf32", "cuda"):
        tuning.save([tuning.Cell(call(), {"triton": 1e-3, "torch": 2e-3})])
        assert choice().backend == "triton"
        assert choice(torch.bfloat16).backend == "torch"
    with float32_products("fp32", "cuda"):
        assert choice().backend == "torch"
        tuning.save([tuning.Cell(call(), {"triton": 2e-3, "torch": 1e-3})])
    with float32_products("tf32", "cuda"):
        assert choice().backend == "triton"
    assert [cell["facts"].get("dtype") for cell in json.loads(table.read_text())["cells"]] == ["tf32", None]


@pytest.mark.parametrize("field", [*HERE, "gan_fast"])
def test_what_was_measured_elsewhere_is_refused_with_one_warning(
    field: str, table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuning.save([tuning.Cell(call(), {"triton": 1e-3, "torch": 2e-3}, Tile(64, 64, 32, 4, 3))])
    content = json.loads(table.read_text())
    expected = content["machine"][field]
    content["machine"][field] = "another"
    table.write_text(json.dumps(content))
    choice_table.forget()
    with caplog.at_level(logging.WARNING):
        assert {choice().backend, choice(torch.bfloat16).backend} == {"torch"} and tile() is None
    (message,) = (record.getMessage() for record in caplog.records)
    assert f"{table} was measured for {field} another, here is {field} {expected}: not used" in message
    tuning.save([tuning.Cell(call(torch.bfloat16), {"triton": 1e-3, "torch": 2e-3})])
    assert len(json.loads(table.read_text())["cells"]) == 1, "figures of another machine do not stay beside ours"


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format": 2, "machine": {}, "cells": [3]}', "CELL", '{"format": 2, "machine": {}, "cells": ['],
)
def test_a_damaged_file_is_refused_with_one_warning(text: str, table: Path, caplog: pytest.LogCaptureFixture) -> None:
    cell = {"op": "bias_act", "facts": FACTS, "use": "triton"}
    table.parent.mkdir()
    text = json.dumps({"format": 2, "machine": {}, "cells": [cell]}) if text == "CELL" else text
    table.write_text(text)
    choice_table.forget()
    with caplog.at_level(logging.WARNING):
        assert choice().backend == choice(elements=5).backend == "torch" and tile() is None
    (message,) = (record.getMessage() for record in caplog.records)
    assert f"{table} is no table of gan-fast tune" in message


def test_one_file_may_be_named_for_either(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GAN_FAST_TABLE", str(tmp_path / "mine.json"))
    assert tuning.save([tuning.Cell(call(), {"triton": 1e-3, "torch": 2e-3})]) == tmp_path / "mine.json"
    caplog.clear()
    assert choice().backend == "triton"
    assert backends.choose("bias_act", device="cpu", **FACTS).backend != "triton" and not caplog.records
    monkeypatch.setenv("GAN_FAST_TABLE", "shipped")
    choice_table.forget()
    assert choice().backend == "torch"


def test_cells_of_two_kinds_do_not_share_a_file(table: Path) -> None:
    both = [
        tuning.Cell(call(), {"triton": 1e-3, "torch": 2e-3}),
        tuning.Cell(tuning.Call("bias_act", FACTS, ()), {"cpu": 1e-3, "torch": 2e-3}),
    ]
    with pytest.raises(ValueError, match="cells: got those of cpu and cuda, expected one type of device"):
        tuning.save(both)
    assert not table.exists()


# --------------------------------------------------------------------------------------------------------- the race


class Watch:
    """A clock for programs that tell their seconds."""

    def __init__(self, seconds: Callable[[Any], float]) -> None:
        self.seconds = seconds
        self.asked: list[int] = []
        self.turns: list[Any] = []

    def __call__(self, run: Callable[[], Any], repeats: int) -> Callable[[], float]:
        self.asked.append(repeats)

        def turn() -> float:
            self.turns.append(run)
            return self.seconds(run)

        return turn


def test_programs_take_turns_and_the_median_counts() -> None:
    ran: list[str] = []
    programs = {name: (lambda name=name: ran.append(name)) for name in ("a", "b")}
    times = {programs["a"]: iter([9, 9, 9, 5.0, 1.0, 2.0]), programs["b"]: iter([4e-4, 9, 9, 7.0, 7.0, 1.0])}
    watch = Watch(lambda run: next(times[run]))
    assert on_device.measure(programs, 3, watch) == {"a": 2.0, "b": 7.0}
    assert watch.asked == [1, 1, 3, 3], "turns of at least a millisecond of the fastest"
    assert watch.turns[6:] == [programs["a"], programs["b"]] * 3
    assert ran == ["a", "a", "b", "b"], "compilers come before the clock"


def test_broken_and_unable_kernels_do_not_take_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    operator = OPERATORS["act_grad"]
    g, y = torch.randn(2, 3), torch.rand(2, 3)
    kernels: dict[str, Callable[..., Any]] = {
        "healthy": lambda *arguments: operator.implementations["reference"](*arguments),
        "broken": lambda *arguments: operator.implementations["reference"](*arguments) + 1,
    }

    def unable(*_: Any) -> Any:
        raise RuntimeError("output channels=5: expected 1 to 4")

    kernels["unable"] = unable
    find = first_use.module_function
    monkeypatch.setattr(first_use, "DEVICES", ["cpu"])
    monkeypatch.setenv("GAN_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(first_use, "_WORDS", dict.fromkeys(kernels, "new"))
    monkeypatch.setattr(first_use, "module_function", lambda op, name: kernels.get(name) or find(op, name))
    monkeypatch.setattr(backends, "choose", lambda op, *, backend, **_: choice_table.Choice(backend, "by name"))
    implementations = {**operator.implementations, **{name: first_use.checked("act_grad", name) for name in kernels}}
    monkeypatch.setattr(operator, "implementations", implementations)
    first_use.forget()
    operator._choices.clear()
    arguments = (g, y, "tanh", 0.01)
    specs = tuple(
        tuning._TensorLike(tuple(a.shape), a.stride(), a.dtype) if isinstance(a, torch.Tensor) else a for a in arguments
    )
    watch = Watch(lambda run: 1e-3)
    for names, expected in ((("healthy", "broken", "unable"), "healthy"), (("broken", "unable"), None)):
        cell = tuning._race(tuning.Call("act_grad", {}, specs, "cpu", names), 3, watch)
        assert (None if cell is None else cell.best) == expected
    assert first_use.disabled() == ["act_grad"]
    first_use.forget()
    operator._choices.clear()
