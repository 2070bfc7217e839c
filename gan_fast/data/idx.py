"""Reader of IDX files, MNIST's format: two zero bytes, a type code, the rank, big-endian sizes, then the values."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from .errors import DataError

__all__ = ["read_idx", "read_pair"]

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: str | Path, rank: int | None = None) -> Tensor:
    """Read one IDX file of unsigned bytes, gzipped or not (told by its content, not by its name).

    Args:
        path: the file.
        rank: the expected number of dimensions (3 for images, 1 for labels); None takes any.

    Returns:
        uint8 tensor of the shape in the file's header.

    Raises:
        DataError: not an IDX file, another value type or rank, truncated, damaged, or longer than its header says.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    with open(path, "rb") as raw:
        packed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        try:
            if packed:
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    return _parse(unpacked, path, rank)
            return _parse(raw, path, rank)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path} is damaged or truncated ({error}): delete it and fetch it again") from error


def _parse(stream: IO[bytes] | gzip.GzipFile, path: Path, rank: int | None) -> Tensor:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        raise DataError(
            f"{path} is not an IDX file: it starts with {head!r}, expected two zero bytes, a type and a rank"
        )
    if head[2] != _UNSIGNED_BYTE:
        raise DataError(f"{path} holds values of IDX type 0x{head[2]:02x}, expected unsigned bytes (0x08)")
    if rank is not None and head[3] != rank:
        raise DataError(f"{path} has {head[3]} dimension(s), expected {rank}: images and labels swapped?")
    sizes_bytes = stream.read(4 * head[3])
    if len(sizes_bytes) < 4 * head[3]:
        raise DataError(f"{path} is truncated inside its header")
    sizes = struct.unpack(f">{head[3]}I", sizes_bytes)
    wanted = math.prod(sizes)
    # One byte more than the header promises tells a file that is too long, and bounds what a hostile gzip can unpack
    # to.
    values = stream.read(wanted + 1)
    if len(values) != wanted:
        found = f"only {len(values)}" if len(values) < wanted else "more"
        raise DataError(f"{path}: its header promises {sizes} = {wanted} bytes, the file holds {found}")
    return torch.from_numpy(np.frombuffer(values, dtype=np.uint8).reshape(sizes).copy())


def read_pair(images: str | Path, labels: str | Path) -> tuple[Tensor, Tensor]:
    """Read an image file and its label file.

    Returns:
        images uint8 (N, 1, H, W) and labels int64 (N).

    Raises:
        DataError: either file is bad (see `read_idx`) or their counts differ.
    """
    pictures, classes = read_idx(images, rank=3), read_idx(labels, rank=1)
    if len(pictures) != len(classes):
        raise DataError(f"{images} holds {len(pictures)} images but {labels} holds {len(classes)} labels")
    return pictures.unsqueeze(1), classes.long()
