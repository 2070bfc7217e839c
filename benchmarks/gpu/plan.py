"""Every task of the suite: its importance, what must be green before it, and the phases they come in.

PyTorch's own figures come first: they are worth having even where our kernels fail. Then the checks, in several
processes, since most of their time is the compiler's; then our figures; at last whatever there was no time for.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial

from gan_fast.suite.shapes import SHAPES, LayerShape

from . import ceilings, cuda_module, graph_checks, kernels, layers, steps, trace, tuned
from .device import Settings
from .journal import Row
from .tasks import Phase, Task

#: Batches of the article's and DCGAN's layers beyond those of shapes.py, which are a CPU's.
GPU_BATCHES = {"article_g": (1024,), "article_d": (1024,), "dcgan64": (512,)}
#: (family, batch) -> importance of its layers; the others' is 4.
LAYER_RANKS = {
    ("article_g", 128): 1, ("article_d", 128): 1, ("article_g", 1024): 2, ("article_d", 1024): 2, ("dcgan64", 64): 2,
    ("article_g", 64): 3, ("article_d", 64): 3, ("dcgan64", 512): 3,
}  # fmt: skip
#: Layers that a network's step stands on: their kernels must be green before its speed is told.
LAYERS_OF = {"article": (("article_g", 128), ("article_d", 128)), "dcgan64": (("dcgan64", 64),)}
TINY_SHAPES = (
    LayerShape("article_g", "conv_transpose", 4, 4, (5, 5), 2, 2, 1, (3, 3), 128),
    LayerShape("article_d", "conv", 1, 4, (3, 3), 2, 1, 0, (6, 6), 128),
    LayerShape("dcgan64", "conv", 3, 4, (4, 4), 2, 1, 0, (8, 8), 64),
    LayerShape("pytorch_gan", "upsample_conv", 4, 3, (3, 3), 1, 1, 0, (4, 4), 64),
    LayerShape("wavegan", "conv", 2, 3, (5,), 2, 2, 0, (16,), 64),
)
#: Pillow, safetensors and tqdm it does without, as long as nothing is drawn, saved or shown.
NO_TRAINER = "the Trainer needs numpy, which is not installed here"
#: Precisions of the tests' cases, which come in one of them each before any comes in a second.
CHECKED = ("bf16", "tf32", "fp32", "fp16")


def shapes(settings: Settings) -> list[LayerShape]:
    """The layers, most important first."""
    if settings.tiny:
        return [dataclasses.replace(shape, batch=2) for shape in TINY_SHAPES]
    found = list(SHAPES)
    for family, batches in GPU_BATCHES.items():
        base = [shape for shape in SHAPES if shape.family == family]
        base = [shape for shape in base if shape.batch == max(s.batch for s in base)]
        found += [dataclasses.replace(shape, batch=batch) for batch in batches for shape in base]
    return sorted(found, key=rank_of)


def rank_of(shape: LayerShape) -> int:
    """Importance of a layer."""
    return LAYER_RANKS.get((shape.family, shape.batch), 4)


def elementwise_dtype(name: str) -> str:
    """TF32 is a matter of matrix products."""
    return "fp32" if name == "tf32" else name


def races(name: str) -> tuple[str, ...]:
    """Keys of the repeated runs in a precision."""
    return f"check/race/conv/{name}", f"check/race/elementwise/{elementwise_dtype(name)}"


def baseline_tasks(settings: Settings) -> list[Task]:
    """PyTorch alone."""
    found = [
        Task(ceilings.COPY, ceilings.STAGE, 0, partial(ceilings.copy, settings)),
        *(
            Task(ceilings.gemm_key(name), ceilings.STAGE, 0, partial(ceilings.gemm, settings, name), dtype=name)
            for name in settings.precisions
        ),
        Task("ceiling/launches", ceilings.STAGE, 0, partial(ceilings.launches, settings)),
    ]
    for network in steps.NETWORKS.values():
        key = f"step/flops/{network.name}"
        found.append(Task(key, "step/torch", 1, partial(steps.flops, network, settings)))
    # Equal importance keeps this order: whole steps before single layers.
    found += step_tasks(settings, steps.PEERS, "step/torch", "torch")
    for shape in shapes(settings):
        layouts = ("channels_last", "NCHW") if shape.rank == 2 else ("NCHW",)
        for turn, name in enumerate(settings.precisions):
            for layout in layouts:
                key = f"layer/torch/{shape.name}/{name}/{layout}"
                run = partial(layers.measure_torch, shape, settings, name, layout)
                rank = rank_of(shape) + (turn if rank_of(shape) > 1 else 0)
                found.append(Task(key, "layer/torch", rank, run, what=key, dtype=name, batch=shape.batch))
    return found


def step_tasks(settings: Settings, programs: Sequence[tuple[int, steps.Program]], stage: str, whose: str) -> list[Task]:
    """Steps of all networks in all batches by these programs."""
    found = []
    for network in steps.NETWORKS.values():
        for place, batch in enumerate((2,) if settings.tiny else steps.BATCHES):
            for rank, program in programs:
                if network.statistics and program.update == "simultaneous":
                    continue  # such a discriminator cannot serve both losses at once
                if settings.tiny and program.precision not in settings.precisions:
                    continue
                if settings.tiny and program.ours and (network.statistics or rank > 1):
                    continue  # the interpreter takes seconds for a step, and several for one of 64x64 images
                # The article before DCGAN, batch 128 before 1024 and 64, those before the others. A compiled program is
                # worth a minute of others' time at the first batches only.
                later = (network.name != "article") + (place + 1) // 2 + (place > 0 and program.compiled is not None)
                key = f"step/{whose}/{network.name}/{batch}/{program.key}"
                slow = {None: (4.0, 60.0), "default": (40.0, 150.0)}.get(program.compiled, (70.0, 280.0))
                needs = program_needs(settings, network, program)
                found.append(
                    Task(
                        key, stage, rank + later, partial(steps.measure, network, program, batch, settings),
                        estimate=1.0 if settings.tiny else slow[0], limit=slow[1], needs=needs,
                        what=f"{network.name} step, {program.name}", dtype=program.precision, batch=batch,
                    )
                )  # fmt: skip
    return found


def program_needs(settings: Settings, network: steps.Network, program: steps.Program) -> tuple[str, ...]:
    """Checks that must be green before a step's speed is told."""
    needs = step_needs(settings, network.name, program.precision) if program.ours else ()
    return (*needs, graph_check(network, program.backend, program.precision)) if program.cuda_graph else needs


