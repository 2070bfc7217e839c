"""Named data sets, and `load`, which turns a name, folder, zip or tensor into `ImageData`."""

from __future__ import annotations

import difflib
import json
import os
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_fast.cache import cache_dir

from .download import RemoteFile, fetch, instructions
from .errors import DataError, DownloadError
from .folder import ImageFiles
from .idx import read_pair
from .images import ImageData, convert, from_array

__all__ = ["SPLITS", "load", "names", "resolve"]

SPLITS = ("train", "test")

_CLASSES: dict[str, tuple[str, ...]] = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
}  # fmt: skip


def names() -> tuple[str, ...]:
    """Names that `load` knows."""
    return ("digits", *_mirrors())


def load(
    source: str | Path | Tensor | np.ndarray | ImageData,
    *,
    data_dir: str | Path | None = None,
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    download: bool = True,
) -> ImageData:
    """Load a data set into memory.

    Args:
        source: a name (see `names`), an image folder or zip (a name wins over a folder of the same name: write
            "./name"), a tensor or array (N, C, H, W), or an `ImageData`.
        data_dir: folder with the files of a named set, or its parent; must hold the part asked for.
            Without it ``$GAN_FAST_DATA`` is searched in the same way, then the cache folder.
        split: "train" or "test"; only named sets have parts, the others are taken whole.
        image_size: scale the short side to it and cut the centre square; None keeps the size.
        channels: 1, 3, or None to keep them.
        download: fetch a named set that is nowhere on this machine.

    Returns:
        images (N, C, H, W), uint8 unless a float tensor came in, with labels where the source has them.

    Raises:
        DataError: unknown name (near ones are given), a part that is missing, damaged files, images of mixed sizes,
            values out of range. `DownloadError` if it is a failed or forbidden download.
        FileNotFoundError: no such folder, zip or data_dir.
        ImportError: "digits" without scikit-learn.
    """
    if split not in SPLITS:
        raise DataError(f"split={split!r}, expected one of {', '.join(SPLITS)}")
    if isinstance(source, ImageData):
        return convert(source, image_size, channels)
    if isinstance(source, (Tensor, np.ndarray)):
        return convert(from_array(source), image_size, channels)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"source is a {type(source).__name__}, expected a name, a path, a tensor, an array or ImageData"
        )
    kind = resolve(source)
    if kind == "path":
        return ImageFiles(source, image_size, channels).load()
    if kind == "digits":
        data = _digits(split)
    else:
        data = _idx_set(kind, split, data_dir, download)
    return convert(data, image_size, channels)


