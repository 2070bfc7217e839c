"""``gan-fast doctor``: its report with and without the compiled module, and that its self-test can fail."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import pytest
import torch

from gan_fast import backends, functional
from gan_fast.cli import _selftest, doctor

MAPS = """\
7f0000000000-7f0000001000 r-xp 00000000 08:01 11 /env/torch/lib/libgomp-98b21ff3.so.1.0.0
7f0000001000-7f0000002000 rw-p 00000000 08:01 11 /env/torch/lib/libgomp-98b21ff3.so.1.0.0
7f0000002000-7f0000003000 r-xp 00000000 08:01 12 /usr/lib/my folder/libiomp5.so
7f0000003000-7f0000004000 r-xp 00000000 08:01 13 /usr/lib/libcompute.so.6
7f0000004000-7f0000005000 r-xp 00000000 08:01 14 /usr/lib/libomptarget.rtl.so
7f0000005000-7f0000006000 rw-p 00000000 00:00 0
7f0000006000-7f0000007000 rw-p 00000000 00:00 0 [heap]
"""


@pytest.fixture(scope="module")
def report() -> dict:
    return doctor.collect()


def test_every_self_test_passes(report: dict) -> None:
    failed = [
        f"{r['backend']} {r['level']} {r['case']}: {r['problem']}"
        for r in report["self_test"]["results"]
        if r["problem"]
    ]
    assert not failed, "\n".join(failed)
    assert report["self_test"]["failed"] == 0


def test_the_self_test_covers_every_backend_and_level(report: dict) -> None:
    tested = {(r["backend"], r["level"]) for r in report["self_test"]["results"]}
    assert tested == set(_selftest.targets())
    module = backends.extension()
    if module is not None:
        assert {level for backend, level in tested if backend == "cpu"} == set(module.isa_levels())
    assert report["self_test"]["passed"] == len(tested) * len(_selftest.cases())


def test_the_self_test_leaves_the_level_as_it_was(report: dict) -> None:
    module = backends.extension()
    assert report["cpu"]["level"] == (module.isa() if module is not None else None)


def test_a_wrong_kernel_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward pass that is off by one part in ten thousand is found and named."""
    right = functional.bias_act

    def off(x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return right(x * 1.0001 - x.detach() * 0.0001, *args, **kwargs)

    monkeypatch.setattr(functional, "bias_act", off)
    monkeypatch.setattr(_selftest, "targets", lambda: [("reference", "")])
    failed = [result for result in _selftest.run() if not result.ok]
    assert {result.case.split()[0] for result in failed} == {"bias_act"}
    assert all(result.ratio > _selftest.LARGEST_RATIO and "gradient 0" in result.problem for result in failed)


def test_nan_and_exceptions_fail_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*args: object, **kwargs: object) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(functional, "bias_act", lambda x, *a, **k: x * float("nan"))
    monkeypatch.setattr(functional, "binary_cross_entropy_with_logits", raising)
    monkeypatch.setattr(_selftest, "targets", lambda: [("reference", "")])
    report = {"self_test": doctor._self_test()}
    failed = {r["case"].split()[0]: r["problem"] for r in report["self_test"]["results"] if r["problem"]}
    assert set(failed) == {"bias_act", "binary_cross_entropy_with_logits"}
    assert "no such kernel" in failed["binary_cross_entropy_with_logits"]
    json.dumps(report, allow_nan=False)


def test_exit_status_tells_of_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    result = _selftest.Result("cpu", "avx2", "conv2d", 99.0, "output: error 1e-2, 99 times PyTorch's")
    monkeypatch.setattr(_selftest, "run", lambda: iter([result]))
    assert doctor.run(argparse.Namespace(json=False)) == 1
    printed = capsys.readouterr().out
    assert "FAILED 1 of 1" in printed and "99 times" in printed
    assert printed.rstrip().endswith("self-test: 0 passed, 1 failed")


def test_text_names_what_users_ask_for(report: dict) -> None:
    text = doctor.render(report)
    for wanted in (
        torch.__version__,
        report["cpu"]["model"],
        "ConvTranspose2d",
        "bce_with_logits",
        "backends",
        "OpenMP",
    ):
        assert wanted in text


def test_json_is_the_same_report(report: dict) -> None:
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_typical_layers_are_listed_with_their_backends(report: dict) -> None:
    served = {choice["where"]: choice for choice in report["choices"]}
    transposed = next(choice for where, choice in served.items() if "keras_mnist G." in where and "Transpose" in where)
    small = served["bce_with_logits, 128 elements"]
    if backends.requested() == "auto":
        assert small["forward"] == "torch"
        assert transposed["forward"] == ("cpu" if backends.available()["cpu"][0] else "torch")
    assert {"dcgan28", "dcgan64", "keras_mnist"} <= {where.split()[0] for where in served}
    assert all(choice["reason"] for choice in report["choices"])


def test_openmp_runtimes_are_listed_with_their_users(report: dict) -> None:
    found = doctor.openmp_runtimes(MAPS)
    assert found == ["/env/torch/lib/libgomp-98b21ff3.so.1.0.0", "/usr/lib/my folder/libiomp5.so"]
    torchs, other = found
    text = doctor.render({**report, "openmp": found, "openmp_of": {"torch": torchs, "gan_fast": torchs}})
    assert f"OpenMP        {torchs} (torch and gan_fast)" in text and f"{other} (other packages)" in text
    assert "OpenMP        none found" in doctor.render({**report, "openmp": []})


def test_a_second_openmp_runtime_is_a_warning_only_if_it_is_ours(report: dict) -> None:
    def warned(torchs: str | None, ours: str | None) -> bool:
        used = {"torch": torchs, "gan_fast": ours}
        return any("two pools of threads" in text for text in doctor._warnings({**report, "openmp_of": used}))

    assert warned("one", "other") and not warned("one", "one")
    assert not warned("one", None) and not warned(None, "one")
    assert not any("OpenMP" in text for text in doctor._warnings({**report, "openmp_of": {"torch": "one"}}))


def test_ours_and_torch_s_openmp_runtime_are_one() -> None:
    """Two pools would compete for the cores. In fresh interpreters: scikit-learn, which brings a runtime of its own,
    may come first, last or not at all."""
    for packages in ("torch", "torch, sklearn.cluster", "sklearn.cluster, torch"):
        program = (
            f"import json, {packages}; from gan_fast import backends; from gan_fast.cli import doctor; import pathlib; "
            "module = backends.extension(); path = pathlib.Path(torch.__file__).parent / 'lib' / 'libtorch_cpu.so'; "
            "paths = [str(path), *([module.__file__] if module else [])]; "
            "print(json.dumps([[doctor.openmp_of(path) for path in paths], doctor.openmp_runtimes()]))"
        )
        if "sklearn" in packages:
            pytest.importorskip("sklearn", reason="brings the second runtime")
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        used, loaded = json.loads(done.stdout)
        assert len(set(used)) == 1, f"import {packages}: torch and gan_fast use {used}"
        assert used[0] is None or used[0] in {os.path.realpath(path) for path in loaded}


def test_works_without_the_compiled_module() -> None:
    """In a fresh interpreter where importing gan_fast._C fails, as on a machine without a compiler."""
    code = (
        "import sys; sys.modules['gan_fast._C'] = None\n"
        "import argparse; from gan_fast.cli import doctor\n"
        "raise SystemExit(doctor.run(argparse.Namespace(json=False)))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GAN_FAST_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert "every operator runs on PyTorch" in done.stdout
    assert done.stdout.rstrip().endswith(f"self-test: {len(_selftest.cases())} passed, 0 failed")
