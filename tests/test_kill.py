"""Kill -9 at any moment: the resume works and its end is bit-equal to the undisturbed run (tools/kill_test.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "kill_test.py"

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills with SIGKILL, which POSIX systems have")


def run(*arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kills_inside_writes() -> None:
    """At moments that the seed fixes: in the middle of a checkpoint's file, before or after a rename, in
    stats.jsonl."""
    output = run("--kills", "4", "--steps", "16", "--seed", "3", "--only-writes")
    assert "4 kills in" in output and "all resumed and bit-equal" in output


@pytest.mark.slow
def test_twenty_kills_at_random_moments() -> None:
    output = run("--kills", "20", "--seed", str(os.getpid()))
    assert "20 kills in" in output and "all resumed and bit-equal" in output
