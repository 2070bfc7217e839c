"""``gan-fast profile``: where a training step spends its time, and what the machine could do."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from gan_fast.cli._options import BATCH_SIZE, DATA, DATA_DIR, LATENT_DIM

__all__ = ["add_parser", "run"]

_BATCHES = 8  # of made-up images: enough that a shuffled order means something


def add_parser(subparsers: Any) -> None:
    """Add the ``profile`` subcommand to the command line."""
    parser = subparsers.add_parser(
        "profile",
        help="tell where a training step spends its time",
        description="Trains for some steps and tells where their time goes: by phase (data, networks, losses, "
        "optimisers, logging), by layer and by operator, with who serves each and why, FLOPs, bytes, the share of what "
        "this machine could do, peak memory, and what the profiling itself costs. Nothing is saved.",
    )
    what = parser.add_argument_group("what to profile")
    what.add_argument(
        "--model",
        default="dcgan28",
        metavar="NAME",
        help="a model's name, or module:function that returns (G, D) (%(default)s)",
    )
    what.add_argument(
        "--script",
        metavar="'FILE ARGUMENTS'",
        help="a training script of your own instead, run as it is until it has done enough steps",
    )
    what.add_argument(
        "--plain",
        action="store_true",
        help="networks in plain PyTorch, in the loop of tutorials; then also what accelerate() brings to it",
    )
    what.add_argument(*DATA, metavar="SET", help="as of gan-fast train (random images in memory)")
    what.add_argument(*DATA_DIR, metavar="DIR", help="folder with the files of a named set")
    what.add_argument("--no-download", action="store_true", help="never fetch a named set from the network")
    what.add_argument(*BATCH_SIZE, type=int, default=128, help="images in a step (%(default)s)")
    what.add_argument(*LATENT_DIM, type=int, help="size of a latent (the model's own)")
    what.add_argument("--loss", default="bce", help="as of gan-fast train (%(default)s)")
    what.add_argument("--update", default="alternating", metavar="WORD", help="as of gan-fast train (%(default)s)")
    what.add_argument("--precision", default="fp32", metavar="WORD", help="as of gan-fast train (%(default)s)")
    what.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (%(default)s)")
    what.add_argument("--threads", type=int, help="CPU threads (PyTorch's own choice)")

    how = parser.add_argument_group("how, and where to")
    how.add_argument("--steps", type=int, default=20, help="steps whose phases are timed; as many not (%(default)s)")
    how.add_argument("--warmup", type=int, default=3, help="steps before (%(default)s)")
    how.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace (Perfetto reads it too)")
    how.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    how.add_argument(
        "--report", type=Path, metavar="FILE.html", help="write a page with the timeline, plots and tables"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, measure, print; 0 if that worked.

    Raises:
        ValueError, OSError, RuntimeError, ImportError: with a text for the user, which the command line prints.
    """
    _check(args)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch.profiler's own lines on stderr; read when torch is loaded
    import torch

    from gan_fast.pages import plots
    from gan_fast.profiling import page

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.report is not None:
        plots.require()
    facts: dict[str, Any]
    if args.script is not None:
        report, facts = _script(args), {"script": args.script}
    else:
        report = _plain(args) if args.plain else _trainer(args)
        loop = "plain PyTorch in a textbook loop" if args.plain else "gan_fast.Trainer"
        facts = {"model": args.model, "batch_size": args.batch_size, "precision": args.precision, "loop": loop}
    print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items()))
    print(report)
    if args.json is not None:
        args.json.write_text(json.dumps({**facts, **report.as_dict()}, indent=1) + "\n", encoding="utf-8")
        print(f"figures: {args.json}")
    if args.report is not None:
        page.write(args.report, report, facts)
        print(f"report: {args.report}")
    if args.trace is not None:
        print(f"trace: {args.trace} (open it in https://ui.perfetto.dev or chrome://tracing)")
    return 0


def _check(args: argparse.Namespace) -> None:
    for option, least in (("steps", 1), ("warmup", 1), ("batch_size", 1), ("threads", 1)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise ValueError(f"--{option.replace('_', '-')} must be at least {least}, got {value}")
    for option in ("trace", "json", "report"):
        path = getattr(args, option)
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"--{option} {path}: there is no folder {path.absolute().parent}")
    if args.script is not None and args.plain:
        raise ValueError("--script and --plain: a script has its own loop; give one of the two")
    if args.plain and (args.loss != "bce" or args.update != "alternating"):
        raise ValueError(
            "--plain is the loop of tutorials: loss bce, alternating updates; leave out --loss and --update"
        )


