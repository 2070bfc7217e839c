"""Where downloaded sets and trained classifiers live, and how a file gets there without ever being half written."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # the module is absent there; `locked` asks

__all__ = ["atomic_write", "cache_dir", "locked"]

logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """The cache folder: ``$GAN_FAST_CACHE`` if set, else the platform's own place for caches (not created here)."""
    chosen = os.environ.get("GAN_FAST_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "gan_fast" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gan_fast"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gan_fast"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the advisory lock ``path`` (a file beside what it guards) against other processes and threads.

    The lock belongs to the open file, so it ends with its process however that dies; the empty file stays, because
    removing it would let two holders lock two different files of one name. Without ``fcntl`` nothing is locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as handle:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("waiting for another process that holds %s", path)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with a temporary name beside ``path``, then rename: readers see the old or the whole new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not mkstemp, which would keep the file from every other user of a shared cache.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
