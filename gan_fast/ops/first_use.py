"""The first use of a GPU's kernel: its result on a small sample is compared with PyTorch's in float64.

A compiler's bug must not become a user's NaN. A *variant* is an operator on a backend ("triton", "cuda") with all that
decides which binary runs: for Triton what its kernels are compiled for, for the CUDA module the data type, the shapes
without the batch, geometry and activations. Before a variant's first run on a device it gets two random images of the
same shape, with the very tile that the call will use. Where it differs the variant is disabled for the process, with
one warning, and PyTorch serves it. Good verdicts are kept on disk by device, versions and the kernels themselves: later
processes start without checks. A call's tile is the one that `gan-fast tune` found fastest on this device, else what
the kernel takes by itself.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gan_fast import __version__, backends, choice_table, machine
from gan_fast.cache import atomic_write, cache_dir
from gan_fast.ops import _triton
from gan_fast.ops.registry import OPERATORS

logger = logging.getLogger(__name__)

#: Devices whose kernels are checked; the interpreter needs none.
DEVICES = ["cuda"]
_WORDS = {"triton": "Triton", "cuda": "CUDA"}
#: Operator -> indices of the arguments that are cut to two images.
_BY_IMAGE = {
    "conv": (0, 10),
    "conv_transpose": (0, 10),
    "conv_weight_grad": (0, 1, 9),
    "bias_act": (0,),
    "act_grad": (0, 1),
    "batch_norm_act": (0,),
    "batch_norm_act_backward": (0, 1),
}
#: Largest distance from float64, in units of the largest element: several times what rounding explains, and far below
#: what a wrong address, mask or order makes.
_TOLERANCE = {"bfloat16": 0.04, "float16": 0.005, "ieee": 1e-4, "tf32": 0.01}

Function = Callable[..., Any]

_verdicts: dict[tuple[Any, ...], bool] = {}
_tiles: dict[tuple[Any, ...], _triton.Tile | None] = {}
choice_table.on_change(_tiles.clear)


class _Variant(NamedTuple):
    """What decides which binary runs, in words; and the tile, where a Triton kernel has one."""

    text: str
    tile: _triton.Tile | None = None


def checked(operator: str, backend: str) -> Function:
    """The implementation of ``operator`` in its module ``backend``, which is imported at the first call; what is new
    to the device is checked first, and PyTorch serves where that fails."""

    def implementation(*arguments: Any) -> Any:
        kernel = module_function(operator, backend)
        if arguments[0].device.type not in DEVICES or _triton.is_recording():
            return kernel(*arguments)
        key = _key(operator, backend, arguments)
        with _tile_for(key, operator, arguments) if backend == "triton" else contextlib.nullcontext():
            serves = kernel if _may_run(key, operator, arguments) else module_function(operator, "reference")
            return serves(*arguments)

    return implementation


def module_function(operator: str, backend: str) -> Function:
    """The operator's function in its module for a backend."""
    return getattr(importlib.import_module(f"gan_fast.ops.{operator}.{backend}"), operator)


def passes(operator: str, backend: str, arguments: tuple[Any, ...]) -> bool:
    """Whether the backend's kernels, with the tile in force, may serve this call; checks them where they are new."""
    if arguments[0].device.type not in DEVICES:
        return True
    return _may_run(_key(operator, backend, arguments), operator, arguments)


