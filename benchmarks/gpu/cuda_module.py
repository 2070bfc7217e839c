"""The CUDA C++ module on the device: its kernels against float64, repeated, captured, watched; their times.

Everything goes by the backend's name "cuda", which is strict: what its kernels cannot run raises.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import ConvCase, conv_case
from torch import Tensor

from gan_fast.suite.shapes import SHAPES, LayerShape

from . import ROOT, build
from .device import DTYPES, Settings, capture, kernel_time, precision
from .journal import Row, row
from .kernels import CASES, REPEATS, calls_of, compare, elementwise_calls, flat, same
from .layers import PASSES, by_operators, cost, problem
from .tasks import Task
from .verdicts import raw_kernels

STAGE, FIGURES = "check cuda", "cuda"
#: Channels that the convolutions' kernels have on one side.
FEW = 4
#: Seconds that a check waits for the build that runs beside the first measurements.
PATIENCE = 90.0
SANITIZED = "initcheck", "memcheck", "racecheck"
Calls = dict[str, tuple[Callable[..., Any], dict[str, Tensor | None]]]


def missing(settings: Settings) -> str | None:
    """Why the kernels cannot run here, or None."""
    from gan_fast import backends

    end = time.monotonic() + PATIENCE
    while build.running(settings.out, "CUDA module").exists() and time.monotonic() < end:
        time.sleep(0.5)
    usable, reason = backends.available()["cuda"]
    return None if usable else reason


def few_cases(settings: Settings) -> list[ConvCase]:
    """The tests' cases that these kernels take (their values and gradients), and larger ones with tails."""
    found = [c for c in CASES if c.geometry.groups == 1 and c.weight[0] <= FEW and c.rank < 3]
    n = 1 if settings.tiny else 64
    return [
        *found,
        conv_case("article_to_one", (n, 128, 28, 28), (1, 128, 7, 7), pad=3, layout="channels_last", activation="tanh"),
        conv_case("rgb_k7", (n, 64, 64, 64), (3, 64, 7, 7), pad=3, layout="channels_last", activation="tanh"),
        conv_case("wide_k9", (2, 40, 16, 500), (2, 40, 9, 9), pad=4, layout="channels_last"),
    ]


def problems(settings: Settings, which: str) -> Calls:
    """The calls of "conv" or "bce", by name."""
    if which == "conv":
        every = [(c, calls_of(c, settings)) for c in few_cases(settings)]
        return {f"{c.op} {c.name} {kind}": call for c, calls in every for kind, call in calls.items()}
    made = {**elementwise_calls(settings), **_large_losses(settings)}
    return {what: call for what, call in made.items() if what.startswith("bce")}


def _large_losses(settings: Settings) -> Calls:
    """Losses of more than one block, as a discriminator of patches has them."""
    large = elementwise_calls(settings)["bce_with_logits mean"]
    many = {key: None if t is None else t.repeat(1 if settings.tiny else 4097) for key, t in large[1].items()}
    return {"bce_with_logits of patches": (large[0], many)}


def checked(settings: Settings, name: str, which: str) -> list[Row]:
    """The kernels against float64."""
    reason = missing(settings)
    if reason is not None:
        return [row(f"CUDA module, {which}", check="unchecked", dtype=name, state="not built", reason=reason)]
    rows = []
    for what, (call, tensors) in problems(settings, which).items():
        verdict = compare(call, tensors, name, "cuda")
        rows.append(row(f"cuda {which} {what}", check=verdict.check, dtype=name, **verdict.fields()))
    return rows


def repeated(settings: Settings, name: str, which: str) -> list[Row]:
    """The same bits again and again, beside another stream's work, and as a captured graph that is replayed."""
    reason = missing(settings)
    if reason is not None:
        return [row(f"CUDA module, {which}, repeats", check="unchecked", dtype=name, state="not built", reason=reason)]
    rows = []
    aside, noise = torch.cuda.Stream(), torch.zeros(1 << 22, device=settings.device)
    for what, (call, tensors) in problems(settings, which).items():
        given = {key: None if t is None else t.to(DTYPES[name]) for key, t in tensors.items()}
        with torch.no_grad(), precision(name), raw_kernels():
            first = [t.clone() for t in flat(call("cuda", **given))]
            different = 0
            for turn in range(1, REPEATS):
                if turn % 2:
                    with torch.cuda.stream(aside):
                        noise.mul_(1.0)
                different += not same(first, flat(call("cuda", **given)))
            kept: list[Tensor] = []
            graph = capture(lambda call=call, given=given, kept=kept: kept.extend(flat(call("cuda", **given))))
            for _ in range(3):
                graph.replay()
                different += not same(first, kept)
        check = "red" if different else "green"
        more = {"reason": f"{different} of {REPEATS} runs and 3 replays gave other bits"} if different else {}
        rows.append(row(f"cuda {which} {what}, {REPEATS} runs, graph", check=check, dtype=name, **more))
    return rows


