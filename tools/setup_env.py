#!/usr/bin/env python3
"""Set up the development environment, then run a command in it, and say how long each part took.

    python3 tools/setup_env.py                                  # `make setup`
    python3 tools/setup_env.py --label tests -- python -m pytest   # `make test`

Standard library only, for it runs before anything is installed. It looks at what is there instead of trusting a stamp:
a virtual environment with the versions of constraints.txt is taken as it is, anything else is completed, and a second
call costs about a second. Steps: virtual environment; download (into a folder of its own, so that its time can be told
from the rest); install; build of the compiled module in place; editable install of the package.

Exit status: that of the command, or 1 where the set-up failed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"

# Run inside the virtual environment: prints the pins of constraints.txt that are not installed in that version.
# A local version label (2.13.0+cpu) satisfies the pin without one, as it does for pip.
MISSING_PINS = """
import sys
from importlib.metadata import PackageNotFoundError, version
for line in open(sys.argv[1]):
    name, _, pin = line.split("#")[0].strip().partition("==")
    try:
        if name and version(name) != pin and version(name).split("+")[0] != pin:
            print(name)
    except PackageNotFoundError:
        print(name)
"""


class SetupError(Exception):
    """A step of the set-up failed; the text says which one and what to do."""


class Environment:
    """The virtual environment in `folder`, with the seconds that each step of its set-up took."""

    def __init__(self, folder: Path, torch_index: str) -> None:
        self.folder = folder
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.torch_index = torch_index
        # The environment's programs first (ninja is one of them); objects in one folder, so that the in-place build and
        # the editable install share them.
        self.variables = {
            **os.environ,
            "PATH": os.pathsep.join([str(self.python.parent), os.environ.get("PATH", "")]),
            "VIRTUAL_ENV": str(folder),
            "GAN_FAST_BUILD_DIR": os.environ.get("GAN_FAST_BUILD_DIR", str(ROOT / "build" / "objects")),
        }
        self.seconds = {"download": 0.0, "install": 0.0, "build": 0.0}

    def run(self, step: str, *command: str | Path, advice: str = "") -> None:
        """Run a command of a step; adds its time to the step's; raises SetupError with `advice` where it fails."""
        start = time.monotonic()
        status = subprocess.call([str(part) for part in command], cwd=ROOT, env=self.variables)
        self.seconds[step] += time.monotonic() - start
        if status != 0:
            shown = " ".join(str(part) for part in command)
            raise SetupError(f"{step} failed (exit status {status}): {shown}\n{advice}".rstrip())

    def create(self) -> None:
        """Make the virtual environment, unless a working one is there."""
        if self.python.exists() and subprocess.call([self.python, "-c", "import pip"]) == 0:
            return
        if sys.version_info < (3, 10):
            raise SetupError(
                f"Python {sys.version.split()[0]} is too old: 3.10 or newer is needed (make PYTHON=python3.11)"
            )
        print(f"creating {self.folder} with Python {sys.version.split()[0]}", flush=True)
        self.run(
            "install", sys.executable, "-m", "venv", "--clear", self.folder,
            advice="On Debian and Ubuntu the module is a package of its own: apt install python3-venv",
        )  # fmt: skip

    def missing(self) -> list[str]:
        """Names from constraints.txt that are not installed in the version pinned there."""
        found = subprocess.run(
            [self.python, "-c", MISSING_PINS, CONSTRAINTS], check=True, capture_output=True, text=True
        )
        return found.stdout.split()

    def install_dependencies(self) -> None:
        """Download and install the versions of constraints.txt, the two timed apart."""
        missing = self.missing()
        if not missing:
            return
        pins = {line.partition("==")[0]: line for line in _pins()}
        print(f"installing {len(missing)} packages: {', '.join(missing)}", flush=True)
        wheels = self.folder / "downloaded-wheels"
        pip = (self.python, "-m", "pip", "--disable-pip-version-check")
        # `pip wheel`, not `pip download`: what is there only as source is built now, while its tools may be fetched.
        fetch = (*pip, "wheel", "--quiet", "--wheel-dir", wheels, "--find-links", wheels)
        try:
            wheels.mkdir(exist_ok=True)
            advice = "Downloading needs the package index; see TORCH_INDEX in the README for the CPU wheels of torch."
            if self.torch_index and "torch" in missing:
                self.run("download", *fetch, "--index-url", self.torch_index, pins["torch"], advice=advice)
            self.run("download", *fetch, "-c", CONSTRAINTS, *(pins[name] for name in missing), advice=advice)
            # Not compiled to .pyc here: of torch's 2,000 modules a program loads a part, and compiles that once itself.
            self.run(
                "install", *pip, "install", "--quiet", "--no-compile", "--no-index", "--find-links", wheels,
                "-c", CONSTRAINTS, *(pins[name] for name in missing),
            )  # fmt: skip
        finally:
            shutil.rmtree(wheels, ignore_errors=True)

    def build(self) -> None:
        """Build the compiled module in place (ninja: only what changed) and install the package as editable."""
        self.run(
            "build", self.python, "setup.py", "--quiet", "build_ext", "--inplace",
            advice="Without GAN_FAST_REQUIRE_EXT=1 a compiler that fails is not fatal: see the message above.",
        )  # fmt: skip
        marker = self.folder / ".gan-fast-editable"
        digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + str(ROOT).encode()).hexdigest()
        if marker.exists() and marker.read_text() == digest:
            return
        self.run(
            "build", self.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps",
            "--no-build-isolation", "--editable", ROOT,
        )  # fmt: skip
        marker.write_text(digest)

    def summary(self) -> str:
        """One line: download (not counted by anyone's target), install, build."""
        return " | ".join(f"{step} {spent:.1f} s" for step, spent in self.seconds.items())


def _pins() -> list[str]:
    """The pins of constraints.txt, comments dropped."""
    lines = (line.split("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    return [line for line in lines if line]


def main() -> int:
    """Set up, run the command if there is one, print the times; see the module's text."""
    parser = argparse.ArgumentParser(description="Set up the development environment and run a command in it.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the virtual environment")
    parser.add_argument(
        "--torch-index", default=os.environ.get("TORCH_INDEX", ""), help="package index for torch alone"
    )
    parser.add_argument("--label", default="job", help="what the command is called in the line of times")
    parser.add_argument("command", nargs="*", help="runs with the environment's programs first in PATH")
    options = parser.parse_args()
    environment = Environment(options.venv.absolute(), options.torch_index)
    try:
        environment.create()
        environment.install_dependencies()
        environment.build()
    except SetupError as error:
        print(f"set-up failed: {error}", file=sys.stderr)
        return 1
    print(f"set-up: {environment.summary()}", flush=True)
    if not options.command:
        return 0
    start = time.monotonic()
    status = subprocess.call(options.command, cwd=ROOT, env=environment.variables)
    spent = time.monotonic() - start
    counted = environment.seconds["install"] + environment.seconds["build"] + spent
    print(
        f"times: {environment.summary()} | {options.label} {spent:.1f} s | without download {counted:.1f} s", flush=True
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
