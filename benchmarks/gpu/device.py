"""Tensors, precisions and clocks on the device that is measured; the CPU stands in for it in the dry run."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan_fast.precision import WORDS, autocast_dtype, float32_products

from . import ROOT

#: Precision -> the type that tensors have in it.
DTYPES = {word: autocast_dtype(word) or torch.float32 for word in WORDS}
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run was asked for.

    Attributes:
        device: "cuda" or "cpu".
        tiny: sizes for a dry run, where no time means anything.
        out: folder of the results.
    """

    device: str
    tiny: bool
    out: Path

    @property
    def cuda(self) -> bool:
        """Whether there is a device to wait for."""
        return self.device == "cuda"

    @property
    def precisions(self) -> tuple[str, ...]:
        """Most important first; a CPU has no TF32."""
        return ("bf16", "tf32", "fp32") if self.cuda else ("bf16", "fp32")


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one run.

    Attributes:
        seconds: the median.
        quartiles: lower and upper.
        how: "graph" (many runs captured and replayed: the device's time alone), "events" or "clock" (with the gaps that
            starting kernels one by one leaves).
    """

    seconds: float
    quartiles: tuple[float, float]
    how: str

    def fields(self) -> dict[str, Any]:
        """For a row."""
        return {"seconds": self.seconds, "quartiles": list(self.quartiles), "how": self.how}


def identity(settings: Settings, commit: str) -> dict[str, Any]:
    """What results must share to be in one file."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton_version()}
    name = platform.processor() or platform.machine()
    if settings.cuda:
        name = torch.cuda.get_device_name()
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {
        "device": name + (" (dry run)" if settings.tiny else ""),
        "versions": versions,
        "commit": commit,
        "source": source_hash(),
        "tiny": settings.tiny,
    }


def triton_version() -> str | None:
    """Of the triton that is installed."""
    import importlib.metadata

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("triton")
    return None


def source_hash() -> str:
    """Of everything that a figure depends on: the commit alone does not tell of changes that are not committed."""
    digest = hashlib.sha256()
    for folder in ("gan_fast", "benchmarks", "csrc"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".h", ".cu"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def prepare(settings: Settings) -> None:
    """Set a worker's process up: benchmark mode of cuDNN, and one stream for everything that is captured."""
    torch.manual_seed(0)
    if not settings.cuda:
        torch.set_num_threads(1)
        return
    torch.backends.cudnn.benchmark = True
    # Graphs are captured on the stream that the forward pass was recorded on, since backward passes run there.
    torch.cuda.set_stream(torch.cuda.Stream())


def precision(name: str) -> contextlib.AbstractContextManager[None]:
    """float32 products by TF32 within the block if `name` is "tf32", exact otherwise. Nothing else is changed."""
    return float32_products(name, "cuda")


def few_programs(settings: Settings) -> contextlib.AbstractContextManager[None]:
    """In a dry run one large tile for every matrix product, since the interpreter pays by the program."""
    from gan_fast.ops import _triton

    return _triton.tile(_triton.Tile(512, 256, 256, 4, 1)) if settings.tiny else contextlib.nullcontext()


def normal(settings: Settings, shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Tensor:
    """float32 numbers on the device, always the same there."""
    generator = torch.Generator(settings.device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=settings.device) * scale


def lay(tensor: Tensor, layout: str) -> Tensor:
    """A 4-D tensor in a memory format of FORMATS; others as they are."""
    return tensor.contiguous(memory_format=FORMATS[layout]) if tensor.dim() == 4 else tensor


def synchronise(settings: Settings) -> None:
    """Wait for the device; an error of a kernel is raised here."""
    if settings.cuda:
        torch.cuda.synchronize()


def tidy(settings: Settings) -> None:
    """Give memory back before something large."""
    gc.collect()
    if settings.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(settings: Settings) -> int | None:
    """Bytes that tensors took at most since `tidy`."""
    return torch.cuda.max_memory_allocated() if settings.cuda else None


def held_memory(settings: Settings) -> tuple[int, int]:
    """Bytes in tensors, and bytes that PyTorch holds for them; zeros without a device."""
    return (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) if settings.cuda else (0, 0)


@contextlib.contextmanager
def no_waiting(settings: Settings) -> Iterator[None]:
    """An operation within the block that waits for the device is an error."""
    if not settings.cuda:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _summary(times: list[float], how: str) -> Timing:
    if len(times) < 2:
        return Timing(times[0], (times[0], times[0]), how)
    lower, median, upper = statistics.quantiles(times, n=4)
    return Timing(median, (lower, upper), how)


def _on_clock(run: Callable[[], Any], count: int) -> Timing:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return _summary(times, "clock")


def _events(run: Callable[[], Any], count: int, each: int, how: str) -> Timing:
    """Times of `count` runs by events on the device; a run stands for `each`."""
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for begin, end in marks:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return _summary([begin.elapsed_time(end) / 1e3 / each for begin, end in marks], how)


def capture(run: Callable[[], Any], times: int = 1) -> torch.cuda.CUDAGraph:
    """`times` runs as one graph; the run has been warmed up before."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(times):
            run()
    return graph


def kernel_time(run: Callable[[], Any], settings: Settings, budget: float = 0.03) -> Timing:
    """The device's own time for a run, which must not wait for the device; warm caches."""
    if not settings.cuda:
        return _on_clock(run, 2)
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    single = max(_events(run, 3, 1, "events").seconds, 1e-6)
    each = max(1, min(50, math.ceil(5e-4 / single)))
    count = max(5, min(40, math.ceil(budget / (single * each))))
    try:
        graph = capture(run, each)
    except RuntimeError as error:
        if "captur" not in str(error).lower():
            raise
        return _events(run, count, 1, "events")
    for _ in range(2):
        graph.replay()
    return _events(graph.replay, count, each, "graph")


def step_time(run: Callable[[], Any], settings: Settings, budget: float = 0.4) -> Timing:
    """Wall time of a run among others back to back, as a training loop has it."""
    if not settings.cuda:
        return _on_clock(run, 1)
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    single = time.perf_counter() - start
    each = max(2, min(50, math.ceil(budget / 5 / single)))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(each):
            run()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / each)
    return _summary(times, "clock")
