"""The errors of the data package."""

from __future__ import annotations

__all__ = ["DataError", "DownloadError"]


class DataError(ValueError):
    """Data that cannot be used: the text names the argument or file, what was found and what was expected."""


class DownloadError(DataError):
    """No mirror gave a file: the text says why for each, and where to put the file by hand."""
