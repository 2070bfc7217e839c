"""Random calls of the compiled kernels (fuzz_kernels.py), as they are installed and built with sanitizers.

The sanitized builds see every byte read or written outside a tensor or a request for scratch memory, and undefined
behaviour. One of them has 64-byte vectors without AVX-512's instructions, so that the widest level's bounds are seen on
any x86 machine.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native import kernels

ROOT = Path(__file__).resolve().parent.parent
FUZZ = Path(__file__).with_name("fuzz_kernels.py")
FLAGS = "-O1 -g1 -fsanitize=address,undefined -fno-omit-frame-pointer"
AVX2_LEVEL = 'LEVELS["avx2"] = (32,'

OVERRUN = """
import sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from fuzz_kernels import Memory, load

x, y = Memory(np.ones(1000), np.float32, 0), Memory(np.ones(1001), np.float32, 0)
load(sys.argv[1]).bias_act(0, 1001, 1, 1, x.address, 0, y.address, 1, 0.0, 1)
"""


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    single = {"OPENBLAS_NUM_THREADS": "1"}  # numpy's own threads are none of these tests' business
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **single, **variables},
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )


def test_random_calls() -> None:
    module = kernels()
    assert module.__file__ is not None
    done = run(str(FUZZ), module.__file__, "--cases", "300")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("vector_bytes", [32, 64])
@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="preloads GCC's libasan")
def test_random_calls_under_sanitizers(vector_bytes: int, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    libraries = [] if compiler is None else [runtime(compiler, name) for name in ("libasan.so", "libubsan.so")]
    if not all(os.path.isabs(path) for path in libraries) or not libraries:
        pytest.skip("g++ with its sanitizers is not installed")
    tree = tmp_path / "tree"
    for name in ("csrc", "gan_fast"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tree / name)
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert AVX2_LEVEL in text
    (tree / "setup.py").write_text(
        text.replace(AVX2_LEVEL, AVX2_LEVEL.replace("32", str(vector_bytes))), encoding="utf-8"
    )
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)],
        cwd=tree,
        env={
            **os.environ,
            "CXX": str(compiler),
            "CXXFLAGS": FLAGS,
            "GAN_FAST_REQUIRE_EXT": "1",
            "GAN_FAST_BUILD_DIR": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    (module,) = (tmp_path / "gan_fast").glob("_C*.so")
    sanitized = {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    done = run("-c", OVERRUN, str(module), str(FUZZ.parent), **sanitized)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr, "the sanitizer sees nothing"
    done = run(str(FUZZ), str(module), "--seed", "1", "--cases", "5000", **sanitized)
    assert done.returncode == 0, done.stderr[-5000:]


def runtime(compiler: str, name: str) -> str:
    """Where the compiler has this library; the bare name if it has none."""
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
    return found.stdout.strip()
