"""Where a benchmark's results go, and what machine, versions and commit they belong to.

python benchmarks/machine.py        # prints benchmarks/results/<machine>/<date>-<commit>.json and makes its folder
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def commit() -> str:
    """The commit's short hash, with "-dirty" if tracked files differ from it; "unknown" outside a clone."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"], cwd=ROOT, capture_output=True, text=True
    )
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def describe() -> dict[str, Any]:
    """Everything that a figure means nothing without: processor, threads, CPU level, versions, commit."""
    import torch

    import gan_fast
    from gan_fast import backends
    from gan_fast.machine import cpu_model

    module = backends.extension()
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "level": module.isa() if module is not None else None,
        "build": dict(module.build_info()) if module is not None else None,
        "torch": torch.__version__,
        "gan_fast": gan_fast.__version__,
        "commit": commit(),
    }


def slug() -> str:
    """A folder name for this machine: processor, instruction level and number of cores (virtual machines of unlike
    processors may all be called "AMD EPYC")."""
    from gan_fast import backends
    from gan_fast.machine import cpu_model

    module = backends.extension()
    level = module.isa() if module is not None else "pure"
    return f"{re.sub(r'[^a-z0-9]+', '-', cpu_model().lower()).strip('-')}-{level}-{os.cpu_count()}cores"


def result_file() -> Path:
    """The file for results of today's run on this machine, below benchmarks/results/; makes its folder."""
    folder = ROOT / "benchmarks" / "results" / slug()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{datetime.date.today().isoformat()}-{commit()}.json"


if __name__ == "__main__":
    print(result_file().relative_to(ROOT))
