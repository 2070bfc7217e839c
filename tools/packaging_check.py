"""Does what we ship work where nothing is? sdist -> wheel -> clean environment -> import -> `gan-fast doctor`.

    make package-check        # or: python tools/packaging_check.py

Builds the sdist and, from the unpacked sdist alone, the wheel, both in pip's ordinary isolated build (no torch there);
looks into both; installs the wheel into an empty environment and runs it there. Then the same with a compiler that
fails: still a working package, with one line that says why; and GAN_FAST_REQUIRE_EXT=1, which makes it an error.

The empty environment sees this one's torch and other dependencies through a path file: installing torch once more would
take most of the time and test only torch. The package itself can come from nowhere but the wheel, which is checked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD_VARIABLES = ("GAN_FAST_REQUIRE_EXT", "GAN_FAST_NO_EXT", "GAN_FAST_BUILD_DIR", "CXX", "CXXFLAGS", "PYTHONPATH")
FAILING_COMPILER = shutil.which("false") or "false"


class PackagingError(Exception):
    """A check failed; the text says what was found and what was expected."""


def require(condition: bool, message: str) -> None:
    """Raise PackagingError with the message unless the condition holds."""
    if not condition:
        raise PackagingError(message)


def call(*command: object, cwd: Path, fails: bool = False, **variables: str) -> str:
    """Run a command without our build variables except those given; its output; PackagingError on the wrong outcome."""
    environment = {name: value for name, value in os.environ.items() if name not in BUILD_VARIABLES}
    environment.pop("VIRTUAL_ENV", None)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    shown = " ".join(str(part) for part in command)
    require((done.returncode != 0) == fails, f"exit status {done.returncode} of: {shown}\n{done.stdout}")
    return done.stdout


def tracked_files() -> set[str]:
    """What git tracks, or an empty set outside a clone."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return set(listed.stdout.splitlines()) if listed.returncode == 0 else set()


def build_sdist(folder: Path) -> Path:
    """The sdist, checked against the list of tracked files and unpacked; returns the unpacked folder."""
    call(sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT, cwd=folder)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
        tar.extractall(folder / "unpacked", filter="data")
    left_out = {
        name
        for name in tracked_files() - names
        if not name.startswith(("benchmarks/results/", ".git")) and (ROOT / name).is_file()
    }
    require(not left_out, f"tracked, but not in the sdist (see MANIFEST.in): {sorted(left_out)}")
    print(f"sdist: {archive.stat().st_size / 1e6:.2f} MB, {len(names)} entries, all tracked files among them")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


def build_wheel(source: Path, folder: Path, *, isolated: bool, **variables: str) -> tuple[Path, str]:
    """A wheel from the unpacked sdist; returns its path and the build's output."""
    options = [] if isolated else ["--no-build-isolation"]
    output = call(
        sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", *options, "--wheel-dir", folder, source,
        cwd=folder.parent, **variables,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel, output


def check_wheel(wheel: Path, *, compiled: bool) -> None:
    """The wheel holds the package, the compiled module or its absence, and nothing that is not the package."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    modules = [name for name in names if name.startswith("gan_fast/_C.")]
    require(len(modules) == (1 if compiled else 0), f"compiled modules in {wheel.name}: {modules}")
    tops = {name.split("/")[0] for name in names}
    require(all(top.startswith("gan_fast") for top in tops), f"top-level names in {wheel.name}: {sorted(tops)}")
    wanted = {name for name in tracked_files() if name.startswith("gan_fast/")}
    absent = {name for name in wanted - set(names) if (ROOT / name).is_file()}
    require(not absent, f"in gan_fast/, but not in {wheel.name} (see package-data in pyproject.toml): {sorted(absent)}")
    print(f"wheel: {wheel.name}, {wheel.stat().st_size / 1e6:.2f} MB, {len(names)} files, compiled module: {modules}")


def clean_environment(folder: Path, wheel: Path) -> Path:
    """A new environment with the wheel, and a view of this one's other packages; returns its folder of programs."""
    venv.create(folder, with_pip=False, symlinks=True)
    programs = folder / "bin"
    # pip runs from here and installs there; the path file comes after, so that pip cannot see (or touch) this one.
    call(
        sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet", "--no-deps", "--no-index",
        wheel, cwd=folder,
    )  # fmt: skip
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies_of_this_check.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return programs


def check_installed(programs: Path, *, compiled: bool) -> None:
    """In the clean environment: the import, the compiled module or the reason for its absence, the doctor."""
    python, elsewhere = programs / "python", programs.parent
    code = (
        "import gan_fast; from gan_fast.backends import extension, extension_error;"
        "print(gan_fast.__file__); print(extension()); print(extension_error())"
    )
    place, module, reason = call(python, "-c", code, cwd=elsewhere).splitlines()[-3:]
    require(Path(place).is_relative_to(elsewhere), f"gan_fast was imported from {place}, not from the wheel")
    require((module != "None") == compiled, f"compiled module: {module}, reason: {reason}")
    report = call(programs / "gan-fast", "doctor", cwd=elsewhere)
    print(*(f"  {line}" for line in report.splitlines()), sep="\n")
    if not compiled:
        require("built without CPU kernels" in report, "the doctor does not say that the build failed")


def import_times(programs: Path) -> tuple[float, float]:
    """Milliseconds beyond torch's own of `import gan_fast`, and of having every public name; the best of five each."""
    code = (
        "import torch, time; start = time.perf_counter(); import gan_fast; bare = time.perf_counter();"
        "[getattr(gan_fast, name) for name in gan_fast.__all__]; every = time.perf_counter();"
        "print((bare - start) * 1e3, (every - start) * 1e3)"
    )
    runs = [call(programs / "python", "-c", code, cwd=programs).split()[-2:] for _ in range(5)]
    return min(float(bare) for bare, _ in runs), min(float(every) for _, every in runs)


def main() -> int:
    """Run every check in a temporary folder; 0 if all hold, else 1 and the reason."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            source = build_sdist(folder)
            begun = time.monotonic()
            wheel, _ = build_wheel(source, folder / "wheel", isolated=True)
            print(f"isolated build of the wheel: {time.monotonic() - begun:.1f} s, its environment included")
            check_wheel(wheel, compiled=True)
            programs = clean_environment(folder / "clean", wheel)
            check_installed(programs, compiled=True)
            bare, every = import_times(programs)
            print(f"import gan_fast, beyond torch's own time: {bare:.1f} ms; every public name loaded: {every:.0f} ms")

            print("with a compiler that fails:")
            pure, output = build_wheel(source, folder / "pure", isolated=False, CXX=FAILING_COMPILER)
            said = [line.strip() for line in output.splitlines() if "built without CPU kernels" in line]
            require(len(said) == 1, f"expected one line about the failed compile, got {said}\n{output}")
            print(f"  {said[0]}")
            check_wheel(pure, compiled=False)
            check_installed(clean_environment(folder / "clean-pure", pure), compiled=False)

            output = call(
                sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation",
                "--wheel-dir", folder / "none", source,
                cwd=folder, fails=True, CXX=FAILING_COMPILER, GAN_FAST_REQUIRE_EXT="1",
            )  # fmt: skip
            require("GAN_FAST_REQUIRE_EXT=1" in output, f"the error does not name GAN_FAST_REQUIRE_EXT:\n{output}")
            print("with GAN_FAST_REQUIRE_EXT=1 the same is an error: yes")
        except (PackagingError, subprocess.TimeoutExpired) as error:
            print(f"packaging check failed: {error}", file=sys.stderr)
            return 1
    print(f"packaging check passed in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
