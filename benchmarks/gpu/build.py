"""What is built in place before anything is measured, beside the first measurements: no GPU stage waits for it.

The compiled CPU module serves nothing on a GPU; it is built so that the clone is whole. A CUDA module is built here
once there is one, and `cuda_module` below is the place for its checks.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import ROOT
from .journal import Row, row

STAGE = "build"
KEY = "build/cpu"


def reason_not_to(tiny: bool) -> str | None:
    """Why the CPU module is not built, or None."""
    if tiny:
        return "a dry run builds nothing"
    named = os.environ.get("CXX", "").split()[:1]
    if not any(shutil.which(name) for name in (*named, "g++", "c++", "clang++")):
        return "no C++ compiler here"
    missing = [name for name in ("pybind11", "setuptools") if importlib.util.find_spec(name) is None]
    return f"not installed here: {', '.join(missing)}" if missing else None


class Build:
    """The build of the CPU module, at low priority and on half of the cores, while other things run."""

    def __init__(self, tiny: bool, log: Path) -> None:
        self.reason = reason_not_to(tiny)
        self.log = log
        self.begun = time.time()
        self.process: subprocess.Popen[Any] | None = None
        if self.reason is None:
            jobs = str(max(1, (os.cpu_count() or 2) // 2))
            with log.open("wb") as output:
                self.process = subprocess.Popen(
                    [*(["nice", "-n", "19"] if shutil.which("nice") else []), sys.executable, "setup.py", "-q",
                     "build_ext", "--inplace"],
                    cwd=ROOT, env={**os.environ, "MAX_JOBS": jobs}, stdout=output, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip

    def result(self, wait: float) -> list[Row]:
        """What came of it, after at most `wait` seconds."""
        if self.process is None:
            return [row("CPU module", check="baseline", state="skipped", reason=self.reason)]
        try:
            code = self.process.wait(max(wait, 0.1))
        except subprocess.TimeoutExpired:
            self.process.kill()
            return [row("CPU module", check="baseline", state="failed", reason="not ready in time")]
        if code != 0 or not list((ROOT / "gan_fast").glob("_C*.so")):
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            return [row("CPU module", check="baseline", state="failed", reason=(lines or ["no message"])[-1][:300])]
        self.log.unlink(missing_ok=True)
        return [row("CPU module", check="baseline", built_by=time.time() - self.begun)]


def cuda_module() -> list[Row]:
    """The CUDA C++ module: compute-sanitizer on its kernels, then their checks. There is no such module yet."""
    sanitizer = shutil.which("compute-sanitizer")
    facts = {"nvcc": shutil.which("nvcc") is not None, "compute_sanitizer": sanitizer is not None}
    reason = (
        "there are no CUDA C++ kernels yet (csrc/cuda): nothing to build, to check or to run under compute-sanitizer"
    )
    return [row("CUDA module", check="unchecked", state="not built", reason=reason, **facts)]
