"""The first use of a compiled kernel: its result on a small sample is compared with PyTorch's in float64.

A compiler's bug must not become a user's NaN. A *variant* is an operator with everything that its kernels are compiled
for: data type, shapes without the batch, geometry, activations, tile. Before a variant's first run on a device it gets
two random images of the same shape with the very tile that the call will use, so that what is checked is the binary
that will run. Where it differs the variant is disabled for the process, with one warning, and PyTorch serves it. Good
verdicts are kept on disk by device and versions: later processes start without checks.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan_fast import __version__
from gan_fast.cache import atomic_write, cache_dir
from gan_fast.ops import _triton

logger = logging.getLogger(__name__)

#: Devices whose kernels are checked; the interpreter needs none.
DEVICES = ["cuda"]
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

_verdicts: dict[tuple[Any, ...], bool] = {}


def may_run(operator: str, arguments: tuple[Any, ...], kernel: Callable[..., Any], truth: Callable[..., Any]) -> bool:
    """Whether the Triton kernels of ``operator`` may serve this call; checks them where they are new."""
    first: Tensor = arguments[0]
    if first.device.type not in DEVICES or _triton.is_recording():
        return True
    key = (operator, first.device, _triton.precision(first.dtype), *map(_fact, arguments))
    verdict = _verdicts.get(key)
    if verdict is None:
        if first.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            # A check synchronises. Whoever captures runs a step first, so that nothing is new by then.
            logger.warning("%s: new during the capture of a graph, cannot be checked; PyTorch serves", operator)
            return False
        verdict = _verdicts[key] = _decide(operator, arguments, kernel, truth)
    return verdict


def _fact(argument: Any) -> Any:
    """What of an argument decides about the kernels, hashable."""
    if isinstance(argument, Tensor):
        return argument.dtype, tuple(argument.shape)
    return tuple(argument) if isinstance(argument, (list, tuple)) else argument


def _decide(operator: str, arguments: tuple[Any, ...], kernel: Callable[..., Any], truth: Callable[..., Any]) -> bool:
    if arguments[0].numel() == 0:
        return True  # nothing is launched
    launches: list[_triton.Launch] = []
    with _triton.recording(launches.append):
        kernel(*arguments)
    variant = "; ".join(f"{launch.kernel.__name__} {launch.warps} {dict(launch.constants)}" for launch in launches)
    name = hashlib.sha256(f"{operator} {arguments[0].dtype} {variant}".encode()).hexdigest()[:24]
    device = arguments[0].device
    if name in _known_good(device):
        return True
    error = _error(operator, arguments, launches, kernel, truth)
    tolerance = _TOLERANCE.get(str(arguments[0].dtype)[6:]) or _TOLERANCE[_triton.precision(arguments[0].dtype)]
    if not error <= tolerance:  # NaN is no verdict of health
        logger.warning(
            "the Triton kernel of %s gives wrong numbers here (error %.3g of the largest, allowed %.3g) and is "
            "disabled; PyTorch serves. Please report this line with the output of gan-fast doctor: %s, %s",
            operator, error, tolerance, arguments[0].dtype, variant,
        )  # fmt: skip
        return False
    _remember(device, name)
    return True


def _error(
    operator: str, arguments: tuple[Any, ...], launches: list[_triton.Launch], kernel: Callable[..., Any],
    truth: Callable[..., Any],
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
    tile = next((t for launch in launches if (t := _tile_of(launch)) is not None), None)
    if tile is None:
        ours = kernel(*given)
    else:
        with _triton.tile(tile):
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


def _tile_of(launch: _triton.Launch) -> _triton.Tile | None:
    """The tile that a launch was made with; None for kernels without a matrix product."""
    for names in (("BM", "BN", "BK"), ("BA", "BB", "BK")):
        if all(name in launch.constants for name in names):
            m, n, k = (launch.constants[name] for name in names)
            return _triton.Tile(m, n, k, launch.warps, launch.stages)
    return None


# ------------------------------------------------------------------------------------------------- memory on disk


def _path(device: torch.device) -> Path:
    """The file of good verdicts for this device, PyTorch, Triton and version of the kernels."""
    import triton

    what = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    identity = f"{what} torch {torch.__version__} triton {triton.__version__} gan_fast {__version__} {_kernel_hash()}"
    return cache_dir() / "triton" / f"checked-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"


@functools.cache
def _kernel_hash() -> str:
    """Of the kernels' text: a change makes all verdicts void."""
    folder = Path(__file__).parent
    text = b"".join(path.read_bytes() for path in sorted(folder.rglob("*triton*.py")))
    return hashlib.sha256(text).hexdigest()[:16]


@functools.cache
def _known_good(device: torch.device) -> set[str]:
    """Variants that were found good before; read once in a process, then kept up to date by :func:`_remember`."""
    try:
        return set(json.loads(_path(device).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return set()


def _remember(device: torch.device, name: str) -> None:
    _known_good(device).add(name)
    path = _path(device)
    try:
        # With what other processes found meanwhile.
        others = set(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else set()
        text = json.dumps(sorted(others | _known_good(device)))

        def write(temporary: Path) -> None:
            temporary.write_text(text, encoding="utf-8")

        atomic_write(path, write)
    except (OSError, ValueError) as error:
        logger.info("verdicts on kernels cannot be kept in %s (%s); the next process checks again", path, error)


def disabled() -> list[str]:
    """Operators of which a variant was found wrong in this process, so that PyTorch serves it."""
    return sorted({key[0] for key, good in _verdicts.items() if not good})


def forget() -> None:
    """Check every variant anew in this process."""
    _verdicts.clear()
    _known_good.cache_clear()
