"""What is built in place before anything is measured, beside the first measurements: no GPU stage waits for it, but the
checks of the CUDA module.

The compiled CPU module serves nothing on a GPU; it is built so that the clone is whole. The CUDA module is built for
the present device alone.
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
#: Modules, with what their files' names begin with and the variables of their builds.
MODULES: dict[str, tuple[str, dict[str, str]]] = {
    "CPU module": ("_C", {}),
    "CUDA module": ("_cuda", {"GAN_FAST_CUDA": "only", "GAN_FAST_CUDA_ARCH": "native"}),
}


def running(folder: Path, module: str) -> Path:
    """A file that is in the results' folder while a module is being built."""
    return folder / f"build{MODULES[module][0]}.running"


def key_of(module: str) -> str:
    """Key of a module's build in the journal."""
    return f"build/{module.split()[0].lower()}"


def reason_not_to(module: str, tiny: bool) -> str | None:
    """Why a module is not built, or None."""
    if tiny:
        return "a dry run builds nothing"
    if module == "CUDA module" and shutil.which("nvcc") is None:
        return "no nvcc here"
    named = os.environ.get("CXX", "").split()[:1]
    if not any(shutil.which(name) for name in (*named, "g++", "c++", "clang++")):
        return "no C++ compiler here"
    missing = [name for name in ("pybind11", "setuptools") if importlib.util.find_spec(name) is None]
    return f"not installed here: {', '.join(missing)}" if missing else None


class Build:
    """The build of a module, at low priority and on half of the cores, while other things run."""

    def __init__(self, module: str, tiny: bool, folder: Path) -> None:
        self.module, self.key = module, key_of(module)
        self.stem, variables = MODULES[module]
        self.reason = reason_not_to(module, tiny)
        self.log = folder / f"build{self.stem}.log"
        self.begun = time.time()
        self.process: subprocess.Popen[Any] | None = None
        if self.reason is None:
            jobs = str(max(1, (os.cpu_count() or 2) // 2))
            nice = "nice -n 19 " if shutil.which("nice") else ""
            # A folder of objects for each: two builds at a time must not meet in one.
            objects = {"GAN_FAST_BUILD_DIR": str(ROOT / "build" / f"gpu-suite{self.stem}")}
            marker = running(folder, module)
            marker.touch()
            command = f'{nice}"$0" setup.py -q build_ext --inplace; code=$?; rm -f "$1"; exit $code'
            with self.log.open("wb") as output:
                self.process = subprocess.Popen(
                    ["sh", "-c", command, sys.executable, str(marker)],
                    cwd=ROOT, env={**os.environ, **objects, **variables, "MAX_JOBS": jobs}, stdout=output,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip

    def result(self, wait: float) -> list[Row]:
        """What came of it, after at most `wait` seconds."""
        if self.process is None:
            return [row(self.module, check="baseline", state="skipped", reason=self.reason)]
        try:
            code = self.process.wait(max(wait, 0.1))
        except subprocess.TimeoutExpired:
            self.process.kill()
            return [row(self.module, check="baseline", state="failed", reason="not ready in time")]
        if code != 0 or not list((ROOT / "gan_fast").glob(f"{self.stem}*.so")):
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            return [row(self.module, check="baseline", state="failed", reason=(lines or ["no message"])[-1][:300])]
        self.log.unlink(missing_ok=True)
        return [row(self.module, check="baseline", built_by=time.time() - self.begun)]
