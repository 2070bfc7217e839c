"""The benchmarks' frame: brief by default, and every result file says which machine, versions and commit it is from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # shapes, peers, machine: by name from every benchmark

import machine


def pytest_configure(config: Any) -> None:
    """Brief rounds, unless the command line says otherwise; a garbage collection inside a round is not the kernel's time."""
    given = " ".join(config.invocation_params.args)
    defaults = {"benchmark_max_time": 0.5, "benchmark_min_rounds": 5, "benchmark_warmup": True, "benchmark_disable_gc": True}
    for name, value in defaults.items():
        if f"--{name.replace('_', '-')}" not in given:
            setattr(config.option, name, value)


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Add what the figures mean nothing without; leave out the machine's network name."""
    machine_info.pop("node", None)
    machine_info["gan_fast"] = machine.describe()