def _key(operator: str, backend: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    first: Tensor = arguments[0]
    return operator, backend, first.device, _triton.precision(first.dtype), *map(_fact, arguments)


def _tile_for(
    key: tuple[Any, ...], operator: str, arguments: tuple[Any, ...]
) -> contextlib.AbstractContextManager[None]:
    """A block in which this call has its tile."""
    if _triton.forced_tile() is not None:
        return contextlib.nullcontext()
    if key not in _tiles:
        numbers = choice_table.tile(operator, backends.question(**OPERATORS[operator].facts(*arguments)))
        _tiles[key] = None if numbers is None else _triton.Tile(*numbers)
    tile = _tiles[key]
    return contextlib.nullcontext() if tile is None else _triton.tile(tile)


def _may_run(key: tuple[Any, ...], operator: str, arguments: tuple[Any, ...]) -> bool:
    key = (*key, _triton.forced_tile())
    verdict = _verdicts.get(key)
    if verdict is None:
        if arguments[0].is_cuda and torch.cuda.is_current_stream_capturing():
            # A check synchronises. Whoever captures runs a step first, so that nothing is new by then.
            logger.warning("%s: new during the capture of a graph, cannot be checked; PyTorch serves", operator)
            return False
        verdict = _verdicts[key] = _decide(operator, key[1], arguments)
    return verdict


def _fact(argument: Any) -> Any:
    """What of an argument decides about the kernels, hashable."""
    if isinstance(argument, Tensor):
        return argument.dtype, tuple(argument.shape)
    return tuple(argument) if isinstance(argument, (list, tuple)) else argument


def _decide(operator: str, backend: str, arguments: tuple[Any, ...]) -> bool:
    if arguments[0].numel() == 0:
        return True  # nothing is launched
    kernel, truth = module_function(operator, backend), module_function(operator, "reference")
    variant = (_of_triton if backend == "triton" else _of_cuda)(operator, arguments, kernel)
    dtype, device = arguments[0].dtype, arguments[0].device
    name = hashlib.sha256(f"{operator} {dtype} {variant.text}".encode()).hexdigest()[:24]
    if name in _known_good(backend, device):
        return True
    error = _error(operator, arguments, variant, kernel, truth)
    tolerance = _TOLERANCE.get(str(dtype)[6:]) or _TOLERANCE[_triton.precision(dtype)]
    if not error <= tolerance:  # NaN is no verdict of health
        logger.warning(
            "the %s kernel of %s gives wrong numbers here (error %.3g of the largest, allowed %.3g) and is "
            "disabled; PyTorch serves. Please report this line with the output of gan-fast doctor: %s, %s",
            _WORDS[backend], operator, error, tolerance, dtype, variant.text,
        )  # fmt: skip
        return False
    _remember(backend, device, name)
    return True


def _of_triton(operator: str, arguments: tuple[Any, ...], kernel: Function) -> _Variant:
    launches = _triton.launches(kernel, arguments)
    text = "; ".join(f"{launch.kernel.__name__} {launch.warps} {dict(launch.constants)}" for launch in launches)
    return _Variant(text, next((tile for launch in launches if (tile := _tile_of(launch)) is not None), None))


def _tile_of(launch: _triton.Launch) -> _triton.Tile | None:
    """The tile that a launch was made with; None for kernels without a matrix product."""
    for names in (("BM", "BN", "BK"), ("BA", "BB", "BK")):
        if all(name in launch.constants for name in names):
            m, n, k = (launch.constants[name] for name in names)
            return _triton.Tile(m, n, k, launch.warps, launch.stages)
    return None


def _of_cuda(operator: str, arguments: tuple[Any, ...], kernel: Function) -> _Variant:
    cut = _BY_IMAGE.get(operator, ())
    facts = [_fact(a[:2] if i in cut and isinstance(a, Tensor) else a) for i, a in enumerate(arguments)]
    return _Variant(f"{_triton.precision(arguments[0].dtype)} {facts}")


def _error(
    operator: str, arguments: tuple[Any, ...], variant: _Variant, kernel: Function, truth: Function
) -> float:  # fmt: skip
    """The largest distance from float64 over all outputs for a sample of the call, in units of the largest element."""
    generator = torch.Generator(arguments[0].device).manual_seed(0)
    cut = _BY_IMAGE.get(operator, ())

    def sample(index: int, argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        like = torch.empty_like(argument[:2] if index in cut else argument)
        # Statistics and factors of a channel are positive; everything else is normal.
        if like.dim() == 1 or like.dtype == torch.float64:
            return like.uniform_(0.5, 1.5, generator=generator)
        return like.normal_(generator=generator)

    given = [sample(index, argument) for index, argument in enumerate(arguments)]
    exact = truth(*(a.double() if isinstance(a, Tensor) else a for a in given))
    with contextlib.nullcontext() if variant.tile is None else _triton.tile(variant.tile):
        ours = kernel(*given)
    worst = 0.0
    for mine, right in zip(*(o if isinstance(o, tuple) else (o,) for o in (ours, exact)), strict=True):
        if right.numel():
            scale = max(float(right.abs().max()), 1e-30)
            distance = float((mine.double() - right).abs().max()) / scale
            worst = max(worst, distance) if distance == distance else float("nan")
            if worst != worst:
                break
    return worst


# ------------------------------------------------------------------------------------------------- memory on disk


def _path(backend: str, device: torch.device) -> Path:
    """The file of a backend's good verdicts for this device, versions and kernels."""
    identity = f"{machine.device(device)} gan_fast {__version__} {_kernel_hash(backend)}"
    return cache_dir() / backend / f"checked-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"


@functools.cache
def _kernel_hash(backend: str) -> str:
    """Of Triton's kernels as text, of the CUDA module as a file: a change makes all verdicts void."""
    if backend == "triton":
        paths = sorted(Path(__file__).parent.rglob("*triton*.py"))
    else:
        module = backends.cuda_extension()
        paths = [] if module is None else [Path(str(module.__file__))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


@functools.cache
def _known_good(backend: str, device: torch.device) -> set[str]:
    """Variants that were found good before; read once in a process, then kept up to date by :func:`_remember`."""
    try:
        return set(json.loads(_path(backend, device).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return set()


def _remember(backend: str, device: torch.device, name: str) -> None:
    _known_good(backend, device).add(name)
    path = _path(backend, device)
    try:
        # With what other processes found meanwhile.
        others = set(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else set()
        text = json.dumps(sorted(others | _known_good(backend, device)))

        def write(temporary: Path) -> None:
            temporary.write_text(text, encoding="utf-8")

        atomic_write(path, write)
    except (OSError, ValueError, TypeError) as error:
        logger.info("verdicts on kernels cannot be kept in %s (%s); the next process checks again", path, error)


def disabled() -> list[str]:
    """Operators of which a variant was found wrong in this process, so that PyTorch serves it."""
    return sorted({key[0] for key, good in _verdicts.items() if not good})


def forget() -> None:
    """Check every variant anew in this process."""
    _verdicts.clear()
    _known_good.cache_clear()
    _kernel_hash.cache_clear()
