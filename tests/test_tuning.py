"""gan_fast.tuning and gan_fast.choice_table: what is recorded, measured, kept and followed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from native import kernels

from gan_fast import backends, choice_table, explain, functional, nn, tuning
from gan_fast.choice_table import Choice
from gan_fast.cli import main
from gan_fast.ops.registry import Operator


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file for this machine's cells that does not exist yet; what was read is forgotten before and after."""
    kernels()
    path = tmp_path / "cells.json"
    choice_table.forget()
    monkeypatch.setenv("GAN_FAST_TABLE", str(path))
    yield path
    monkeypatch.setenv("GAN_FAST_TABLE", "shipped")
    choice_table.forget()


def one_step() -> Callable[[], object]:
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)

    def step() -> object:
        return torch.autograd.grad(functional.conv2d(x, weight, activation="tanh").sum(), [x, weight])

    return step


def cells(step: Callable[[], object], cpu: float, torch_time: float) -> list[tuning.Cell]:
    return [tuning.Cell(call, {"cpu": cpu, "torch": torch_time}) for call in tuning.record(step)]


def served(step: Callable[[], object]) -> list[str]:
    """Operators of ours that ran, with the backends that served them."""
    ran = []

    def recorder(operator: Operator, _: list[Any], choice: Choice) -> None:
        ran.append(f"{operator.name}:{choice.backend}")

    with tuning.recording(recorder):
        step()
    return sorted(ran)


def test_record_finds_every_pass_once(table: Path) -> None:
    step = one_step()

    def twice() -> None:
        step()
        step()

    calls = tuning.record(twice)
    assert sorted(call.op for call in calls) == ["conv", "conv_transpose", "conv_weight_grad"]
    assert served(step) == [], "the rules give so small a call to PyTorch: recording must have left nothing behind"
    for call in calls:
        arguments = call.make()
        assert [type(a) for a in arguments] == [
            torch.Tensor if isinstance(v, tuning._TensorLike) else type(v) for v in call.arguments
        ]


def test_cells_hold_for_one_dtype(table: Path) -> None:
    step = one_step()

    def half() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return step()

    calls = tuning.record(half)
    assert {call.facts["dtype"] for call in calls} == {"bfloat16"} and len(calls) == 3
    for call in calls:
        assert {a.dtype for a in call.make() if isinstance(a, torch.Tensor)} == {torch.bfloat16}
        assert call.text.endswith("bfloat16")
    tuning.save([tuning.Cell(call, {"cpu": 1.0, "torch": 2.0}) for call in calls])
    assert served(step) == [], "float32 has not been measured"
    assert served(half) == ["conv:cpu", "conv_transpose:cpu", "conv_weight_grad:cpu"]
    assert len(tuning.measure(calls[:1], rounds=1)) == 1


def test_record_leaves_out_what_no_kernel_serves(table: Path) -> None:
    x = torch.randn(1, 2, 4, 4, 4)

    def step() -> None:
        functional.conv3d(x, torch.randn(2, 2, 3, 3, 3))
        functional.conv2d(x[0].double(), torch.randn(2, 4, 3, 3).double())

    assert tuning.record(step) == []


def test_what_was_measured_outweighs_the_rules(table: Path) -> None:
    step = one_step()
    shipped = backends.table_hash()
    tuning.save(cells(step, cpu=1.0, torch_time=2.0))
    assert served(step) == ["conv:cpu", "conv_transpose:cpu", "conv_weight_grad:cpu"]
    fast = backends.table_hash()
    tuning.save(cells(step, cpu=2.0, torch_time=1.0))
    assert served(step) == []
    assert len({shipped, fast, backends.table_hash()}) == 3


def test_undecided_cells_leave_it_to_the_rules(table: Path) -> None:
    step = one_step()
    found = cells(step, cpu=1.0, torch_time=1.02)
    assert [cell.use for cell in found] == [None] * 3
    tuning.save(found)
    assert served(step) == []


