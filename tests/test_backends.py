"""gan_fast.backends: what exists, what was asked for, what the table decides."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from native import kernels

import gan_fast
from gan_fast import backends, choice_table, functional
from gan_fast.ops import _cuda, _triton
from gan_fast.ops.conv.cuda import conv as conv_on_cuda
from gan_fast.sequential import Sequential


def small() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)


def large() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 32, 24, 24), torch.randn(32, 32, 3, 3)


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if gan_fast._C had not been built."""
    absent = backends._Extension()
    absent.tried, absent.error = True, "ModuleNotFoundError: No module named 'gan_fast._C'"
    monkeypatch.setattr(backends, "_extension", absent)
    choice_table.forget()
    yield
    choice_table.forget()


@pytest.fixture
def no_cuda_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if gan_fast._cuda had not been built."""
    absent = backends._Extension("gan_fast._cuda")
    absent.tried, absent.error = True, "ModuleNotFoundError: No module named 'gan_fast._cuda'"
    monkeypatch.setattr(backends, "_cuda_extension", absent)


def test_available_says_what_and_why(no_extension: None, no_cuda_module: None) -> None:
    found = backends.available()
    assert list(found) == ["reference", "cpu", "gemm", "triton", "cuda"]
    assert found["reference"][0] and not found["cpu"][0]
    assert "No module named 'gan_fast._C'" in found["cpu"][1]
    usable, reason = found["cuda"]
    assert not usable and reason.startswith("not built (ModuleNotFoundError: No module named 'gan_fast._cuda')")
    assert reason.endswith("in a clone: GAN_FAST_CUDA=1 python setup.py build_ext --inplace")


def test_import_failure_is_remembered_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def fail(name: str) -> None:
        attempts.append(name)
        raise ImportError("undefined symbol")

    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.setattr(backends, "_extension", backends._Extension())
    assert backends.extension() is None and backends.extension() is None
    assert backends.extension_error() == "ImportError: undefined symbol"
    assert attempts == ["gan_fast._C"]


@pytest.mark.parametrize("info", [{"version": "0.0.9"}, {"compiler": "g++"}], ids=["older", "without a version"])
def test_a_binary_of_another_version_is_left_aside(
    info: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, no_cuda_module: None
) -> None:
    stale = types.SimpleNamespace(__file__="somewhere/_C.so", build_info=lambda: info)
    monkeypatch.setattr(importlib, "import_module", lambda name: stale)
    monkeypatch.setattr(backends, "_extension", backends._Extension())
    x, weight = large()
    torch.testing.assert_close(functional.conv2d(x, weight), torch.nn.functional.conv2d(x, weight))
    assert backends.extension() is None and not backends.available()["cpu"][0]
    made = info.get("version", "an unknown version")
    assert "somewhere/_C.so was built for" in backends.extension_error() and made in backends.extension_error()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert (
        len(warnings) == 1
        and f"this is {gan_fast.__version__}" in warnings[0]
        and "install gan_fast again" in warnings[0]
    )


def test_the_binary_here_is_of_this_version() -> None:
    assert kernels().build_info()["version"] == gan_fast.__version__


def test_without_the_binary_everything_runs(no_extension: None) -> None:
    x, weight = large()
    torch.testing.assert_close(functional.conv2d(x, weight), torch.nn.functional.conv2d(x, weight))
    assert backends.choose("conv", mflop=1e6, groups=1).reason.startswith("the compiled module gan_fast._C is not")
    with pytest.raises(RuntimeError, match=r"backend 'cpu' was asked for by name.*is not available"):
        functional.conv2d(x, weight, backend="cpu")
    gan_fast.empty_cache()


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAN_FAST_BACKEND", raising=False)
    assert backends.requested() == "auto"
    monkeypatch.setenv("GAN_FAST_BACKEND", "cpu")
    assert backends.requested() == "auto"  # read once, at the import
    backends.read_environment()
    assert backends.requested() == "cpu"
    with backends.use_backend("reference"):
        assert backends.requested() == "reference"
        with backends.use_backend("auto"):
            assert backends.requested() == "auto"
            assert backends.requested("cuda") == "cuda"
        assert backends.requested() == "reference"
    assert backends.requested() == "cpu"


def test_use_backend_is_undone_by_an_error_and_stays_in_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAN_FAST_BACKEND", raising=False)
    seen: list[str] = []
    with pytest.raises(KeyError), backends.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.requested()))
        thread.start()
        thread.join()
        raise KeyError
    assert seen == ["auto"] and backends.requested() == "auto"


@pytest.mark.parametrize(
    ("name", "near"), [("cuad", "cuda"), ("CPU", None), ("refrence", "reference"), ("torch", None)]
)
def test_unknown_names(name: str, near: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    match = f"unknown backend '{name}', expected one of auto, reference, cpu, gemm, triton, cuda"
    match += f"; did you mean '{near}'" if near else ""
    x, weight = small()
    with pytest.raises(ValueError, match="use_backend: " + match), backends.use_backend(name):
        pass
    with pytest.raises(ValueError, match="backend: " + match):
        functional.conv2d(x, weight, backend=name)
    monkeypatch.setenv("GAN_FAST_BACKEND", name)
    backends.read_environment()
    with pytest.raises(ValueError, match="GAN_FAST_BACKEND: " + match):
        functional.conv2d(x, weight)


def test_what_is_not_built_raises(no_cuda_module: None) -> None:
    x, weight = small()
    with pytest.raises(
        RuntimeError, match=r"'cuda' was asked for by name and cannot run conv: not built.*GAN_FAST_CUDA=1"
    ):
        functional.conv2d(x, weight, backend="cuda")
    with pytest.raises(RuntimeError, match="the CUDA kernels are not available: ModuleNotFoundError"):
        _cuda.call("conv", torch.device("cuda", 0))


class Module:
    """In place of gan_fast._cuda: keeps the arguments of its calls, and refuses with a text."""

    def __init__(self, refusal: str = "") -> None:
        self.refusal = refusal
        self.calls: list[tuple[Any, ...]] = []

    def build_info(self) -> dict[str, str]:
        return {"version": gan_fast.__version__}

    def conv(self, *arguments: Any) -> None:
        self.calls.append(arguments)
        if self.refusal:
            raise ValueError(self.refusal)


def as_if_built(monkeypatch: pytest.MonkeyPatch, module: Module) -> None:
    """``module`` is loaded as gan_fast._cuda, and PyTorch sees a device whose current stream is 77."""
    monkeypatch.setattr(backends, "_cuda_extension", backends._Extension("gan_fast._cuda"))
    monkeypatch.setattr(importlib, "import_module", lambda name: module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=77))


def test_cuda_is_by_name_only_and_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_built(monkeypatch, Module())
    monkeypatch.setattr(choice_table, "_on_gpu", lambda: choice_table._NOTHING)
    assert "unproven on a device" in backends.available()["cuda"][1]
    assert backends.refusal("conv", "cuda", device="cuda", dtype=torch.float16, rank=2) is None
    assert "conv_weight_grad only" in str(backends.refusal("bias_act", "cuda", device="cuda", dtype=torch.float32))
    assert "CUDA kernels need tensors on cuda" in str(
        backends.refusal("conv", "cuda", device="cpu", dtype=torch.float32)
    )
    assert "float16, got torch.float64" in str(backends.refusal("conv", "cuda", device="cuda", dtype=torch.float64))
    assert "3-D" in str(backends.refusal("conv", "cuda", device="cuda", dtype=torch.float32, rank=3))
    assert backends.choose("conv", device="cuda", rank=2).backend == "torch"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backends.refusal("conv", "cuda", device="cuda", dtype=torch.float32) == "no CUDA device"


def test_cuda_gets_pointers_device_and_stream_and_its_refusals_name_the_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = Module()
    as_if_built(monkeypatch, module)
    x, w, b = torch.randn(2, 8, 5, 6), torch.randn(1, 8, 3, 3), torch.randn(1)
    dense = [t.contiguous(memory_format=torch.channels_last) for t in (x, w)]
    form = ([1, 1], [1, 0], [1, 1], 1, [5, 4])
    out = conv_on_cuda(*dense, b, *form, "tanh", 0.2, None, "none", 0.01)
    assert out.shape == (2, 1, 5, 4)
    (found,) = module.calls
    assert found[0] == _cuda.product(torch.float32) and found[1] == (2, 8, 5, 6, 1, 5, 4, 3, 3, 1, 1, 1, 0, 1, 1, 1)
    assert found[2:5] == (dense[0].data_ptr(), dense[1].data_ptr(), b.data_ptr()) and found[6:] == (3, 0.2, 0, 77)
    for setting, code in (("tf32", 2), ("ieee", 3)):
        monkeypatch.setattr(_triton, "precision", lambda dtype, setting=setting: setting)
        assert _cuda.product(torch.float32) == code and _cuda.storage(torch.float32) == 3
    module.refusal = "output channels=5: expected 1 to 4"
    with pytest.raises(RuntimeError, match="backend 'cuda' cannot run this conv: output channels=5"):
        conv_on_cuda(*dense, None, *form, "none", 0.2, None, "none", 0.01)


def test_triton_is_by_name_only_and_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = small()
    monkeypatch.setattr(choice_table, "_on_gpu", lambda: choice_table._NOTHING)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "_triton_is_installed", lambda: False)
    with pytest.raises(RuntimeError, match=r"'triton' was asked for by name.*not installed.*gan-fast.triton"):
        functional.conv2d(x, weight, backend="triton")
    monkeypatch.setattr(backends, "_triton_is_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"'triton' was asked for by name.*no CUDA device"):
        functional.conv2d(x, weight, backend="triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "unproven on a device" in backends.available()["triton"][1]
    assert "need tensors on cuda" in str(backends.refusal("conv", "triton", device="cpu", dtype=torch.float32))
    assert backends.refusal("conv", "triton", device="cuda", dtype=torch.bfloat16, rank=1) is None
    assert "bfloat16" in str(backends.refusal("conv", "triton", device="cuda", dtype=torch.float64))
    assert "3-D" in str(backends.refusal("conv", "triton", device="cuda", dtype=torch.float32, rank=3))
    choice = backends.choose("conv", device="cuda", rank=2)
    assert choice.backend == "torch" and "gan-fast tune has not measured" in choice.reason
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.refusal("conv", "triton", device="cpu", dtype=torch.float32) is None


def test_explicit_is_strict() -> None:
    kernels()
    x, weight = small()
    cases = [
        (lambda: functional.conv2d(x.half(), weight.half()), "take float32 and bfloat16"),
        (lambda: functional.conv2d(x.to(torch.complex64), weight.to(torch.complex64)), "dtypes"),
        (lambda: functional.conv3d(torch.randn(1, 2, 3, 3, 3), torch.randn(2, 2, 1, 1, 1)), "1-D and 2-D"),
        (lambda: functional.conv2d(x.to("meta"), weight.to("meta")), "tensors on the CPU"),
        (lambda: functional.binary_cross_entropy_with_logits(x.half(), 1.0), "take float32"),
    ]
    for call, reason in cases:
        with backends.use_backend("cpu"), pytest.raises(RuntimeError, match=f"'cpu' was asked for by name.*{reason}"):
            call()
        call()  # and "auto" leaves it to PyTorch


def test_table() -> None:
    kernels()
    rules = choice_table.rules()
    assert rules and all(set(rule) - {"levels"} == {"ops", "when", "use", "why"} for rule in rules)
    assert len(backends.table_hash()) == 16
    facts = {"mflop": 500.0, "groups": 1, "elements": 1e6}
    assert backends.choose("conv", rank=2, **facts).backend == "cpu"
    small_call = next(rule["why"] for rule in rules if "mflop" in rule["when"])
    assert backends.choose("conv", rank=2, **{**facts, "mflop": 0.01}) == choice_table.Choice("torch", small_call)
    assert backends.choose("conv", rank=2, **{**facts, "groups": 4}).backend == "torch"
    assert "float64" in backends.choose("conv", rank=2, dtype=torch.float64, **facts).reason
    assert backends.choose("conv", rank=2, dtype=torch.bfloat16, **facts).backend == "cpu"
    assert "3-D" in backends.choose("conv", rank=3, **facts).reason
    assert "CUDA" in backends.choose("conv", rank=2, device="cuda", **facts).reason
    assert "no rule" in choice_table.decide("frobnicate", facts, "avx2").reason


def test_environment_in_a_fresh_process() -> None:
    code = "import torch; from gan_fast import functional as F; F.conv2d(torch.ones(1,1,3,3), torch.ones(1,1,3,3))"
    environment = {**os.environ, "GAN_FAST_BACKEND": "cuda"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "backend 'cuda' was asked for by name" in result.stderr


def test_explain() -> None:
    kernels()
    nn = gan_fast.nn
    module = Sequential(
        nn.ConvTranspose2d(64, 32, 4, 2, 1, activation="relu"),
        nn.Conv2d(32, 4, 3, groups=2),
        torch.nn.Conv2d(4, 4, 3),
        nn.KerasConv2d(4, 4, 3, 2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    )
    rows = {row.name: row for row in gan_fast.explain(module, (128, 64, 8, 8))}
    assert [rows[str(i)].forward.backend for i in range(5)] == ["cpu", "torch", "torch", "torch", "torch"]
    assert "grouped" in rows["1"].forward.reason and "accelerate" in rows["2"].forward.reason
    assert "MFLOP" in rows["3"].forward.reason and "reflect" in rows["4"].forward.reason
    assert gan_fast.explain(module)[0].forward.backend == "cpu"  # if the input is large enough
    with gan_fast.use_backend("reference"):
        assert gan_fast.explain(module)[0].weight_grad.backend == "reference"
    with gan_fast.use_backend("cuda"):
        assert gan_fast.explain(module)[0].forward.backend == "none"
    norms = Sequential(nn.BatchNorm2d(64), torch.nn.BatchNorm2d(64), nn.BatchNorm2d(64, dtype=torch.float64))
    images = Sequential(nn.ConvTranspose2d(64, 64, 4, 2, 1), *norms[:2])  # from here on in channels_last
    rows = {row.name: row for row in gan_fast.explain(images, (128, 64, 4, 4))}
    assert [rows[key].input_grad.backend for key in "12"] == ["cpu", "torch"]
    assert "outside channels_last" in gan_fast.explain(norms[:1], (128, 64, 8, 8))[0].forward.reason
    narrow = Sequential(nn.Conv2d(512, 16, 3, padding=1), nn.BatchNorm2d(16))
    assert "elements" in gan_fast.explain(narrow, (12, 512, 16, 16))[1].forward.reason
    assert "float64" in gan_fast.explain(norms)[2].forward.reason
    with torch.autocast("cpu", torch.bfloat16):
        assert gan_fast.explain(norms[:1])[0].forward.backend == "cpu"
        assert gan_fast.explain(module)[0].forward.backend == "cpu"
    with torch.autocast("cpu", torch.float16):
        assert "float16" in gan_fast.explain(module)[0].forward.reason
        assert "float16" in gan_fast.explain(nn.Linear(8, 4))[0].forward.reason
    table = str(gan_fast.explain(module))
    assert table.splitlines()[0].startswith("layer") and len(table.splitlines()) == 6


def test_explain_refuses_what_it_cannot_explain() -> None:
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, got int"):
        gan_fast.explain(3)  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(TypeError, match="one module at a time"):
        gan_fast.explain(torch.nn.Identity(), torch.nn.Identity())  # type: ignore[arg-type]  # as above
    layer = gan_fast.nn.ConvTranspose2d(64, 8, 4, stride=2)
    with pytest.raises(ValueError, match=r"module takes 64 channels, got an input of shape \(8, 3, 14, 14\)"):
        gan_fast.explain(layer, (8, 3, 14, 14))
