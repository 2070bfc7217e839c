"""tools/setup_env.py: what it takes as installed, and what it says when a step fails."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "setup_env.py"


@pytest.fixture
def setup_env() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("setup_env", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_what_differs_from_the_pins_is_installed(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local label (2.13.0+cpu) satisfies the pin without it; comments and empty lines are nothing."""
    pins = tmp_path / "constraints.txt"
    torch = version("torch").split("+")[0]
    pins.write_text(f"# tested\n\ntorch=={torch}\npytest=={version('pytest')}\nnumpy==0.0.1\nno-such-package==1.0\n")
    monkeypatch.setattr(setup_env, "CONSTRAINTS", pins)
    environment = setup_env.Environment(Path(sys.prefix), "")
    environment.python = sys.executable
    assert environment.missing() == ["numpy", "no-such-package"]


def test_a_step_that_fails_is_named_with_its_advice(setup_env: ModuleType, tmp_path: Path) -> None:
    environment = setup_env.Environment(tmp_path, "")
    with pytest.raises(setup_env.SetupError, match=r"(?s)download failed \(exit status 3\).*use the other index"):
        environment.run("download", sys.executable, "-c", "raise SystemExit(3)", advice="use the other index")
    assert environment.seconds["download"] > 0


def test_the_job_s_exit_status_is_the_script_s(tmp_path: Path) -> None:
    """With a set-up that has nothing to do (stubbed), the command's status comes through, and the times are printed."""
    code = (
        "import runpy, sys; module = runpy.run_path(sys.argv[1]); environment = module['Environment']\n"
        "for step in ('create', 'install_dependencies', 'build'): setattr(environment, step, lambda self: None)\n"
        "sys.argv = ['setup_env.py', '--label', 'job', '--', sys.executable, '-c', 'raise SystemExit(7)']\n"
        "raise SystemExit(module['main']())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(SCRIPT)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 7, done.stderr
    assert "download 0.0 s" in done.stdout and "without download" in done.stdout
