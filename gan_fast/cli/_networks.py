"""Networks named on the command line: a preset's, or those of a user's own function."""

from __future__ import annotations

import importlib
import sys
from typing import Any

__all__ = ["networks"]


def networks(name: str, **options: Any) -> Any:
    """(G, D) of a preset (``options`` as :func:`gan_fast.models.build` takes them), or of module:function.

    Raises:
        ValueError: an unknown name, or a function that returns something else.
        ImportError: no such module.
    """
    from gan_fast import models

    if ":" not in name:
        return models.build(name, **options)
    module, _, function = name.partition(":")
    sys.path.insert(0, "")
    try:
        made = getattr(importlib.import_module(module), function)()
    except AttributeError:
        raise ValueError(f"--model {name}: module {module!r} has no {function!r}") from None
    finally:
        sys.path.remove("")
    if not (isinstance(made, tuple) and len(made) == 2):
        raise ValueError(f"--model {name}: expected a pair (generator, discriminator), got {type(made).__name__}")
    return made
