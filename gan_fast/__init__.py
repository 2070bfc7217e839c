"""gan_fast: fused kernels that make PyTorch GANs train faster.

The public names are loaded on first use (PEP 562), so that ``import gan_fast`` costs next to nothing: it compiles
nothing, needs no GPU and does not load the compiled module, which may be absent (PyTorch then computes everything).
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import backends, data, functional, losses, metrics, models, nn, ops, profiling, training
    from .accelerate import accelerate, restore
    from .backends import empty_cache, use_backend
    from .explain import explain
    from .precision import precision
    from .profiling import Profile
    from .training import Trainer

# public name -> (submodule, attribute of it); an attribute of None means the submodule itself.
_EXPORTS: dict[str, tuple[str, str | None]] = {
    "Profile": ("profiling", "Profile"),
    "Trainer": ("training", "Trainer"),
    "accelerate": ("accelerate", "accelerate"),
    "backends": ("backends", None),
    "data": ("data", None),
    "empty_cache": ("backends", "empty_cache"),
    "explain": ("explain", "explain"),
    "functional": ("functional", None),
    "losses": ("losses", None),
    "metrics": ("metrics", None),
    "models": ("models", None),
    "nn": ("nn", None),
    "ops": ("ops", None),
    "precision": ("precision", "precision"),
    "profiling": ("profiling", None),
    "restore": ("accelerate", "restore"),
    "training": ("training", None),
    "use_backend": ("backends", "use_backend"),
}

__all__ = [
    "Profile",
    "Trainer",
    "__version__",
    "accelerate",
    "backends",
    "data",
    "empty_cache",
    "explain",
    "functional",
    "losses",
    "metrics",
    "models",
    "nn",
    "ops",
    "precision",
    "profiling",
    "restore",
    "training",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    try:
        module_name, attribute = _EXPORTS[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    module = importlib.import_module(f"{__name__}.{module_name}")
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """This package's own module type: keeps ``gan_fast.accelerate``, ``explain`` and ``precision`` the functions.

    The import system binds every submodule as an attribute of its package once it is loaded, so any
    ``from gan_fast.accelerate import Report`` would turn the function ``gan_fast.accelerate`` into the submodule of the
    same name. Here a submodule that is called like a public object of its own binds that object instead. The submodule
    stays reachable with ``from gan_fast.accelerate import ...`` and as ``sys.modules["gan_fast.accelerate"]``.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, types.ModuleType) and _EXPORTS.get(name) == (name, name):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
