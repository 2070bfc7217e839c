"""Data: named sets, image folders and zips, tensors, data sets and loaders, all as resumable batches in [-1, 1].

`load` gives a whole set in memory, `feed` an endless source of batches for the trainer, `names` the sets known by name.
"""

from __future__ import annotations

from gan_fast.cache import cache_dir

from .errors import DataError, DownloadError
from .feed import Feed, MapFeed, MemoryFeed, mix_seed
from .folder import ImageFiles
from .images import ImageData
from .loader_feed import LoaderFeed, feed
from .sources import load, names

__all__ = [
    "DataError",
    "DownloadError",
    "Feed",
    "ImageData",
    "ImageFiles",
    "LoaderFeed",
    "MapFeed",
    "MemoryFeed",
    "cache_dir",
    "feed",
    "load",
    "mix_seed",
    "names",
]
