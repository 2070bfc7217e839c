"""Which backends exist on this machine, and which one serves a call, with the reason.

Backends of the operators: ``"reference"`` (plain PyTorch, any device and dtype), ``"cpu"`` (the compiled kernels in
``gan_fast._C``), ``"gemm"`` (convolutions as products of matrices by PyTorch's BLAS between two compiled kernels, for
many weights and few positions), ``"triton"`` (kernels for CUDA tensors; proven by interpreter and compiler, not yet on
a device) and ``"cuda"`` (CUDA C++ kernels of a few operators in ``gan_fast._cuda``, which GAN_FAST_CUDA=1 builds;
proven by emulation, never yet run on a device). Both of a GPU's serve by name only, or where `gan-fast tune` found them
faster on this very device. ``"auto"`` is the default: it follows :mod:`gan_fast.choice_table` and may answer
``"torch"``, which means "call torch.nn.functional, do not enter our operator". An explicit name is strict: what it
cannot run raises and says why; ``"gemm"`` stands for ``"cpu"`` in operators that are no product.

Precedence: the ``backend=`` argument of a call, then :func:`use_backend`, then the environment variable
``GAN_FAST_BACKEND`` (read at the import and when a Trainer is made), then ``"auto"``.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import torch

from gan_fast import __version__, choice_table
from gan_fast.choice_table import Choice

logger = logging.getLogger(__name__)

#: Names a user may ask for.
BACKENDS = ("auto", "reference", "cpu", "gemm", "triton", "cuda")

#: Operators whose CPU kernels take bfloat16 (and compute in float32); all take float32.
BFLOAT16_OPERATORS = frozenset(
    {"act_grad", "batch_norm_act", "batch_norm_act_backward", "bce_with_logits", "bias_act", "conv", "conv_transpose",
     "conv_weight_grad"}
)  # fmt: skip
#: Operators that are a product of matrices.
GEMM_OPERATORS = frozenset({"conv", "conv_transpose", "conv_weight_grad"})
#: Operators that have kernels in the CUDA module.
CUDA_OPERATORS = frozenset({"bce_with_logits", "conv", "conv_transpose", "conv_weight_grad"})
#: Type of the devices that have Triton's and CUDA's kernels.
GPU = "cuda"
_DEVICE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_context: ContextVar[str | None] = ContextVar("gan_fast_backend", default=None)


class _Traced:
    """The name that ``use_backend`` set last, as a plain attribute: torch.compile cannot trace a ContextVar, but guards
    on an attribute and compiles anew when it changes."""

    name: str | None = None


_traced = _Traced()


# --------------------------------------------------------------------------------------------- the compiled modules


class _Extension:
    """The one attempt to import a compiled module: made on first use, never at import of the package.

    ``otherwise``: what stands in for it. ``build``: the command that makes it in a clone.
    """

    def __init__(
        self,
        name: str = "gan_fast._C",
        otherwise: str = "operators run on PyTorch",
        build: str = "python setup.py build_ext --inplace",
    ) -> None:
        self.name, self.otherwise, self.build = name, otherwise, build
        self.tried = False
        self.module: ModuleType | None = None
        self.error: str | None = None

    def load(self) -> ModuleType | None:
        if not self.tried:
            self.tried = True
            try:
                # After torch (imported above), so that both share one OpenMP runtime and its pool of threads.
                module = importlib.import_module(self.name)
            except ImportError as error:  # also covers a binary that the loader refuses (wrong Python, missing symbol)
                self.error = f"{type(error).__name__}: {error}"
                logger.info("%s is not available, %s (%s)", self.name, self.otherwise, self.error)
            else:
                self.error = _foreign(module, self.build)
                if self.error is None:
                    self.module = module
                else:
                    logger.warning("%s: %s", self.otherwise, self.error)
        return self.module


def _foreign(module: ModuleType, build: str) -> str | None:
    """Why the compiled module must not be used with this package, or None: one left behind by another version takes
    other arguments, or computes what was since corrected."""
    built = module.build_info().get("version")
    if built == __version__:
        return None
    made = f"version {built}" if built else "an unknown version"
    return (
        f"{module.__file__} was built for {made} of gan_fast, this is {__version__}; "
        f"install gan_fast again, or in a clone run: {build}"
    )


#: How the CUDA module comes into being.
_CUDA_BUILD = "GAN_FAST_CUDA=1 python setup.py build_ext --inplace"
_extension = _Extension()
_cuda_extension = _Extension("gan_fast._cuda", "backend 'cuda' cannot run", _CUDA_BUILD)


def extension() -> ModuleType | None:
    """The compiled module ``gan_fast._C``, or None where it is absent (:func:`extension_error` says why)."""
    return _extension.module if _extension.tried else _extension.load()


def extension_error() -> str | None:
    """Why :func:`extension` is None: the import error's text; None if the module loaded."""
    extension()
    return _extension.error