def _watch(args: argparse.Namespace, *networks: Any) -> Any:
    from gan_fast.profiling import Profile

    return Profile(*networks, warmup=args.warmup, trace=args.trace, stop_after=args.steps)


def _make(args: argparse.Namespace, accelerate: bool) -> Any:
    """A trainer that writes nothing, and its data."""
    import torch

    from gan_fast import Trainer, models
    from gan_fast.cli._networks import networks

    torch.manual_seed(0)
    fixed = args.model in models.names() and "accelerate" not in models.options(args.model)  # layers of our own
    generator, discriminator = networks(args.model, **({} if fixed else {"accelerate": accelerate}))
    options = {} if args.latent_dim is None else {"latent_dim": args.latent_dim}
    options |= {key: getattr(args, key) for key in ("loss", "update", "precision", "batch_size", "device")}
    trainer = Trainer(generator, discriminator, outdir=None, progress=False, accelerate=accelerate, **options)
    if args.data is not None:
        return trainer, args.data, {"data_dir": args.data_dir, "download": not args.no_download}
    images = torch.rand(_BATCHES * args.batch_size, *trainer.sample_shape) * 2 - 1
    return trainer, images, {}


def _trainer(args: argparse.Namespace) -> Any:
    trainer, data, options = _make(args, accelerate=True)
    with _watch(args, trainer) as profile:
        trainer.fit(data, steps=1 << 40, data_options=options)  # the profile ends it
    return profile.report


def _plain(args: argparse.Namespace) -> Any:
    import copy

    import torch

    from gan_fast import accelerate, restore
    from gan_fast.bench import interleaved, paired
    from gan_fast.precision import autocast_dtype, float32_products
    from gan_fast.profiling.advice import is_accelerated
    from gan_fast.profiling.report import ms
    from gan_fast.suite.peers import Textbook
    from gan_fast.training.latent import latent_shape
    from gan_fast.tuning import calibration

    trainer, data, options = _make(args, accelerate=False)
    batches = trainer.prepare(data, data_options=options)
    generator, discriminator = trainer.generator, trainer.discriminator
    restore(generator, discriminator)
    if is_accelerated(generator) or is_accelerated(discriminator):
        raise ValueError(f"--plain: {args.model} is built from gan_fast.nn's own layers, expected torch.nn's")
    copies = copy.deepcopy((generator, discriminator))
    dtype = autocast_dtype(args.precision)
    loops = [Textbook(*networks, autocast=dtype) for networks in ((generator, discriminator), copies)]
    latent = latent_shape(generator, args.latent_dim)

    def turn(loop: Textbook, real: torch.Tensor) -> None:
        real = real.to(trainer.device)
        with float32_products(args.precision, trainer.device.type):
            loop.step(real, torch.randn(len(real), *latent, device=trainer.device))

    with _watch(args, generator, discriminator) as profile:
        while True:
            turn(loops[0], batches.next())
    swapped = accelerate(*copies).swapped
    real = batches.next()

    def whole(loop: Textbook) -> None:
        turn(loop, real)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()  # the clock is the host's

    programs = {"plain": lambda: whole(loops[0]), "accelerated": lambda: whole(loops[1])}
    rounds = max(3, min(9, args.steps))
    times = interleaved.measure(programs, rounds, calibration=calibration() if trainer.device.type == "cpu" else None)
    plain, fast = times["plain"]["seconds"], times["accelerated"]["seconds"]
    gain = paired.ratio(times["plain"]["times"], times["accelerated"]["times"]).value
    trusted = "" if all(found["trusted"] for found in times.values()) else "; the machine was disturbed meanwhile"
    profile.report.verdict.append(
        f"accelerate(G, D) brings {gain:.2f}x to this loop: {ms(plain)} -> {ms(fast)} a step, {len(swapped)} "
        f"layers swapped (medians of {rounds} turns each{trusted})"
    )
    return profile.report


def _script(args: argparse.Namespace) -> Any:
    import runpy

    words = shlex.split(args.script)
    if not words or not Path(words[0]).is_file():
        raise ValueError(
            f"--script {args.script!r}: there is no file {words[0] if words else ''!r}; expected a .py file"
        )
    argv, path = sys.argv, list(sys.path)
    sys.argv, sys.path[0:0] = words, [str(Path(words[0]).absolute().parent)]
    try:
        with _watch(args) as profile:
            try:
                runpy.run_path(words[0], run_name="__main__")
            except SystemExit as end:
                if end.code not in (None, 0):
                    raise RuntimeError(f"--script {words[0]}: it ended with status {end.code}") from end
    finally:
        sys.argv, sys.path[:] = argv, path
    return profile.report
