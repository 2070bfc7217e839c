"""Images from a folder or a zip, found recursively; the first subfolder of each image is its class."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .images import ImageData, check_options

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["SUFFIXES", "ImageFiles"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class ImageFiles:
    """The images below a folder or inside a zip, as a map-style data set of uint8 (C, H, W) tensors.

    Files are sorted by name, so the order does not depend on the file system. If every image lies in a subfolder, the
    first level of subfolders gives the labels, in sorted order. Nothing is unpacked to disk.

    Args:
        root: folder or zip file.
        image_size: scale the short side to it (bilinear, antialiased) and cut the centre square; None keeps sizes,
            which must then all be equal.
        channels: 1, 3, or None: 1 if the first image is grey, else 3.

    Raises:
        FileNotFoundError: no such folder or file.
        DataError: no image in it, not a zip, or impossible options.
    """

    def __init__(self, root: str | Path, image_size: int | None = None, channels: int | None = None) -> None:
        check_options(image_size, channels)
        self.root = Path(root)
        self.image_size = image_size
        self._archive: zipfile.ZipFile | None = None
        self._lock = threading.Lock()
        self.names = tuple(self._list())
        if not self.names:
            raise DataError(
                f"{self.root} holds no image ({', '.join(SUFFIXES)}); for IDX files name the set and give data_dir, "
                f"as in --data mnist --data-dir {self.root}"
            )
        parents = [PurePosixPath(name).parts[:-1] for name in self._below_common_folder()]
        self.classes = tuple(sorted({p[0] for p in parents})) if all(parents) else ()
        self.classes = self.classes if len(self.classes) > 1 else ()
        number = {name: i for i, name in enumerate(self.classes)}
        self.labels = torch.tensor([number[p[0]] for p in parents]) if number else None
        with self._open(self.names[0]) as first:
            self.channels = channels or (1 if first.mode in ("1", "L", "LA", "I;16", "I", "F") else 3)
        # Decoded, not read from the header: a photograph may be stored turned.
        self._size = self._decode(self.names[0]).shape[:2]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """Of the files' names and sizes and the options: what a resumed run compares without reading every file."""
        if self._archive is None:
            sizes = [(self.root / name).stat().st_size for name in self.names]
        else:
            sizes = [self._archive.getinfo(name).CRC for name in self.names]
        text = repr((self.names, sizes, self.image_size, self.channels))
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        return (self.channels, *self._size)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index` as uint8 (C, H, W).

        Raises:
            DataError: unreadable or truncated file, or a size unlike the first image's; names the file(s).
        """
        name = self.names[index]
        pixels = self._decode(name)
        if pixels.shape[:2] != self._size:
            raise DataError(
                f"images differ in size: {self.root / self.names[0]} is {self._size[1]}x{self._size[0]} but "
                f"{self.root / name} is {pixels.shape[1]}x{pixels.shape[0]}; give image_size to bring all to one size"
            )
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def load(self) -> ImageData:
        """Decode everything into memory: images uint8 (N, C, H, W), labels if there are class folders."""
        images = torch.empty((len(self), *self.shape), dtype=torch.uint8)

        def decode(index: int) -> None:
            images[index] = self[index]

        # Pillow decodes outside the GIL.
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(decode, range(len(self))):
                pass
        return ImageData(images, self.labels, self.root.name, "all", self.classes)

    def _list(self) -> list[str]:
        if self.root.is_dir():
            found = self._walk()
        elif self.root.is_file():
            try:
                self._archive = zipfile.ZipFile(self.root)
            except (zipfile.BadZipFile, OSError) as error:
                raise DataError(f"{self.root} is neither a folder nor a readable zip ({error})") from error
            found = (name for name in self._archive.namelist() if not name.startswith("__MACOSX/"))
        else:
            raise FileNotFoundError(f"no such folder or zip: {self.root}")
        return sorted(name for name in found if name.lower().endswith(SUFFIXES) and not Path(name).name.startswith("."))

    def _walk(self) -> Iterator[str]:
        """Files below the root, links to folders followed, each folder once (a link may lead back up)."""
        seen: set[str] = set()

        def refuse(error: OSError) -> None:  # os.walk passes over what it may not read
            raise DataError(f"{error.filename} cannot be read: {error.strerror or error}") from error

        for base, folders, files in os.walk(self.root, followlinks=True, onerror=refuse):
            if (real := os.path.realpath(base)) in seen:
                folders.clear()
                continue
            seen.add(real)
            yield from (Path(base, file).relative_to(self.root).as_posix() for file in files)

    def _below_common_folder(self) -> list[str]:
        """Names without the folders that all share: a zip of one folder has the same classes as the folder itself."""
        names = list(self.names)
        if self._archive is None:
            return names
        while all("/" in name for name in names) and len({name.split("/", 1)[0] for name in names}) == 1:
            names = [name.split("/", 1)[1] for name in names]
        return names

    def _open(self, name: str) -> Image.Image:
        from PIL import Image  # here, so that training alone does without it

        try:
            if self._archive is None:
                return Image.open(self.root / name)
            with self._lock:  # a zip has one file position for all threads
                content = self._archive.read(name)
            return Image.open(io.BytesIO(content))
        # RuntimeError: encrypted, or (NotImplementedError) packed in a way that Python cannot unpack.
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.root / name} cannot be read as an image ({error})") from error

    def _decode(self, name: str) -> np.ndarray:
        """The image called `name` as uint8 (H, W, C)."""
        from PIL import Image

        with self._open(name) as image:
            try:
                return self._pixels(image)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise DataError(f"{self.root / name} cannot be decoded ({error}): truncated or damaged?") from error

    def _pixels(self, image: Image.Image) -> np.ndarray:
        """Decode to (H, W, C) uint8 in the wanted channels and size."""
        from PIL import Image, ImageOps

        if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip it at 255 instead of scaling
            deep = np.asarray(image, dtype=np.float32)
            image = Image.fromarray((deep / 257.0).round().clip(0, 255).astype(np.uint8))
        image = ImageOps.exif_transpose(image)
        image = image.convert("L" if self.channels == 1 else "RGB")
        if self.image_size and image.size != (self.image_size, self.image_size):
            scale = self.image_size / min(image.size)
            wide, high = (max(self.image_size, round(side * scale)) for side in image.size)
            left, top = (wide - self.image_size) // 2, (high - self.image_size) // 2
            image = image.resize((wide, high), Image.Resampling.BILINEAR)
            image = image.crop((left, top, left + self.image_size, top + self.image_size))
        pixels = np.array(image, dtype=np.uint8)
        return pixels.reshape(*pixels.shape[:2], self.channels)

    def __getstate__(self) -> dict[str, object]:
        # An open zip and a lock do not travel to DataLoader workers; they are opened anew there.
        return {**self.__dict__, "_archive": None, "_lock": None, "_zipped": self._archive is not None}

    def __setstate__(self, state: dict[str, object]) -> None:
        zipped = state.pop("_zipped")
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._archive = zipfile.ZipFile(self.root) if zipped else None
