"""``gan-fast eval``: how near a run's samples are to a labelled real set.

The classifier of the set is trained at the first use (a few minutes for MNIST) and kept in the cache folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gan_fast.cli._options import BATCH_SIZE, DATA, DATA_DIR

__all__ = ["add_parser", "render", "run"]

_COMPARABLE_HASH_DIGITS = 16


def add_parser(subparsers: Any) -> None:
    """Add the ``eval`` subcommand to the command line."""
    parser = subparsers.add_parser(
        "eval",
        help="Fréchet distance, class entropy and confidence of a run's samples against a real set",
        description="Draws samples from a run and judges them in the features of a small classifier of the real set, "
        "trained at the first use and then cached. Only figures with the same classifier hash can be compared.",
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="run folder or checkpoint folder")
    parser.add_argument(
        *DATA,
        metavar="SET",
        help="labelled set: a name, or a folder or zip with class subfolders (default: what the run was trained on)",
    )
    parser.add_argument(*DATA_DIR, metavar="DIR", help="folder with the files of a named set, or its parent")
    parser.add_argument("--n", type=int, default=10_000, help="how many samples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    parser.add_argument(*BATCH_SIZE, type=int, default=500, help="samples drawn at once (default: %(default)s)")
    parser.add_argument("--no-download", action="store_true", help="never fetch a named set from the network")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures to this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the run, draw, judge, print a table; 0 if that worked.

    Raises:
        ValueError, OSError, ImportError: with a text for the user, which the command line prints.
    """
    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise FileNotFoundError(f"--json {args.json}: there is no folder {args.json.parent}")
    from gan_fast import Trainer
    from gan_fast.metrics import evaluate

    trainer = Trainer.load(args.run_folder)
    trained_on, trained_dir = _trained_on(args.run_folder)
    data = args.data or trained_on
    if data is None:
        raise ValueError(
            f"{args.run_folder} does not say what it was trained on: name the real set with --data, as in --data mnist"
        )
    data_dir = args.data_dir if args.data_dir or data != trained_on else trained_dir
    figures = evaluate(
        trainer,
        data,
        n=args.n,
        seed=args.seed,
        batch_size=args.batch_size,
        data_dir=data_dir,
        download=not args.no_download,
    )
    print(render(figures))
    if args.json is not None:
        from gan_fast.cache import atomic_write

        text = json.dumps({"run": str(args.run_folder), **figures}, indent=2) + "\n"
        atomic_write(args.json, lambda path: _write(path, text))
    return 0


def render(figures: dict[str, Any]) -> str:
    """The figures of `gan_fast.metrics.evaluate` as a small table."""
    floor = figures["frechet_floor"]
    rows = [
        ("samples", f"{figures['n']} (seed {figures['seed']})"),
        ("real set", f"{figures['data']}, {figures['n_real']} training images"),
        ("Fréchet distance", f"{figures['frechet_distance']:.3f}"),
        ("  of real test images", "too few of them" if floor is None else f"{floor:.3f}"),
        ("class entropy", f"{figures['class_entropy']:.4f} of at most {figures['max_class_entropy']:.4f} nats"),
        ("mean confidence", f"{figures['confidence']:.4f}"),
        ("samples per class", " ".join(str(count) for count in figures["class_counts"])),
        ("classifier accuracy", f"{figures['classifier_accuracy']:.4f}"),
        ("classifier sha256", figures["classifier_sha256"][:_COMPARABLE_HASH_DIGITS]),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _trained_on(folder: Path) -> tuple[str | None, str | None]:
    """The data and its data_dir that config.json, in the folder or above it, names; None for what it does not name.

    Raises:
        ValueError: a damaged file.
    """
    for place in (folder, *folder.resolve().parents[:3]):
        config = place / "config.json"
        if not config.is_file():
            continue
        try:
            data = json.loads(config.read_text(encoding="utf-8")).get("data")
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{config} is damaged: {error}") from error
        if isinstance(data, dict):
            return data.get("source") or data.get("name"), (data.get("options") or {}).get("data_dir")
        return (data, None) if isinstance(data, str) else (None, None)
    return None, None


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
