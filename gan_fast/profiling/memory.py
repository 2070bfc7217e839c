"""Peak memory of some steps."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["PeakMemory"]

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class PeakMemory:
    """The peak from the moment this is made on: on CUDA of PyTorch's allocator, else of the process (resident)."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._since = "since the process began"
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            return
        with contextlib.suppress(OSError):  # Linux, and only where the process may
            _RESET.write_text("5")
            self._since = "while it trained"

    def __call__(self) -> dict[str, Any]:
        """{"peak": bytes, "of": what they are}; {} where the system does not tell."""
        if self._device == "cuda":
            return {"peak": torch.cuda.max_memory_allocated(), "of": "PyTorch's tensors on the device"}
        with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
            lines = _STATUS.read_text().splitlines()
            peak = next(line for line in lines if line.startswith("VmHWM"))
            return {"peak": int(peak.split()[1]) << 10, "of": f"resident memory of the process, {self._since}"}
        with contextlib.suppress(ImportError):
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
            return {"peak": peak_rss, "of": "resident memory of the process, since the process began"}
        return {}