def cuda_extension() -> ModuleType | None:
    """The compiled module ``gan_fast._cuda``, or None where it is absent (:func:`cuda_extension_error` says why)."""
    return _cuda_extension.module if _cuda_extension.tried else _cuda_extension.load()


def cuda_extension_error() -> str | None:
    """Why :func:`cuda_extension` is None, as :func:`extension_error`."""
    cuda_extension()
    return _cuda_extension.error


def instruction_level() -> str | None:
    """The level that the compiled kernels run at: "amx_bf16", "avx512_bf16", "avx512", "avx2" or "portable"; None
    without them."""
    module = extension()
    return None if module is None else module.isa()


def table_hash(device: str = "cpu") -> str:
    """Identity of the tables that decide on this type of device, shipped rules and cells of this machine; part of a
    checkpoint."""
    return choice_table.table_hash(None if device == GPU else instruction_level(), device == GPU)


def uses_tf32(dtype: torch.dtype) -> bool:
    """Whether a GPU rounds the operands of products in ``dtype`` to TF32, as torch's setting for convolutions says."""
    if dtype != torch.float32:
        return False
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]  # made at run time by torch


def circumstances(on_gpu: bool) -> tuple[object, ...]:
    """What a choice depends on beside the call."""
    return (uses_tf32(torch.float32),) if on_gpu else (extension(), torch.get_num_threads())


def available() -> dict[str, tuple[bool, str]]:
    """Every backend's name -> (can it run here, the reason or a description)."""
    module = extension()
    if module is None:
        cpu = (False, f"the compiled module gan_fast._C is not available ({extension_error()})")
    else:
        cpu = (True, f"compiled kernels, instruction level {module.isa()}")
    gemm = (True, "products of matrices by PyTorch's BLAS between compiled kernels") if cpu[0] else cpu
    return {
        "reference": (True, "plain PyTorch, any device and dtype"),
        "cpu": cpu,
        "gemm": gemm,
        "triton": _triton(),
        "cuda": _cuda(),
    }


@functools.cache
def _triton_is_installed() -> bool:
    """Whether triton could be imported; importing it takes long, and only a first kernel needs it."""
    return importlib.util.find_spec("triton") is not None


