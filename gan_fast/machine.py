"""What this machine is."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["caches", "cpu_model", "device"]

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_DRIVER = Path("/proc/driver/nvidia/version")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


_CPUINFO = Path("/proc/cpuinfo")


def cpu_model(cpuinfo: Path = _CPUINFO) -> str:
    """The processor's name as the system gives it; with family and model where the name has no number but a clock's or
    a version's.

    Virtual machines call unlike processors "AMD EPYC" or "Intel(R) Xeon(R) CPU @ 2.20GHz".
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []  # not Linux
    first: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            first.setdefault(key.strip(), value.strip())
    name = first.get("model name") or platform.processor() or platform.machine()
    if re.search(r"\d", re.sub("(@|version).*", "", name)) or not {"cpu family", "model"} <= first.keys():
        return name
    return f"{name} (family {first['cpu family']}, model {first['model']})"


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


def _driver() -> str:
    """Version of NVIDIA's driver as Linux gives it; "unknown" where it does not."""
    try:
        found = re.search(r"\d+\.[\d.]*\d", _DRIVER.read_text(encoding="utf-8"))
    except OSError:
        found = None
    return "unknown" if found is None else found[0]


def device(which: torch.device) -> dict[str, str]:
    """What a compiled kernel's worth on ``which`` hangs on: the device with its capability, the driver, and the
    versions of PyTorch, cuDNN and Triton."""
    import torch

    found = {"device": which.type}
    if which.type == "cuda":
        found = {
            "device": torch.cuda.get_device_name(which),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(which))),
            "driver": _driver(),
            "cudnn": str(torch.backends.cudnn.version()),
        }
    triton = "none"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        triton = importlib.metadata.version("triton")
    return {**found, "torch": str(torch.__version__), "triton": triton}
