"""In which precision layers compute: the words, and what each of them switches in PyTorch.

========  =================================================  ====================================================
word      convolutions and matrix products                   the rest
========  =================================================  ====================================================
``fp32``  fp32, never rounded                                fp32
``tf32``  fp32 operands rounded to TF32 (CUDA only)          fp32
``bf16``  bfloat16 operands, added up in fp32                as autocast has it: parameters, their gradients and
``fp16``  float16 operands, added up in fp32 (CUDA only)     losses are fp32, images between layers have 16 bits
========  =================================================  ====================================================

Two mechanisms of PyTorch stand behind them, and :func:`precision` is both at once: :func:`autocast` for the 16-bit
words, :func:`float32_products` for what may become of fp32 operands. A tensor's own dtype is never overruled: what is
given in bfloat16 comes out in bfloat16, under every word.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gan_fast.words import near

__all__ = ["WORDS", "autocast", "autocast_dtype", "check", "float32_products", "precision"]

WORDS = ("fp32", "bf16", "tf32", "fp16")
_CUDA_ONLY = ("tf32", "fp16")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def precision(word: str, device: str | torch.device | None = None) -> contextlib._GeneratorContextManager[None]:
    """Within the ``with`` block, or the function that it decorates, layers compute in this precision.

    ::

        with gan_fast.precision("bf16"):
            fakes = generator(z)

        @gan_fast.precision("fp32")
        def penalty(discriminator, images): ...

    It counts for PyTorch's operations as for gan_fast's, within ``torch.compile`` too; blocks nest, the innermost
    holds, and what was before holds again afterwards. What the forward pass computed in 16 bits, its backward pass
    does, wherever it runs; whether fp32 operands may be rounded is asked when an operation runs, so let ``backward()``
    be inside such a block. Unlike in a bare ``torch.autocast`` no copies of parameters are kept: whole training steps
    may stand inside.

    Args:
        word: "fp32" (this also ends an autocast around it), "bf16" (autocast; parameters, their gradients and losses
            stay fp32), and on CUDA "tf32" and "fp16" (autocast; scale the loss with torch.amp.GradScaler).
        device: "cpu" or "cuda", to leave the other alone. Without it the word is for both, as far as they are there:
            beside "fp16" or "tf32" on CUDA, the CPU computes in fp32.

    Autocast is the calling thread's alone. PyTorch's switches for fp32 operands are the process's: where several
    threads are in blocks with different ones, the block that was entered last decides.

    Raises:
        ValueError: an unknown word, or one that the device, or this machine, does not have.
    """
    kinds = _kinds(device)
    check(word, kinds[-1])
    return _within(word, kinds)


def check(word: object, device: str | None = None) -> None:
    """Refuse what is none of `WORDS`, or not for this type of device; None: for some device."""
    if word not in WORDS:
        raise ValueError(f"precision={word!r} is unknown; {near(word, WORDS)}")
    if word in _CUDA_ONLY and device not in ("cuda", None):
        raise ValueError(f"precision={word!r} needs a CUDA device, not {device!r}; expected 'fp32' or 'bf16'")


def autocast_dtype(word: str) -> torch.dtype | None:
    """The 16-bit type of a word, or None."""
    return _AUTOCAST.get(word)


def autocast(word: str, device: str) -> torch.autocast:
    """PyTorch's autocast on this type of device as the word has it; for fp32 and tf32 autocast is off.

    Its copies of parameters would outlive an optimiser's step inside the block, hence none are kept.
    """
    dtype = None if device == "cpu" and word in _CUDA_ONLY else autocast_dtype(word)
    return torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=False)


@contextlib.contextmanager
def _within(word: str, kinds: tuple[str, ...]) -> Iterator[None]:
    # A generator, and not a class: torch.compile traces the one and not the other.
    with (
        autocast(word, kinds[0]),
        autocast(word, kinds[1]) if len(kinds) > 1 else contextlib.nullcontext(),
        float32_products(word, *kinds),
    ):
        yield


def _kinds(device: str | torch.device | None) -> tuple[str, ...]:
    if device is None:
        return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    kind = str(device).partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu', 'cuda' or None (both), got {str(device)!r}")
    return (kind,)


# ------------------------------------------------------------------------------------------------ what becomes of fp32

#: Type of device -> PyTorch's switches that let its libraries round fp32 operands: attributes of torch.backends.
_SWITCHES = {
    "cpu": ("mkldnn.conv", "mkldnn.matmul", "mkldnn.rnn"),
    "cuda": ("cudnn.conv", "cudnn.rnn", "cuda.matmul"),
}
_EXACT = ("ieee", "none")


def _switch(name: str) -> Any:
    library, operation = name.split(".")
    return getattr(getattr(torch.backends, library), operation)  # made at run time by torch


def _wanted(word: str, kind: str) -> tuple[str, ...]:
    """The settings of a device's switches under which the word holds; the first is the one to set."""
    return ("tf32",) if word == "tf32" and kind == "cuda" else _EXACT


