"""Fetch files from mirrors: verified, resumed, and safe against a kill or a second process at any moment.

A download goes to ``FILE.part`` under a lock, is checked for size and sha256, and only then renamed to ``FILE``; so a
file with its final name is whole. A partial file is resumed by an HTTP range; a mirror that fails or sends something
else is followed by the next one.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gan_fast.cache import locked

from .errors import DownloadError

__all__ = ["RemoteFile", "fetch", "instructions"]

logger = logging.getLogger(__name__)

_BLOCK = 1 << 18
# A connection that breaks in the middle is taken up again at the same mirror, but not for ever.
_ATTEMPTS = 3
_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class RemoteFile:
    """What is known of a file before it is fetched.

    Attributes:
        name: file name, also its last part at every mirror.
        size: bytes.
        sha256: hex digest of the content.
        mirrors: base addresses ending in "/", in the order of trial.
    """

    name: str
    size: int
    sha256: str
    mirrors: tuple[str, ...]


class _MirrorFailed(Exception):
    """This mirror is of no use for this file; the text says why."""


def fetch(file: RemoteFile, folder: Path, *, wanted: Sequence[RemoteFile] = (), timeout: float = _TIMEOUT_S) -> Path:
    """Make sure that `file` lies in `folder`, whole, and return its path.

    A file that is there with the right size is taken as it is: it was verified before it got its name.

    Args:
        file: name, size, checksum and mirrors.
        folder: target; created if missing.
        wanted: all files that are needed; those not there yet are named when this one fails.
        timeout: seconds that a mirror may stay silent.

    Raises:
        DownloadError: no mirror gave the file; says why for each, and what to do by hand.
        OSError: the folder cannot be written.
    """
    target = folder / file.name
    if _complete(target, file):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f".{file.name}.lock"):
        if _complete(target, file):  # another process fetched it while this one waited
            return target
        part = folder / f"{file.name}.part"
        failures: list[str] = []
        for mirror in file.mirrors:
            try:
                _from_mirror(file, mirror + file.name, part, timeout)
            except _MirrorFailed as failure:
                logger.warning("%s: %s", mirror + file.name, failure)
                failures.append(f"{mirror}{file.name}: {failure}")
                continue
            os.replace(part, target)
            return target
    lacking = [f for f in wanted or (file,) if not _complete(folder / f.name, f)]
    raise DownloadError(
        f"{file.name} could not be downloaded:\n  " + "\n  ".join(failures) + "\n" + instructions(lacking, folder)
    )


def instructions(files: Sequence[RemoteFile], folder: Path) -> str:
    """Say which files to put where without a network: one line for each file with its size, sha256 and address."""
    lines = [f"Without a network, fetch these files elsewhere and put them into {folder}"]
    lines += [f"  {f.mirrors[0]}{f.name}  ({f.size} bytes, sha256 {f.sha256})" for f in files]
    lines.append("or into a folder of your own, named by --data-dir (data_dir=) or the variable GAN_FAST_DATA.")
    lines.append("The set 'digits' needs no network.")
    return "\n".join(lines)


def _complete(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def _from_mirror(file: RemoteFile, url: str, part: Path, timeout: float) -> None:
    """Bring `part` to the full, verified content.

    Raises:
        _MirrorFailed: it did not come to that. What was received stays for the next mirror if it can be of use.
    """
    trouble = "the answer ended early"
    inherited = part.exists()  # bytes of an earlier process or mirror: if the sum is wrong, they may be the reason
    for _ in range(_ATTEMPTS):
        before = _size(part)
        if before < file.size:
            try:
                _receive(file, url, part, before, timeout)
            except urllib.error.HTTPError as error:
                raise _MirrorFailed(f"HTTP {error.code} {error.reason}") from error
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                trouble = str(getattr(error, "reason", "") or error or type(error).__name__)
        have = _size(part)
        if have >= file.size:
            wrong = _difference(file, part)
            if not wrong:
                return
            part.unlink()  # nothing can be resumed from it
            if not inherited:
                raise _MirrorFailed(wrong)
            inherited, trouble = False, wrong
        elif have <= before:  # nothing came: a second try of the same kind will hardly do better
            break
    raise _MirrorFailed(f"{trouble} ({_size(part)} of {file.size} bytes)")


def _receive(file: RemoteFile, url: str, part: Path, start: int, timeout: float) -> None:
    """Ask for the bytes from `start` on and append them, or start again where the mirror knows no ranges."""
    request = urllib.request.Request(url, headers={"User-Agent": "gan_fast", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        resumed = answer.status == 206
        if resumed and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise ConnectionError(f"sent the range {answer.headers.get('Content-Range')!r}, asked from {start}")
        start = start if resumed else 0
        announced = answer.headers.get("Content-Length", "")
        if announced.isdigit() and start + int(announced) != file.size:
            # Before a byte of it is kept: a login or error page must not become the beginning of a partial file.
            raise ConnectionError(
                f"offers {start + int(announced)} bytes, the file has {file.size}: another file or a page"
            )
        from tqdm.auto import tqdm  # here, so that training alone does without it

        with (
            open(part, "ab" if resumed else "wb") as out,
            tqdm(total=file.size, initial=start, desc=file.name, unit="B", unit_scale=True, disable=None) as bar,
        ):
            # One byte past the promised size is enough to know that this is another file.
            while start <= file.size and (block := _read(answer, min(_BLOCK, file.size + 1 - start))):
                out.write(block)
                start += len(block)
                bar.update(len(block))


def _read(answer: http.client.HTTPResponse, count: int) -> bytes:
    try:
        return answer.read(count)
    except OSError as error:  # TLS errors too; kept apart from those of writing, which no other mirror would cure
        raise ConnectionError(str(error)) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _difference(file: RemoteFile, part: Path) -> str:
    """In what `part` differs from the published file; "" if in nothing."""
    if _size(part) != file.size:
        return f"sent more than the {file.size} bytes that the file has: another file or an error page"
    digest = hashlib.sha256()
    with open(part, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != file.sha256:
        return f"sha256 is {digest.hexdigest()}, expected {file.sha256}: damaged, or another file"
    return ""