def graph_check(network: steps.Network, backend: str | None, name: str) -> str:
    """Key of the check that a graph's steps are those of single operations."""
    return f"check/graph/{network.name}/{backend}/{name}"


def graph_tasks(settings: Settings) -> list[Task]:
    """The Trainer's step as a graph: for every program of its kind, and what else may go wrong."""
    article = steps.NETWORKS["article"]
    programs = [(program.backend, program.precision) for _, program in steps.OURS if program.cuda_graph]
    wanted = [(network, *program) for network in steps.NETWORKS.values() for program in programs]
    wanted += [(article, "auto", name) for name in ("fp32", "fp16")]
    found: list[Task] = []

    def add(key: str, rank: int, run: Callable[[], Sequence[Row]], name: str) -> None:
        if not settings.tiny or name in settings.precisions:
            found.append(Task(key, "check", rank, run, estimate=15.0, limit=150.0, what=key, dtype=name))

    for network, backend, name in wanted:
        run = partial(graph_checks.check_same, network, name, settings, backend)
        add(graph_check(network, backend, name), 1 if network is article else 2, run, name)
    run = partial(graph_checks.check_same, article, "fp32", settings, "auto", "simultaneous")
    add(f"{graph_check(article, 'auto', 'fp32')}/simultaneous", 2, run, "fp32")
    for check in (graph_checks.check_long, graph_checks.check_uploads, graph_checks.check_refusal):
        add(
            f"check/graph/{check.__name__.removeprefix('check_')}",
            2,
            partial(check, article, "fp32", settings, "auto"),
            "fp32",
        )
    return found


def step_needs(settings: Settings, network: str, name: str) -> tuple[str, ...]:
    """Checks that must be green before our step's speed is told."""
    wanted = {family for family, _ in LAYERS_OF[network]} if settings.tiny else LAYERS_OF[network]
    chosen = [s for s in shapes(settings) if (s.family if settings.tiny else (s.family, s.batch)) in wanted]
    checks = [layer_check(shape, name) for shape in chosen]
    return (*races(name), f"check/elementwise/{elementwise_dtype(name)}", *checks)


def layer_check(shape: LayerShape, name: str) -> str:
    """Key of a layer's check."""
    return f"check/layer/{shape.name}/{name}"


