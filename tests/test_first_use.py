"""The check at a kernel's first use, on the backend "cuda" (test_triton_first_use.py has Triton's): Python functions
stand in for its kernels, CPU tensors for the device's."""

from __future__ import annotations

import logging
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gan_fast import backends, machine
from gan_fast.ops import OPERATORS, first_use
from gan_fast.ops.conv import cuda as conv_module
from gan_fast.ops.conv import reference

FORM = ([2, 2], [1, 1], [1, 1], 1, [3, 3], "leaky_relu", 0.2)


@pytest.fixture(autouse=True)
def binary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings_may_change: None) -> Iterator[Path]:
    """The CPU counts as a device, whose verdicts go to an empty folder; the file is that of the compiled module."""
    monkeypatch.setattr(first_use, "DEVICES", ["cpu"])
    monkeypatch.setenv("GAN_FAST_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "_cuda.so"
    path.write_bytes(b"one build")
    monkeypatch.setattr(backends, "cuda_extension", lambda: types.SimpleNamespace(__file__=str(path)))
    first_use.forget()
    with pytest.MonkeyPatch.context() as switches:  # undone before settings_may_change ends
        switches.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield path
    first_use.forget()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images in each run of the kernel."""
    ran: list[int] = []
    stand_in(monkeypatch, lambda out: out, ran)
    return ran


def stand_in(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor], ran: list[int]) -> None:
    def kernel(*arguments: Any) -> Tensor:
        ran.append(len(arguments[0]))
        return change(reference.conv(*arguments))

    monkeypatch.setattr(conv_module, "conv", kernel)


def call(batch: int = 5, dtype: torch.dtype = torch.float32, channels: int = 8, slope: float = 0.2) -> Tensor:
    x, w = torch.ones(batch, channels, 5, 5, dtype=dtype), torch.ones(2, channels, 3, 3, dtype=dtype)
    form = (*FORM[:-1], slope)
    return OPERATORS["conv"].implementations["cuda"](x, w, None, *form, None, "none", 0.01)


def test_what_is_new_is_checked_once(batches: list[int], binary: Path) -> None:
    call()
    assert batches == [2, 5], "the sample, then the call"
    call()
    call(7)
    assert batches == [2, 5, 5, 7], "another batch runs the same binary"
    for other in ({"dtype": torch.float16}, {"channels": 9}, {"slope": 0.3}):
        batches.clear()
        call(**other)
        assert batches == [2, 5], other


def test_verdicts_outlive_the_process_but_not_the_build(
    batches: list[int], binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call()
    first_use.forget()
    batches.clear()
    call(6)
    assert batches == [6]
    binary.write_bytes(b"another build")
    first_use.forget()
    call(6)
    assert batches == [6, 2, 6]
    monkeypatch.setattr(machine, "device", lambda which: {"device": "another", "driver": "13000"})
    first_use.forget()
    call(6)
    assert batches == [6, 2, 6, 2, 6]


@pytest.mark.parametrize("wrong", [1e-3, float("nan"), float("inf")])
def test_a_broken_kernel_is_disabled_with_one_warning(
    wrong: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def change(out: Tensor) -> Tensor:
        out.view(-1)[-1] += wrong * 20
        return out

    ran: list[int] = []
    stand_in(monkeypatch, change, ran)
    with caplog.at_level(logging.WARNING):
        results = [call(), call(), call(6)]
    assert ran == [2, 2], "two batches, one variant each, no call"
    right = reference.conv(torch.ones(5, 8, 5, 5), torch.ones(2, 8, 3, 3), None, *FORM)
    assert all(torch.equal(result[:5], right) for result in results)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and "the CUDA kernel of conv gives wrong numbers" in messages[0]
    assert first_use.disabled() == ["conv"]


def test_what_a_kernel_cannot_do_is_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(*_: Any) -> Tensor:
        raise RuntimeError("output channels=5: expected 1 to 4")

    monkeypatch.setattr(conv_module, "conv", kernel)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="expected 1 to 4"):
            call()
    assert first_use.disabled() == []


def test_what_a_verdict_holds_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda which: f"GPU of {which}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda which: (9, 0))
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC version: 13.3.0\n"
    for driver in ("580.95.05", "unknown"):
        monkeypatch.setattr(machine, "_DRIVER", tmp_path / driver)
        if driver != "unknown":
            (tmp_path / driver).write_text(text)
        found = machine.device(torch.device("cuda", 1))
        assert (found["device"], found["capability"], found["driver"]) == ("GPU of cuda:1", "9.0", driver)
        assert found["torch"] == torch.__version__ and {"cudnn", "triton"} <= found.keys()


def test_only_devices_are_checked(batches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "DEVICES", ["cuda"])
    call()
    assert batches == [5]