@torch.compiler.assume_constant_result
def _agree(word: str, kinds: tuple[str, ...]) -> bool:
    """Whether nothing has to be switched. Under torch.compile this is asked while it compiles, for it cannot trace the
    switches."""
    return all(
        _switch(name).fp32_precision in _wanted(word, kind) for kind in kinds for name in _SWITCHES.get(kind, ())
    )


@contextlib.contextmanager
def float32_products(word: str, *kinds: str) -> Iterator[None]:
    """Within the block fp32 operands on these types of devices are multiplied as the word has it: rounded to TF32 for
    "tf32" on CUDA, exactly for all others, whatever PyTorch was allowed outside.

    The switches are the process's. Threads may leave in another order than they came: what was before the first holds
    again after the last.
    """
    if _agree(word, kinds):
        yield
        return
    with _lock:
        block = _Block(kinds)
        block.switch(word)
        _blocks.append(block)
    try:
        yield
    finally:
        with _lock:
            index = _blocks.index(block)
            _blocks.remove(block)
            if index == len(_blocks):
                block.restore()
            else:  # another thread's block came later and is still in force: it ends in what was before this one
                _blocks[index].follow(block)


_lock = threading.Lock()
_blocks: list[_Block] = []


class _Block:
    """A `float32_products` that some thread is in, and the switches as they were before it.

    On CUDA there is an older kind of switch beside the newer one. PyTorch refuses to tell it while the two contradict
    each other, and torch.compile asks for it: so both are kept in step, unless they were out of step before.
    """

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.kinds = kinds
        self.newer = {name: str(_switch(name).fp32_precision) for kind in kinds for name in _SWITCHES.get(kind, ())}
        self.older: dict[str, Any] = {}
        for name, (tell, _) in _OLDER.items() if "cuda" in kinds else ():
            with contextlib.suppress(RuntimeError):  # out of step
                self.older[name] = tell()

    def switch(self, word: str) -> None:
        """Set all as the word has it."""
        tf32 = word == "tf32"
        for name in self.older:
            _OLDER[name][1](("high" if tf32 else "highest") if name == "matmul" else tf32)
        for kind in self.kinds:
            for name in _SWITCHES.get(kind, ()):
                _switch(name).fp32_precision = _wanted(word, kind)[0]

    def restore(self) -> None:
        """Set all as they were."""
        for name, value in self.older.items():
            _OLDER[name][1](value)
        for name, value in self.newer.items():
            switch = _switch(name)
            switch.fp32_precision = "none"  # if it followed the setting for all operations, it goes on following
            if switch.fp32_precision != value:
                switch.fp32_precision = value

    def follow(self, other: _Block) -> None:
        """Take over what was before a block that was entered earlier, and has been left."""
        self.kinds = tuple(dict.fromkeys((*self.kinds, *other.kinds)))
        self.newer |= other.newer
        self.older |= other.older


def _allow_cudnn(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed


#: The older switches of CUDA: how they are told, and set.
_OLDER: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "matmul": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "cudnn": (lambda: torch.backends.cudnn.allow_tf32, _allow_cudnn),
}