def triton_is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on CPU tensors, for proof (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _triton() -> tuple[bool, str]:
    """Whether the Triton kernels can run here, and why (not)."""
    if not _triton_is_installed():
        return False, "triton is not installed (Linux: pip install gan-fast[triton])"
    if triton_is_interpreted():
        return True, "Triton's interpreter, on CPU tensors, for proof"
    if not torch.cuda.is_available():
        return False, "no CUDA device (TRITON_INTERPRET=1 runs the kernels on CPU tensors, slowly, for proof)"
    return True, "Triton kernels for CUDA tensors; unproven on a device, hence by name or after gan-fast tune only"


def _cuda() -> tuple[bool, str]:
    """Whether the CUDA C++ kernels can run here, and why (not)."""
    if cuda_extension() is None:
        return False, f"not built ({cuda_extension_error()}); with CUDA's nvcc, in a clone: {_CUDA_BUILD}"
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    return (
        True,
        "CUDA C++ kernels of a few operators; unproven on a device, hence by name or after gan-fast tune only",
    )


def empty_cache() -> None:
    """Give the blocks that wait in the kernels' memory pool back to the system; those in use stay."""
    module = extension()
    if module is not None:
        module.empty_cache()


# ------------------------------------------------------------------------------------------- what the user asks for


def check_name(name: str, argument: str = "backend") -> str:
    """``name`` if it is one of :data:`BACKENDS`, else ValueError with the valid names."""
    if name in BACKENDS:
        return name
    near = difflib.get_close_matches(str(name), BACKENDS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{argument}: unknown backend {name!r}, expected one of {', '.join(BACKENDS)}{hint}")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the ``with`` block (this thread, this asyncio task) operators run on backend ``name``.

    The name holds for the backward pass of what was computed inside, wherever that pass runs. An explicit name is
    strict: what it cannot run raises RuntimeError. ``"auto"`` undoes an outer ``use_backend`` or GAN_FAST_BACKEND.
    Put it around a compiled function, not inside one (inside, use the ``backend=`` argument).
    """
    token = _context.set(check_name(name, "use_backend"))
    previous, _traced.name = _traced.name, name
    try:
        yield
    finally:
        _context.reset(token)
        _traced.name = previous


def requested(backend: str | None = None) -> str:
    """The backend asked for, by the order argument, ``use_backend``, GAN_FAST_BACKEND, "auto"."""
    if backend is not None:
        return check_name(backend)
    name = _traced.name if torch.compiler.is_compiling() else _context.get()
    if name is not None:
        return name
    name = _Environment.name
    return check_name(name, "GAN_FAST_BACKEND") if name else "auto"


class _Environment:
    """GAN_FAST_BACKEND, read once: the environment is too slow to be asked for every layer of every step."""

    name = os.environ.get("GAN_FAST_BACKEND") or None


def read_environment() -> None:
    """Take notice of a GAN_FAST_BACKEND that has changed since the import."""
    _Environment.name = os.environ.get("GAN_FAST_BACKEND") or None


def is_automatic() -> bool:
    """Whether nobody asked for a backend by name."""
    name = _context.get()
    return _Environment.name is None if name is None else name == "auto"


def check_environment() -> None:
    """Refuse a GAN_FAST_BACKEND, ``use_backend`` or GAN_FAST_CPU_ISA that nothing here can follow, before any operator
    meets it in a place where the error would look like another one.

    Raises:
        ValueError: a name that does not exist, or an instruction level that this CPU does not have.
        RuntimeError: a backend that cannot run here at all.
    """
    read_environment()
    name = requested()
    module = extension()
    if module is not None:
        module.isa()  # reads GAN_FAST_CPU_ISA, and names it in its error
    if name == "auto":
        return
    found = available()
    if not found[name][0]:
        source = "use_backend" if _context.get() is not None else "GAN_FAST_BACKEND"
        usable = ", ".join(["auto", *(other for other, (ok, _) in found.items() if ok)])
        raise RuntimeError(f"{source}: backend {name!r} cannot run here ({found[name][1]}); expected one of {usable}")


# ------------------------------------------------------------------------------------------------------- the choice


def refusal(op: str, backend: str, *, device: str, dtype: torch.dtype, rank: int | None = None) -> str | None:
    """Why ``backend`` cannot run a call of ``op`` at all, or None if it can. ``rank``: spatial dimensions of a
    convolution."""
    if backend in ("reference", "torch"):
        return None
    on_cpu = backend in ("cpu", "gemm")
    ok, reason = (True, "") if on_cpu and extension() is not None else available()[backend]
    if not ok:
        return reason
    kernels = {"triton": "Triton", "cuda": "CUDA", "gemm": "gemm"}.get(backend, "CPU")
    if backend == "cuda" and op not in CUDA_OPERATORS:
        return f"there are CUDA kernels of {', '.join(sorted(CUDA_OPERATORS))} only"
    home = "cpu" if on_cpu or (backend == "triton" and triton_is_interpreted()) else "cuda"
    if device != home:
        return f"the {kernels} kernels need tensors on {home.replace('cpu', 'the CPU')}, got device {device!r}"
    if not on_cpu:
        if dtype not in _DEVICE_DTYPES:
            return f"the {kernels} kernels take float32, bfloat16 and float16, got {dtype}"
    elif dtype not in (torch.float32, torch.float64) and (backend == "gemm" or not _takes_bfloat16(op, dtype)):
        words = "float32 and bfloat16" if backend == "cpu" and op in BFLOAT16_OPERATORS else "float32"
        return f"the {kernels} kernels of {op} take {words} (and float64, for proof), got {dtype}"
    if rank is not None and rank not in (1, 2):
        return f"the {kernels} kernels do 1-D and 2-D convolutions, got {rank}-D"
    return None


def _takes_bfloat16(op: str, dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and op in BFLOAT16_OPERATORS


@functools.cache
def _log_once(op: str, reason: str) -> None:
    """One line in the log for each operator and reason why PyTorch serves what the kernels might have."""
    logger.info("%s runs on PyTorch: %s", op, reason)


def question(*, device: str, dtype: torch.dtype, rank: int | None = None, **facts: Any) -> dict[str, Any]:
    """An operator's facts in the form in which the tables are asked."""
    return {"rank": rank, **facts, **choice_table.dtype_facts(dtype, device == GPU and uses_tf32(dtype))}


def choose(
    op: str,
    *,
    backend: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    rank: int | None = None,
    **facts: Any,
) -> Choice:
    """Which backend serves a call of operator ``op``, and why.

    ``backend``: what was asked for (None: see :func:`requested`). An explicit one that cannot run raises RuntimeError;
    "auto" answers "torch" where the kernels cannot run or the table says that PyTorch is faster, and on a GPU for
    everything that was not measured there.
    """
    name = requested(backend)
    if name == "gemm" and op not in GEMM_OPERATORS:
        name = "cpu"
    if name != "auto":
        why_not = refusal(op, name, device=device, dtype=dtype, rank=rank)
        if why_not is not None:
            raise RuntimeError(
                f"backend {name!r} was asked for by name and cannot run {op}: {why_not}. "
                "Use backend 'auto' to let PyTorch serve what it cannot."
            )
        return Choice(name, "asked for by name")
    asked = question(device=device, dtype=dtype, rank=rank, **facts)
    if device == GPU:
        return choice_table.decide_on_gpu(op, asked)
    if dtype != torch.float32 and not _takes_bfloat16(op, dtype):
        words = "float32 and bfloat16" if op in BFLOAT16_OPERATORS else "float32"
        return Choice("torch", f"{dtype} is served by PyTorch, the CPU kernels of {op} are for {words}")
    why_not = refusal(op, "cpu", device=device, dtype=dtype, rank=rank)
    if why_not is not None:
        _log_once(op, why_not)
        return Choice("torch", why_not)
    return choice_table.decide(op, asked, instruction_level())