def test_a_pass_may_go_to_pytorch_alone(table: Path) -> None:
    step = one_step()
    expected = step()
    kinds = {"conv": 1.0, "conv_transpose": 3.0, "conv_weight_grad": 1.0}
    tuning.save([tuning.Cell(call, {"cpu": kinds[call.op], "torch": 2.0}) for call in tuning.record(step)])
    assert served(step) == ["conv:cpu", "conv_transpose:torch", "conv_weight_grad:cpu"]
    for got, wanted in zip(step(), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_the_fastest_of_three_is_used(table: Path) -> None:
    step = one_step()
    times = {
        "conv": {"cpu": 1.0, "gemm": 0.5, "torch": 2.0},
        "conv_transpose": {"cpu": 3.0, "gemm": 2.5, "torch": 2.0},
        "conv_weight_grad": {"cpu": 1.0, "gemm": 1.5, "torch": 2.0},
    }
    found = [tuning.Cell(call, times[call.op]) for call in tuning.record(step)]
    assert {cell.call.op: (cell.best, cell.gain) for cell in found} == {
        "conv": ("gemm", 4.0),
        "conv_transpose": ("gemm", 0.8),
        "conv_weight_grad": ("cpu", 2.0),
    }
    tuning.save(found)
    assert served(step) == ["conv:gemm", "conv_transpose:torch", "conv_weight_grad:cpu"]
    calls = [cell.call for cell in found]
    assert [set(cell.seconds) for cell in tuning.measure(calls, rounds=1)] == [{"cpu", "gemm", "torch"}] * 3


def test_saving_again_keeps_other_cells(table: Path) -> None:
    first, second = one_step(), lambda: functional.bias_act(torch.randn(4, 8), torch.randn(8), activation="tanh")
    tuning.save(cells(first, 1.0, 2.0))
    tuning.save(cells(second, 1.0, 2.0))
    assert sorted(cell["op"] for cell in json.loads(table.read_text())["cells"]) == [
        "bias_act", "conv", "conv_transpose", "conv_weight_grad",
    ]  # fmt: skip


def test_cells_of_another_machine_are_not_followed(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    step = one_step()
    tuning.save(cells(step, 1.0, 2.0))
    content = json.loads(table.read_text())
    content["machine"]["threads"] += 1
    table.write_text(json.dumps(content))
    choice_table.forget()
    assert served(step) == []
    there = content["machine"]["threads"]
    assert f"measured for threads {there}, here is threads {there - 1}: not used" in caplog.text
    tuning.save(cells(lambda: functional.bias_act(torch.randn(4, 8), torch.randn(8)), 1.0, 2.0))
    assert [cell["op"] for cell in json.loads(table.read_text())["cells"]] == ["bias_act"]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 2, "machine": {}, "cells": [3]}'])
def test_a_broken_file_is_named_and_not_followed(table: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    table.write_text(text)
    choice_table.forget()
    assert backends.choose("conv", rank=2, groups=4).backend == "torch"
    assert f"{table} is no table of gan-fast tune" in caplog.text
    tuning.save(cells(one_step(), 1.0, 2.0))  # and the next tuning replaces it
    assert served(one_step())


def test_a_missing_file_named_by_the_user_is_reported(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    backends.choose("conv", rank=2, groups=4)
    assert f"GAN_FAST_TABLE: {table} cannot be read" in caplog.text


def test_always_is_undone_after_an_error() -> None:
    with pytest.raises(KeyError), choice_table.always(Choice("cpu", "test")):
        raise KeyError
    assert backends.choose("conv", rank=2, groups=4).backend == "torch" or not backends.extension()


def test_explain_quotes_the_measurement(table: Path) -> None:
    layer = nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 9, 9)
    tuning.save(cells(lambda: layer(x), 1e-3, 2e-3))
    assert "measured here by gan-fast tune: the kernel 1 ms, PyTorch 2 ms" in str(explain(layer, (2, 3, 9, 9)))


def test_command_line(
    table: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_networks.py").write_text("from tiny_gan import convolutional as pair\n")
    monkeypatch.syspath_prepend(tmp_path)
    command = ["tune", "--model", "own_networks:pair", "--batch-size", "2", "--rounds", "1"]
    assert main([*command, "--dry-run", "--precision", "bf16"]) == 0
    assert "bfloat16" in capsys.readouterr().out
    assert main([*command, "--dry-run"]) == 0
    assert "different calls in a step" in capsys.readouterr().out and not table.exists()
    assert main(command) == 0
    found = json.loads(table.read_text())
    assert {cell["op"] for cell in found["cells"]} >= {"conv", "conv_transpose", "conv_weight_grad", "bce_with_logits"}
    assert all(cell["seconds"]["cpu"] > 0 and cell["seconds"]["torch"] > 0 for cell in found["cells"])
    assert main(["tune", "--reset"]) == 0 and not table.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "tiny_gan:nothing"], "module 'tiny_gan' has no 'nothing'"),
        (["--model", "math:gcd"], "math:gcd"),
        (["--precision", "fp64"], "precision='fp64' is unknown"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
    ],
)
def test_command_line_errors(options: list[str], message: str, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *options]) == 2
    assert message in capsys.readouterr().err
