"""``gan-fast bench``: gan_fast against PyTorch on this machine; layers, training steps, one's own layer or networks."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gan_fast.cli._options import BATCH_SIZE

__all__ = ["add_parser", "run"]

#: A layer of each kind, small enough for a minute: the article's, DCGAN's with 3 channels, an odd one, sound.
QUICK_LAYERS = (
    "convt:128,128,k5,s2,p2,o1,14x14,b16",
    "conv:128,1,k7,28x28,b32",
    "convt:64,3,k4,s2,p1,32x32,b32",
    "conv:64,128,k4,s2,p1,32x32,b16",
    "convt:100,33,k4,s2,p1,13x13,b16",
    "convt:64,32,k25,s4,p11,o1,256,b32",
)
#: (network, batch)
QUICK_STEPS = (("article", 32), ("dcgan28", 32))
FULL_STEPS = (("article", 128), ("dcgan28", 128), ("dcgan64", 64), ("pytorch_gan_dcgan", 64))
PRESETS = ("quick", "full", "steps", "layers", "scaling")


def add_parser(subparsers: Any) -> None:
    """Add the ``bench`` subcommand to the command line."""
    from gan_fast.suite import spec

    parser = subparsers.add_parser(
        "bench",
        help="measure gan_fast against PyTorch on this machine",
        description="Programs take turns in one process, results are checked before any time is taken, and turns in "
        "which the machine was disturbed do not count for a time. Ratios are medians over the turns that both programs "
        "took, in visits spread over the whole run. 'quick' takes less than two minutes; 'layers' is the fixed list of "
        "layers, of fourteen families of GANs, in every pass, and what looks slower once more in two other processes; "
        "'steps' is four training steps; 'full' is both; 'scaling' is a step's cost for one image along batch, side, "
        "channels and threads, with the exponents fitted to it.",
    )
    parser.add_argument("preset", nargs="?", choices=PRESETS, help=f"one of {', '.join(PRESETS)} (quick)")
    parser.add_argument("--layer", action="append", metavar="TEXT", help=f"only this layer, as {spec.EXAMPLE}; repeats")
    parser.add_argument("--family", metavar="NAME", help="of 'layers': one family only")
    parser.add_argument("--axis", action="append", metavar="NAME", help="of 'scaling': this axis only; repeats")
    parser.add_argument("--model", metavar="NAME", help="only a step of this network, or of module:function's (G, D)")
    parser.add_argument(*BATCH_SIZE, type=int, help="images in a step (of --model: 64)")
    parser.add_argument(
        "--latent", metavar="SHAPE", help="of one's own G: 100, or 100x1x1 (found where G begins with it)"
    )
    parser.add_argument("--image", metavar="CxHxW", help="size of one's own images (found by running G)")
    parser.add_argument(
        "--precision", default="fp32", choices=["fp32", "bf16"], help="bf16 adds bfloat16 (%(default)s)"
    )
    parser.add_argument("--peers", default="", metavar="LIST", help="add to the steps, if here: compile,jax,tensorflow")
    parser.add_argument("--backend", default="auto", help="for layers: what gan_fast runs on (%(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (PyTorch's own choice)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each program at least (%(default)s)")
    parser.add_argument(
        "--within",
        type=float,
        metavar="PERCENT",
        help="go on where a ratio's 95 %% interval is wider than +- this, until --budget is spent (quick: 3)",
    )
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="of --within (100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result file")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with plots, of these results")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="--report of a result file instead")
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("A", "B"), help="compare two result files; status 1 if B is slower"
    )
    parser.add_argument("--band", type=float, default=0.10, help="of --compare: no change within this (%(default)s)")
    parser.add_argument("--any-machine", action="store_true", help="compare files of different machines too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 0 if every result was right and, with --compare, nothing became slower; else 1.

    Raises:
        ValueError, OSError, RuntimeError, ImportError: with a text for the user, which the command line prints.
    """
    from gan_fast.pages import plots
    from gan_fast.suite import changes, report, results

    if args.report is not None:
        plots.require()
    if args.source is not None:
        if args.report is None:
            raise ValueError(f"--from {args.source}: expected --report FILE.html too, the page to write")
        machine, rows = results.read(args.source)
        report.write(args.report, machine, rows, {"results": args.source.name})
        print(f"written to {args.report}")
        return 0
    if args.compare:
        text, worse = changes.compare(*args.compare, any_machine=args.any_machine, band=args.band)
        print(text)
        return 1 if worse else 0
    return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    import torch

    from gan_fast import backends, tuning
    from gan_fast.bench import interleaved
    from gan_fast.suite import confirm, exponents, layers, report, results, scaling, steps, sweeps

    backends.requested(args.backend)  # an unknown one is refused before anything is measured
    for path in (args.json, args.report):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK):
                raise OSError(f"{path.parent} cannot be written to")
    if args.family is not None and (args.layer or args.model or args.preset not in ("layers", "full")):
        raise ValueError(f"--family {args.family}: expected the preset layers or full")
    if args.rounds < 2:
        raise ValueError(f"--rounds must be at least 2, got {args.rounds}")
    quick = args.preset in (None, "quick") and not (args.layer or args.model)
    within, budget = _precision(args, quick)
    _check_scaling(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    shapes, networks, peers = _layers(args), _steps(args), _peers(args)
    cells = scaling.cells(args.axis or scaling.AXES) if args.preset == "scaling" else []
    machine = {**results.describe(), "bandwidth": interleaved.copy_bandwidth()}
    start = time.perf_counter()
    calibration = tuning.calibration()
    print(
        f"{machine['cpu']}, {machine['threads']} threads, level {machine['level']}, torch {machine['torch']}, "
        f"gan_fast {machine['gan_fast']} at {machine['commit']}, peak {1e-9 * calibration.peak:.0f} GF/s, "
        f"copies {1e-9 * machine['bandwidth']:.1f} GB/s"
    )
    rows: list[results.Row] = []

    def show(found: list[results.Row]) -> None:
        rows.extend(found)
        print(results.table(found))
        sys.stdout.flush()

    whole = args.preset in ("full", "layers")
    formats = ("channels_last",) if quick else tuple(layers.FORMATS)
    pieces = [
        steps.piece(name, steps.recipes(pair, real, z, bf16=args.precision == "bf16", others=peers), len(real))[0]
        for name, pair, real, z in networks
    ]
    for dtype in (torch.float32, torch.bfloat16)[: 2 if args.precision == "bf16" else 1]:
        pieces += layers.pieces(shapes, provider=args.backend, formats=formats, dtype=dtype, again=whole)
    if pieces:
        said = functools.partial(print, flush=True)
        sweeps.sweep(pieces, args.rounds, calibration, within=within, until=start + budget, report=said)
        show([row for piece in pieces for row in piece.rows])
    with _less_said():
        for found in scaling.measure(cells, args.rounds, calibration):
            show(found)
    if whole:
        confirm.confirm(rows, provider=args.backend, rounds=args.rounds)
    lines = exponents.lines(rows, machine)
    print("\n".join(part for part in (results.summary(rows), exponents.text(lines)) if part))
    print(f"{time.perf_counter() - start:.0f} s; times and ratios are medians, +- their uncertainty (95 %)")
    only = args.layer or ([args.model] if args.model else None)
    settings = {"what": only or args.preset or "quick", "rounds": args.rounds, "backend": args.backend}
    settings |= {"within": within, "budget": budget} if within else {}
    if args.json is not None:
        findings: dict[str, Any] = {"ratios": results.findings(rows)}
        findings |= {"scaling": [dataclasses.asdict(line) for line in lines]} if lines else {}
        results.write(args.json, rows, machine, findings, **settings)
        print(f"written to {args.json}")
    if args.report is not None:
        report.write(args.report, machine, rows, settings)
        print(f"written to {args.report}")
    return 1 if any(row.wrong for row in rows) else 0


@contextlib.contextmanager
def _less_said() -> Iterator[None]:
    """Every cell makes a trainer, and each says the same of its discriminator."""
    logger = logging.getLogger("gan_fast.training.trainer")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _precision(args: argparse.Namespace, quick: bool) -> tuple[float, float]:
    """How sure the ratios shall be, relative (0: no matter), and the seconds that this may take."""
    for option, value in (("--within", args.within), ("--budget", args.budget)):
        if value is not None and not value > 0:
            raise ValueError(f"{option} must be above 0, got {value:g}")
    if args.within is None and not quick:
        if args.budget is not None:
            raise ValueError(f"--budget {args.budget:g}: expected --within PERCENT too, or the preset quick")
        return 0.0, 0.0
    return (3.0 if args.within is None else args.within) / 100, 100.0 if args.budget is None else args.budget


def _check_scaling(args: argparse.Namespace) -> None:
    """The preset scaling has its own networks and programs."""
    if args.preset != "scaling":
        if args.axis:
            raise ValueError(f"--axis {args.axis[0]}: expected the preset scaling")
        return
    foreign = {"--layer": args.layer, "--model": args.model, "--batch-size": args.batch_size, "--peers": args.peers}
    foreign |= {"--precision": args.precision != "fp32", "--backend": args.backend != "auto"}
    for option, given in foreign.items():
        if given:
            raise ValueError(f"{option}: the preset scaling has its own networks and programs; leave it out")


def _layers(args: argparse.Namespace) -> list[Any]:
    """The layers that were asked for."""
    from gan_fast.suite import shapes, spec

    if args.layer:
        return [spec.parse(text) for text in dict.fromkeys(args.layer)]
    if args.model is not None or args.preset in ("steps", "scaling"):
        return []
    if args.preset in ("full", "layers"):
        return shapes.select(family=args.family)
    return [spec.parse(text) for text in QUICK_LAYERS]


def _steps(args: argparse.Namespace) -> list[tuple[str, Any, Any, Any]]:
    """(name, (G, D), real images, latents) of the steps that were asked for."""
    import torch

    from gan_fast.cli._networks import networks
    from gan_fast.suite import steps
    from gan_fast.training.latent import latent_shape

    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.model is not None and ":" in args.model:
        pair = networks(args.model, accelerate=False)
        kinds = {type(layer) for network in pair for layer in network.modules()}
        swapped = [kind.__name__ for kind in kinds if kind.__module__ in ("gan_fast.nn", "gan_fast.sequential")]
        if swapped:
            raise ValueError(f"--model {args.model}: expected plain torch layers, got gan_fast's {swapped[0]}")
        z = torch.randn(args.batch_size or 64, *latent_shape(pair[0], _sides(args.latent, "--latent", "100x1x1")))
        return [(args.model, pair, _images(args, pair[0], z), z)]
    if args.model is not None:
        if args.model not in steps.NETWORKS:
            raise ValueError(
                f"--model {args.model}: expected one of {', '.join(steps.NETWORKS)}, or module:function of one's own"
            )
        chosen: tuple[tuple[str, int], ...] = ((args.model, args.batch_size or 64),)
    elif args.layer or args.preset in ("layers", "scaling"):
        chosen = ()
    else:
        chosen = FULL_STEPS if args.preset in ("full", "steps") else QUICK_STEPS
    return [(name, steps.networks(name), *steps.inputs(name, args.batch_size or batch)) for name, batch in chosen]


def _peers(args: argparse.Namespace) -> list[str]:
    """Names of the other peers."""
    from gan_fast.suite import steps

    names = [name.strip() for name in args.peers.split(",") if name.strip()]
    for name in names:
        if name not in steps.PEERS:
            raise ValueError(f"--peers {name}: expected some of {', '.join(steps.PEERS)}, with commas between them")
    return names


def _sides(text: str | None, option: str, example: str) -> Any:
    """The numbers of 3x64x64; None without a text."""
    if text is None:
        return None
    words = text.split("x")
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"{option} {text}: expected numbers with x between them, as {example}")
    return tuple(int(word) for word in words)


def _images(args: argparse.Namespace, generator: Any, z: Any) -> Any:
    """Real images of the size that one's own networks take."""
    import torch

    if args.image is None:
        with torch.no_grad():
            shape = tuple(generator(z[:2]).shape[1:])
    else:
        shape = _sides(args.image, "--image", "3x64x64 (1x4096 for sound)")
    return torch.rand(len(z), *shape) * 2 - 1
