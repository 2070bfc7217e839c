"""The benchmarks' frame: every result file says which machine, versions and commit it is from.

pytest puts this folder on the import path, so that benchmarks import `machine` and `frame` by name.
"""

from __future__ import annotations

from typing import Any

import machine


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Add what the figures mean nothing without; leave out the machine's network name."""
    machine_info.pop("node", None)
    machine_info["gan_fast"] = machine.describe()
