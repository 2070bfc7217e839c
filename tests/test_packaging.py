"""The build: what it does without a compiler, and what the wheel holds. The full check is `make package-check`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD_VARIABLES = ("GAN_FAST_REQUIRE_EXT", "GAN_FAST_NO_EXT", "GAN_FAST_BUILD_DIR", "CXX", "CXXFLAGS")
FAILING_COMPILER = shutil.which("false")


def build(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """setup.py with its products in `folder` and none of the caller's build variables."""
    environment = {name: value for name, value in os.environ.items() if name not in BUILD_VARIABLES}
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder), *command],
        cwd=ROOT,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def build_ext(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return build(
        folder, "build_ext", "--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp"), **variables
    )


@pytest.mark.skipif(FAILING_COMPILER is None, reason="needs the program `false` to stand in for a broken compiler")
def test_a_compiler_that_fails_gives_one_warning_and_a_note(tmp_path: Path) -> None:
    done = build_ext(tmp_path, CXX=str(FAILING_COMPILER))
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: gan_fast:")]
    assert len(warnings) == 1 and "built without CPU kernels" in warnings[0]
    note = (tmp_path / "lib" / "gan_fast" / "_build_error.txt").read_text(encoding="utf-8").strip()
    assert warnings[0].endswith(note) and f"{FAILING_COMPILER} cannot compile" in note
    assert not list(tmp_path.rglob("_C*.so"))


@pytest.mark.skipif(FAILING_COMPILER is None, reason="needs the program `false` to stand in for a broken compiler")
def test_required_kernels_make_it_an_error(tmp_path: Path) -> None:
    done = build_ext(tmp_path, CXX=str(FAILING_COMPILER), GAN_FAST_REQUIRE_EXT="1")
    assert done.returncode != 0
    assert "GAN_FAST_REQUIRE_EXT=1" in done.stderr


def test_a_compiler_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = build_ext(tmp_path, CXX="no-such-compiler++")
    assert done.returncode == 0, done.stderr
    assert "no-such-compiler++" in (tmp_path / "lib" / "gan_fast" / "_build_error.txt").read_text(encoding="utf-8")


def test_the_first_compiler_error_is_what_the_user_sees(tmp_path: Path) -> None:
    """Of the output of many compiler calls, the warning carries the first error itself."""
    done = build_ext(tmp_path, CXXFLAGS="-DPYBIND11_MODULE=no_such_macro -fno-such-option-of-any-compiler")
    note = tmp_path / "lib" / "gan_fast" / "_build_error.txt"
    assert done.returncode == 0, done.stderr
    assert "no-such-option" in note.read_text(encoding="utf-8")


def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    done = build(
        tmp_path, "build", "--build-base", str(tmp_path / "build"), "bdist_wheel", "--dist-dir", str(tmp_path),
        GAN_FAST_NO_EXT="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    assert {name.split("/")[0] for name in names} == {"gan_fast", metadata.split("/")[0]}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "gan_fast").rglob("*.py")}
    data = {p.relative_to(ROOT).as_posix() for p in (ROOT / "gan_fast").rglob("*.json")} | {"gan_fast/py.typed"}
    assert (sources | data) <= names, sorted((sources | data) - names)
    assert "Requires-Dist: torch>=2.11" in text
    assert not any(line.startswith("Requires-Dist: triton") and "extra" not in line for line in text.splitlines())