def resolve(source: str | os.PathLike[str]) -> str:
    """The name of a known set that `source` means, or "path" if it is an existing folder or file.

    Raises:
        DataError: neither; near names are given.
        FileNotFoundError: it looks like a path, and is not there.
    """
    text = os.fspath(source)
    if isinstance(source, str):
        name = text.lower().replace("_", "-")
        name = {"fashionmnist": "fashion-mnist"}.get(name, name)
        if name in names():
            return name
    if Path(text).exists():
        return "path"
    if not isinstance(source, str) or "/" in text or os.sep in text or text.lower().endswith(".zip"):
        raise FileNotFoundError(f"no such folder or zip: {text}")
    near = difflib.get_close_matches(text.lower(), names(), n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    raise DataError(f"unknown data set {text!r}, expected one of {', '.join(names())}, an image folder or a zip{hint}")


@lru_cache(maxsize=1)
def _mirrors() -> dict[str, Any]:
    return dict(json.loads(resources.files(__package__).joinpath("mirrors.json").read_text(encoding="utf-8")))


def _remote_files(name: str, split: str) -> dict[str, RemoteFile]:
    """{"images": ..., "labels": ...} of one part, as mirrors.json lists them."""
    entry = _mirrors()[name]
    return {
        role: RemoteFile(f["file"], f["bytes"], f["sha256"], tuple(entry["mirrors"]))
        for role, f in entry["parts"][split].items()
    }


def _spellings(file: str) -> tuple[str, ...]:
    """Names under which people keep an IDX file: as published, unpacked, and with the dot that some archives have."""
    plain = file.removesuffix(".gz")
    dotted = plain.replace("-idx", ".idx")
    return (file, plain, dotted + ".gz", dotted)


def _find(folder: Path, file: str) -> Path | None:
    return next((folder / s for s in _spellings(file) if (folder / s).is_file()), None)


def _local_part(name: str, split: str, root: Path) -> tuple[Path, Path] | None:
    """The image and label file of a part below `root` (the set's folder or its parent); None if no file of the set is
    there.

    Raises:
        DataError: some files of the set are there, but not this part's; names those that are missing.
    """
    folder = _mirrors()[name]["folder"]
    # The last one is the layout that torchvision leaves.
    for place in (root / folder, root, root / {"mnist": "MNIST"}.get(name, "FashionMNIST") / "raw"):
        parts = {s: {role: _find(place, f.name) for role, f in _remote_files(name, s).items()} for s in SPLITS}
        present = [path for part in parts.values() for path in part.values() if path]
        if not present or _is_other_set(name, place, present):
            continue
        images, labels = parts[split]["images"], parts[split]["labels"]
        if images and labels:
            return images, labels
        missing = [f.name for role, f in _remote_files(name, split).items() if parts[split][role] is None]
        raise DataError(f"{name}: the {split} part is incomplete in {place}: {' and '.join(missing)} missing")
    return None


def _is_other_set(name: str, place: Path, present: list[Path]) -> bool:
    """Whether `place` holds another set: all use the same file names, so only the folder's name and sizes can tell."""
    others = [other for other in _mirrors() if other != name]
    if place.name.lower() in {_mirrors()[other]["folder"] for other in others}:
        return True
    sizes = {(f.name, f.size) for other in others for s in SPLITS for f in _remote_files(other, s).values()}
    return any((path.name, path.stat().st_size) in sizes for path in present)


def _idx_set(name: str, split: str, data_dir: str | Path | None, download: bool) -> ImageData:
    paths: tuple[Path, Path] | None = None
    if data_dir is not None:
        root = Path(data_dir).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"data_dir={str(data_dir)!r}: no such folder")
        paths = _local_part(name, split, root)
        if paths is None:
            files = ", ".join(f.name for f in _remote_files(name, split).values())
            raise DataError(f"data_dir={str(data_dir)!r} holds no file of {name}, expected {files} in it or in {name}/")
    elif chosen := os.environ.get("GAN_FAST_DATA"):
        root = Path(chosen).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"GAN_FAST_DATA={chosen!r}: no such folder")
        paths = _local_part(name, split, root)
    if paths is None:
        paths = _cached_part(name, split, download)
    images, labels = read_pair(*paths)
    return ImageData(images, labels, name, split, _CLASSES.get(name, ()))


def _cached_part(name: str, split: str, download: bool) -> tuple[Path, Path]:
    folder = cache_dir() / "data" / _mirrors()[name]["folder"]
    files = _remote_files(name, split)
    found = {role: _find(folder, f.name) for role, f in files.items()}
    if download:
        wanted = [f for role, f in files.items() if found[role] is None]
        found = {role: found[role] or fetch(f, folder, wanted=wanted) for role, f in files.items()}
    images, labels = found["images"], found["labels"]
    if images is None or labels is None:
        wanted = [files[role] for role, path in found.items() if path is None]
        raise DownloadError(
            f"{name}: the {split} part is not on this machine and download=False.\n{instructions(wanted, folder)}"
        )
    return images, labels


def _digits(split: str) -> ImageData:
    """scikit-learn's 1797 handwritten digits, 8x8 with values 0..16, scaled to 28x28 (bilinear) and 0..255.

    Every sixth image is the test part: the set is ordered by writer, so both parts have all writers and all classes.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the data set 'digits' comes with scikit-learn: pip install 'gan-fast[data]'") from error
    bunch = load_digits()
    small = torch.from_numpy(bunch.images).to(torch.float32).unsqueeze(1) * (255.0 / 16.0)
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False).round().to(torch.uint8)
    test = torch.arange(len(images)) % 6 == 5
    keep = test if split == "test" else ~test
    labels = torch.from_numpy(bunch.target).long()
    return ImageData(images[keep], labels[keep], "digits", split, tuple("0123456789"))