def check_tasks(settings: Settings) -> list[Task]:
    """Every kernel against float64."""
    found: list[Task] = []

    def add(key: str, rank: int, run: Callable[[], Sequence[Row]], name: str, estimate: float = 3.0) -> None:
        limit = 120.0
        found.append(Task(key, "check", rank, run, estimate=estimate, limit=limit, what=key, dtype=name))

    for name in settings.precisions:
        for which in ("conv", "elementwise"):
            if which == "conv" or name == elementwise_dtype(name):
                key = f"check/race/{which}/{name}"
                add(key, 1, partial(kernels.check_repeats, settings, name, which), name, estimate=6.0)
        if name == elementwise_dtype(name):
            run = partial(_elementwise, settings, name)
            add(f"check/elementwise/{name}", 1, run, name, estimate=6.0)
    for shape in shapes(settings):
        for turn, name in enumerate(settings.precisions):
            rank = rank_of(shape) + (turn if rank_of(shape) > 2 else 0)
            add(layer_check(shape, name), rank, partial(layers.check_ours, shape, settings, name), name)
    for case in kernels.core_cases(settings)[: 1 if settings.tiny else None]:
        for name in settings.precisions[: 1 if settings.tiny else None]:
            key = f"check/tiles/{case.op}/{case.name}/{name}"
            add(key, 2, partial(kernels.check_tiles, case, settings, name), name, estimate=8.0)
    add("check/tune", 3, partial(tuned.check, settings), "fp32", estimate=30.0)
    small = [case for case in kernels.CASES if case.name in ("k3s2", "few_in")]
    checked = [name for name in CHECKED if name in (*settings.precisions, "fp16")]
    for number, case in enumerate(small if settings.tiny else kernels.CASES):
        for turn, name in enumerate(checked):
            first = (number + turn) % len(checked) == 0
            if settings.tiny and not first:
                continue
            key = f"check/case/{case.op}/{case.name}/{name}"
            add(key, 2 if first else 4, partial(kernels.check_case, case, settings, name), name)
    return found


def _elementwise(settings: Settings, name: str) -> list[Row]:
    rows = kernels.check_elementwise(settings, name, large=False)
    return rows if settings.tiny else [*rows, *kernels.check_elementwise(settings, name, large=True)]


def our_tasks(settings: Settings) -> list[Task]:
    """Our kernels, where the checks are green."""
    found = step_tasks(settings, steps.OURS, "step/ours", "ours")
    for shape in shapes(settings):
        for turn, name in enumerate(settings.precisions):
            key = f"layer/ours/{shape.name}/{name}"
            rank = rank_of(shape) + (turn if rank_of(shape) > 1 else 0)
            needs = (layer_check(shape, name), races(name)[0])
            run = partial(layers.measure_ours, shape, settings, name)
            found.append(Task(key, "layer/ours", rank, run, needs=needs, what=key, dtype=name, batch=shape.batch))
    article, batch = steps.NETWORKS["article"], 2 if settings.tiny else 128
    graph = next(program for _, program in steps.OURS if program.cuda_graph)
    for program in (steps.PEERS[0][1], steps.OURS[0][1], graph):
        run = partial(trace.one_step, article, program, batch, settings, keep=True)
        key = f"trace/{article.name}/{batch}/{program.key}"
        needs = program_needs(settings, article, program)
        found.append(Task(key, "trace", 2, run, estimate=8.0, needs=needs, what=key, dtype=program.precision))
    return found


def left_out(tasks: Sequence[Task], reason: str) -> list[Task]:
    """Tasks that cannot run at all here: each says so, and no figure that needs one follows."""
    return [
        dataclasses.replace(
            task, run=partial(task.without_figure, "unchecked", "skipped", reason), estimate=0.1, needs=()
        )
        for task in tasks
    ]


def all_tasks(settings: Settings) -> list[Task]:
    """Every task, phase by phase."""
    from gan_fast import backends

    usable, reason = backends.available()["triton"]
    checks, graphs = check_tasks(settings), graph_tasks(settings)
    if not usable:
        checks = left_out(checks, reason)
    if not usable or settings.tiny:  # the interpreter would take minutes
        with_kernels = [task for task in graphs if "/triton/" in task.key]
        graphs = [task for task in graphs if task not in with_kernels]
        graphs += left_out(with_kernels, reason or "graphs need a CUDA device")
    ours = our_tasks(settings)
    if importlib.util.find_spec("numpy") is None:
        graphs = left_out(graphs, NO_TRAINER)
        ours = [left_out([task], NO_TRAINER)[0] if "/Trainer" in task.key else task for task in ours]
    found = [*baseline_tasks(settings), *checks, *graphs, *ours, *cuda_module.tasks(settings)]
    assert len({task.key for task in found}) == len(found), "two tasks of one name"
    return found


def phases(settings: Settings) -> list[Phase]:
    """When what is run, as shares of the whole time."""
    torch_stages = (ceilings.STAGE, "step/torch", "layer/torch")
    check_stages = ("check", cuda_module.STAGE)
    our_stages = ("layer/ours", "step/ours", "trace", cuda_module.FIGURES)
    workers = 1 if settings.tiny else max(1, min(8, (os.cpu_count() or 1) // 2))
    return [
        Phase("PyTorch", torch_stages, 0.32, worst_rank=99 if settings.tiny else 3),
        Phase("checks", check_stages, 0.6, workers),
        Phase("ours", our_stages, 0.85),
        Phase("the rest", (*torch_stages, *check_stages, *our_stages), 1.0),
    ]
