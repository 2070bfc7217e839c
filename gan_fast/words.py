"""Words that a user gives: what an error about an unknown one says."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["near"]


def near(word: object, choices: Iterable[str]) -> str:
    """The end of an error about an unknown word: the near ones, if any, and all of them."""
    choices = list(choices)
    close = difflib.get_close_matches(str(word).lower(), choices, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}known: {', '.join(choices)}"
