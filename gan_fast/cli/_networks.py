"""The (G, D) that a command was asked for: a preset, or what a function of the user's returns."""

from __future__ import annotations

import importlib
import sys
from typing import Any

__all__ = ["networks"]


def networks(name: str, **options: Any) -> Any:
    """(G, D) of a preset (``options`` as :func:`gan_fast.models.build` takes them), or of module:function.

    Raises:
        ValueError: no such preset, module or function, or it returns something else; says what was expected.
    """
    from torch import nn

    from gan_fast import models

    module_name, colon, function = name.partition(":")
    if not colon:
        return models.build(name, **options)
    if not module_name or not function:
        raise ValueError(
            f"--model {name}: expected module:function, a function that returns (generator, discriminator)"
        )
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"--model {name}: module {module_name!r} cannot be imported ({error}); expected module:function, the "
            "module in this folder or installed"
        ) from error
    finally:
        sys.path.remove("")
    maker = getattr(module, function, None)
    if maker is None:
        raise ValueError(f"--model {name}: module {module_name!r} has no {function!r}")
    if not callable(maker):
        raise ValueError(
            f"--model {name}: {function!r} is a {type(maker).__name__}, expected a function without arguments"
        )
    try:
        made = maker()
    except TypeError as error:
        raise ValueError(f"--model {name}: {function}() failed ({error}); it is called without arguments") from error
    if not (isinstance(made, tuple) and len(made) == 2 and all(isinstance(part, nn.Module) for part in made)):
        kinds = ", ".join(type(part).__name__ for part in made) if isinstance(made, tuple) else type(made).__name__
        raise ValueError(f"--model {name}: expected a pair (generator, discriminator) of torch.nn.Module, got {kinds}")
    return made
