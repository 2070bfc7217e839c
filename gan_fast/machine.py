"""What this machine is."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["caches", "cpu_model"]

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []  # not Linux
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def caches(folder: Path = _CACHES) -> dict[str, int]:
    """Bytes of the first core's data caches by level ("L1", "L2", "L3"), as the system gives them; empty where it does
    not."""
    found = {}
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text(encoding="utf-8").strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        number, unit = (size[:-1], size[-1:]) if size[-1:] in _UNITS else (size, "")
        if kind != "Instruction" and number.isdecimal():
            found[f"L{level}"] = int(number) * _UNITS.get(unit, 1)
    return found
