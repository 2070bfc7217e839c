"""Random calls of the compiled kernels (fuzz_kernels.py), as they are installed and built with sanitizers.

What the builds with ASan and UBSan see is told in sanitized.py, which also runs them in pieces; another build sees two
threads that meet at the same bytes.
"""

from __future__ import annotations

import ast
import platform
import sys
from collections import Counter
from pathlib import Path

import pytest
from native import kernels
from sanitized import FLAGS, FUZZ, TSAN_FLAGS, build, environment, preloaded, run, wide

OVERRUN = """
import sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from fuzz_call import Memory
from fuzz_kernels import load

x, y = Memory(np.ones(1000), np.float32, 0), Memory(np.ones(1001), np.float32, 0)
load(sys.argv[1]).bias_act(0, 1001, 1, 1, x.address, 0, y.address, 1, 0.0, 1)
"""

#: Two threads write one tensor: the calls do not hold Python's lock.
RACE = """
import sys
import threading
sys.path.insert(0, sys.argv[2])
import numpy as np
from fuzz_call import Memory
from fuzz_kernels import load

x, y = Memory(np.ones(10**6), np.float32, 0), Memory(np.ones(10**6), np.float32, 0)
function = load(sys.argv[1]).bias_act
threads = [threading.Thread(target=function, args=(0, 10**6, 1, 1, x.address, 0, y.address, 3, 0.0, 1)) for _ in "ab"]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_random_calls() -> None:
    """In pieces of one row of calls."""
    path = str(kernels().__file__)

    def piece(first: int, cases: int) -> Counter[str]:
        done = run(str(FUZZ), path, "--first", str(first), "--cases", str(cases))
        assert done.returncode == 0, done.stderr
        return Counter(ast.literal_eval(done.stdout.partition(": ")[2]))

    begin, middle, rest = piece(0, 90), piece(90, 15), piece(105, 195)
    assert [found.total() for found in (begin, middle, rest)] == [90, 15, 195]
    assert begin + middle == piece(0, 105)


@pytest.mark.slow
@pytest.mark.parametrize("vector_bytes", [32, 64])
@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="preloads GCC's libasan")
def test_random_calls_under_sanitizers(vector_bytes: int, tmp_path: Path) -> None:
    sanitized = environment()
    if sanitized is None:
        pytest.skip("g++ with its sanitizers is not installed")
    module = build(tmp_path, FLAGS, wide(vector_bytes))
    done = run("-c", OVERRUN, str(module), str(FUZZ.parent), **sanitized)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr, "the sanitizer sees nothing"
    done = run(str(FUZZ), str(module), "--seed", "1", "--cases", "5000", **sanitized)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="preloads GCC's libtsan")
def test_random_calls_have_no_races(tmp_path: Path) -> None:
    """With plain threads in OpenMP's place (gomp_threads.cpp), which ThreadSanitizer can follow."""
    library = preloaded("libtsan.so")
    if library is None:
        pytest.skip("g++ with its sanitizers is not installed")
    module = build(tmp_path, TSAN_FLAGS, {"= openmp_flags(cxx), ": '= ["-DGAN_FAST_GOMP"], '})
    followed = {"LD_PRELOAD": library, "TSAN_OPTIONS": "halt_on_error=1:exitcode=66"}
    done = run("-c", RACE, str(module), str(FUZZ.parent), **followed)
    assert done.returncode == 66 and "data race" in done.stderr, "the sanitizer sees nothing"
    done = run(str(FUZZ), str(module), "--seed", "2", "--cases", "2000", **followed)
    assert done.returncode == 0, done.stderr[-5000:]
