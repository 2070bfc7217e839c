"""What a run ran on: written to ``env.json``, and compared on a resume."""

from __future__ import annotations

import datetime
import logging
import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import gan_fast
from gan_fast import backends
from gan_fast.machine import cpu_model

__all__ = ["describe", "fingerprint", "warn_if_other"]

logger = logging.getLogger(__name__)


def fingerprint(device: torch.device) -> dict[str, Any]:
    """What decides the last bits of the results beside the settings: device, threads, versions, the choice of
    kernels."""
    return {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "table_hash": backends.table_hash(device.type),
        "backend": backends.requested(),
        "level": backends.instruction_level(),
        "torch": str(torch.__version__),
        "gan_fast": gan_fast.__version__,
    }


def warn_if_other(stored: Mapping[str, Any], device: torch.device) -> list[str]:
    """Log one warning that lists what is not as it was when the checkpoint was written; returns the list."""
    current = fingerprint(device)
    changed = [
        f"{key} was {stored[key]!r}, is {current[key]!r}"
        for key in current
        if key in stored and stored[key] != current[key]
    ]
    if changed:
        logger.warning("resuming, but not bit for bit as an undisturbed run would go on: %s", "; ".join(changed))
    return changed


def describe(device: torch.device, step: int) -> dict[str, Any]:
    """One entry of env.json: versions, machine and time of a start or resume at ``step``."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    return {
        "from_step": step,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **fingerprint(device),
        "device_name": name,
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "platform": platform.platform(),
    }
