"""Writes that survive a kill at any moment: a file or folder is either the old one or the new one, never a half.

The recipe is the usual one on POSIX file systems: write beside the target under a temporary name, flush to the disk,
then rename, then flush the folder that holds the name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from .errors import OutputError

__all__ = [
    "output_errors",
    "publish_folder",
    "remove_folder",
    "remove_leftovers",
    "replace_file",
    "retired",
    "temporary_sibling",
    "write_file",
]

_TEMPORARY = ".tmp-"
_RETIRED = ".old-"
_CHUNK = 1 << 20


@contextlib.contextmanager
def output_errors(what: str, place: Path, remedy: str) -> Iterator[None]:
    """Turn an `OSError` inside the block into an `OutputError` that says what could not be written, where, why, and
    what to do."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(error.errno, f"cannot write {what} to {place}: {reason}. {remedy}") from error


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and flush it to the disk."""
    with open(path, "wb") as file:
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK):
            file.write(view[start : start + _CHUNK])
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flush a folder's own entries, so that a rename inside it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_sibling(target: Path) -> Path:
    """A name beside ``target`` that no reader takes for a finished file or folder."""
    return target.parent / f"{_TEMPORARY}{target.name}-{uuid.uuid4().hex[:8]}"


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file as a whole."""
    temporary = temporary_sibling(path)
    try:
        write_file(temporary, data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def publish_folder(temporary: Path, target: Path) -> None:
    """Give a finished temporary folder its name.

    POSIX cannot rename a folder over a full one in one step. An existing target is therefore put aside first; a kill
    between the two renames leaves it under the name that `retired` finds.
    """
    flush_folder(temporary)
    aside = target.parent / f"{_RETIRED}{target.name}"
    if target.exists() and any(target.iterdir()):
        if aside.exists():
            shutil.rmtree(aside)
        os.rename(target, aside)
    os.rename(temporary, target)
    flush_folder(target.parent)
    if aside.exists():
        shutil.rmtree(aside)


def retired(target: Path) -> Path | None:
    """The folder that a killed `publish_folder` had put aside, if ``target`` itself is missing and the other is
    there."""
    aside = target.parent / f"{_RETIRED}{target.name}"
    return aside if not target.exists() and aside.is_dir() else None


def remove_folder(folder: Path) -> None:
    """Delete a folder so that a kill half-way leaves no folder of that name with files missing."""
    doomed = temporary_sibling(folder)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def remove_leftovers(parent: Path, name: str = "*") -> list[str]:
    """Clear up behind a killed process: delete its temporary files and folders, finish a half-done `publish_folder`.

    Args:
        parent: the folder to look through.
        name: only what belongs to this target; by default everything.

    Returns:
        The names that were found.
    """
    found = []
    for entry in sorted(parent.glob(f"{_TEMPORARY}{name}-*")):
        found.append(entry.name)
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for aside in sorted(parent.glob(f"{_RETIRED}{name}")):
        found.append(aside.name)
        target = parent / aside.name.removeprefix(_RETIRED)
        if target.exists():
            shutil.rmtree(aside)
        else:
            os.rename(aside, target)
    return found