def module(settings: Settings) -> list[Row]:
    """What the module is, and whether there is something to check it with."""
    facts = {name: shutil.which(name) is not None for name in ("nvcc", "compute-sanitizer")}
    reason = missing(settings)
    if reason is not None:
        return [row("CUDA module", check="unchecked", state="not built", reason=reason, **facts)]
    from gan_fast import backends

    return [row("CUDA module", check="green", built=backends.cuda_extension().build_info(), **facts)]  # type: ignore[union-attr]  # missing() has seen it


def sanitized(settings: Settings, tool: str) -> list[Row]:
    """A few calls of each kernel under a tool of compute-sanitizer, in a process of its own."""
    what = f"cuda {tool}"
    program = shutil.which("compute-sanitizer")
    reason = "no compute-sanitizer here" if program is None else missing(settings)
    if reason is not None:
        return [row(what, check="unchecked", state="skipped", reason=reason)]
    command = [str(program), "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "gpu.cuda_module"]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, timeout=100)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode not in (0, 9):
        return [row(what, check="unchecked", state="failed", reason=" ".join(lines[-2:])[:300])]
    check = "red" if done.returncode else "green"
    return [row(what, check=check, **({"reason": " ".join(lines[:3])[:300]} if done.returncode else {}))]


def layer_shapes(settings: Settings) -> list[LayerShape]:
    """The suite's layers with few output channels; a dry run has one."""
    found = [s for s in SHAPES if s.op == "conv" and s.out_channels <= FEW and s.rank == 2]
    return [dataclasses.replace(found[0], batch=2)] if settings.tiny else found


def figure(shape: LayerShape, settings: Settings, name: str) -> list[Row]:
    """Times of a layer's three passes."""
    rows = []
    with precision(name), raw_kernels():
        calls = by_operators(shape, problem(shape, settings, name, "channels_last"), "cuda")
        for which in PASSES:
            timing = kernel_time(calls[which], settings)
            facts = {"layer": shape.name, "family": shape.family, "pass": which, "program": "cuda"}
            rows.append(
                row(f"{shape.name} {which} cuda", check="green", dtype=name, batch=shape.batch, **timing.fields(),
                    **facts, **cost(shape, name))
            )  # fmt: skip
    return rows


def tasks(settings: Settings) -> list[Task]:
    """All of it."""
    found = [Task("cuda/module", STAGE, 1, partial(module, settings))]

    def add(key: str, rank: int, run: Callable[[], Sequence[Row]], name: str | None, estimate: float) -> None:
        found.append(Task(key, STAGE, rank, run, estimate=estimate, limit=120.0, what=key, dtype=name))

    for name in (*settings.precisions, "fp16"):
        for which in ("conv", "bce"):
            if which == "bce" and name == "tf32":
                continue  # no matrix product
            add(f"check/cuda {which}/{name}", 2, partial(checked, settings, name, which), name, 3.0)
            add(f"check/cuda {which} repeats/{name}", 2, partial(repeated, settings, name, which), name, 5.0)
    for tool in SANITIZED:
        add(f"check/cuda sanitizer/{tool}", 3, partial(sanitized, settings, tool), None, 30.0)
    for shape in layer_shapes(settings):
        for name in settings.precisions:
            needs = (f"check/cuda conv/{name}", f"check/cuda conv repeats/{name}")
            run = partial(figure, shape, settings, name)
            key = f"cuda/{shape.name}/{name}"
            found.append(Task(key, FIGURES, 2, run, needs=needs, what=key, dtype=name, batch=shape.batch))
    return found


def main() -> None:
    """What compute-sanitizer watches: every kind of product, small."""
    settings = Settings("cuda", True, Path("."))
    for name in ("bf16", "fp16", "tf32", "fp32"):
        for which in ("conv", "bce"):
            for call, tensors in problems(settings, which).values():
                given = {key: None if t is None else t.to(DTYPES[name]) for key, t in tensors.items()}
                with torch.no_grad(), precision(name), raw_kernels():
                    call("cuda", **given)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
