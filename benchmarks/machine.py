"""Where a benchmark's results go, and what machine, versions and commit they belong to.

python benchmarks/machine.py        # prints benchmarks/results/<machine>/<date>-<commit>.json and makes its folder
"""

from __future__ import annotations

import datetime
from pathlib import Path

from gan_fast.suite.results import commit, describe, slug

__all__ = ["ROOT", "commit", "describe", "result_file", "slug"]

ROOT = Path(__file__).resolve().parent.parent


def result_file() -> Path:
    """The file for results of today's run on this machine, below benchmarks/results/; makes its folder."""
    folder = ROOT / "benchmarks" / "results" / slug()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{datetime.date.today().isoformat()}-{commit()}.json"


if __name__ == "__main__":
    print(result_file().relative_to(ROOT))
