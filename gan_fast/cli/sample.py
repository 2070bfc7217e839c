"""``gan-fast sample``: draw samples from a run into a picture, or into a file of arrays."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Add the ``sample`` subcommand to the command line."""
    parser = subparsers.add_parser(
        "sample",
        help="draw samples from a run into a picture",
        description="Draws samples from a run's last good checkpoint, or from one checkpoint folder, into a PNG grid.",
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="run folder or checkpoint folder")
    parser.add_argument("--n", type=int, default=64, help="how many samples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the latents (default: %(default)s)")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("samples.png"), help="the grid (default: %(default)s)"
    )
    parser.add_argument("--columns", type=int, help="samples in a row (default: as square as it gets)")
    parser.add_argument(
        "--npz",
        metavar="FILE",
        type=Path,
        help="also store the samples: float32 (N, C, H, W) in [-1, 1], called 'samples'",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, draw, write."""
    import numpy as np

    from gan_fast.training import Trainer
    from gan_fast.training.files import output_errors
    from gan_fast.training.pictures import is_picture, save_grid

    trainer = Trainer.load(args.run_folder, device=args.device)
    if args.columns is not None and args.columns < 1:
        raise ValueError(f"--columns must be at least 1, got {args.columns}")
    samples = trainer.sample(args.n, seed=args.seed).cpu()
    remedy = "Give another --out or --npz"
    if args.npz is not None:
        with output_errors("the samples", args.npz, remedy), open(args.npz, "wb") as file:
            np.savez_compressed(file, samples=samples.numpy())
        print(f"wrote {args.npz}: {tuple(samples.shape)}")
    if not is_picture(trainer.sample_shape):
        if args.npz is None:
            raise ValueError(f"samples of shape {trainer.sample_shape} are no pictures; store them with --npz FILE")
        return 0
    with output_errors("the grid", args.out, remedy):
        save_grid(samples, args.out, args.columns)
    print(f"wrote {args.out}: {args.n} samples of step {trainer.step}, seed {args.seed}")
    return 0
