"""``gan-fast tune``: let this machine decide between our kernels and PyTorch's, for one's own training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gan_fast.cli._options import BATCH_SIZE, LATENT_DIM

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the ``tune`` subcommand to the command line."""
    parser = subparsers.add_parser(
        "tune",
        help="measure which backend is faster here for each call of a training step, and keep the answer",
        description="Runs one training step, measures every operator call of it on our kernels and on PyTorch in "
        "turns, and writes the faster one to a table that later trainings on this machine follow; on a GPU also the "
        "fastest tile of each kernel. Keep the machine quiet meanwhile. A resumed run says so if the table has changed "
        "since: its last bits then differ.",
    )
    parser.add_argument(
        "--model",
        default="dcgan28",
        metavar="NAME",
        help="a model's name, or module:function that returns (G, D) (%(default)s)",
    )
    parser.add_argument(*BATCH_SIZE, type=int, default=128, help="images in a step (%(default)s)")
    parser.add_argument("--loss", default="bce", help="as of gan-fast train (%(default)s)")
    parser.add_argument(
        "--precision", default="fp32", metavar="WORD", help="fp32 or bf16; on CUDA also tf32, fp16 (%(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument(
        "--cuda-graph",
        "--cuda_graph",
        action="store_true",
        help="on CUDA: for training with --cuda-graph, where starting a kernel costs nothing",
    )
    parser.add_argument(*LATENT_DIM, type=int, help="size of a latent (the model's own)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each backend that must count (%(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (PyTorch's own choice); the table holds for these")
    parser.add_argument("--file", type=Path, help="the table's file (default: in the cache folder, found by itself)")
    parser.add_argument("--dry-run", action="store_true", help="measure and show, write nothing")
    parser.add_argument("--reset", action="store_true", help="remove this machine's table and stop")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Record, measure, write; 0 if that worked.

    Raises:
        ValueError, OSError, RuntimeError, ImportError: with a text for the user, which the command line prints.
    """
    import torch

    from gan_fast import Trainer, tuning
    from gan_fast.bench import on_device
    from gan_fast.cli._networks import networks

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if device.index is not None:
        torch.cuda.set_device(device)
    path = args.file or tuning.default_file(device.type)
    if args.reset:
        path.unlink(missing_ok=True)
        print(f"removed {path}: the shipped rules decide")
        return 0
    if args.rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {args.rounds}")
    generator, discriminator = networks(args.model)
    options = {} if args.latent_dim is None else {"latent_dim": args.latent_dim}
    options |= {"loss": args.loss, "batch_size": args.batch_size, "precision": args.precision, "device": str(device)}
    trainer = Trainer(generator, discriminator, outdir=None, progress=False, **options)
    real = torch.rand(args.batch_size, *trainer.sample_shape) * 2 - 1
    calls = tuning.record(lambda: trainer.train_step(real))
    print(f"{len(calls)} different calls in a step of {args.model}, batch {args.batch_size}, {args.precision}")
    width = max((len(call.text) for call in calls), default=0)

    def report(cell: tuning.Cell) -> None:
        tile = "" if cell.tile is None else "  tile " + "x".join(map(str, cell.tile[:3])) + f", {cell.tile.warps} warps"
        times = "  ".join(f"{name} {1e3 * took:8.3f} ms" for name, took in cell.seconds.items())
        use = cell.use or "undecided: the shipped rules"
        print(f"{cell.call.text:{width}s}  {times}  x{cell.gain:5.2f}  {use}{tile}")
        sys.stdout.flush()

    clock = on_device.as_graph if args.cuda_graph else on_device.one_by_one
    cells = tuning.measure(calls, args.rounds, report, clock)
    if args.dry_run:
        return 0
    print(f"written to {tuning.save(cells, path)}")
    if args.file is not None:
        print(f"to use it: GAN_FAST_TABLE={args.file}")
    return 0
