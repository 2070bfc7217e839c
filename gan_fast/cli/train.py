"""``gan-fast train``: train a model on a data set, with a run folder that can be continued."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gan_fast.cli._options import BATCH_SIZE, DATA, DATA_DIR, LATENT_DIM

__all__ = ["add_parser", "run"]

_DEFAULT_STEPS = 10_000  # the article's length; its loop calls one batch an epoch
_LOSS_ALIASES = {"vanilla": "bce", "ns": "bce"}
_MODEL_OPTIONS = ("latent_dim", "ngf", "ndf", "channels")
# argument -> what holds if neither the command line nor a resumed run says anything
_DEFAULTS: dict[str, Any] = {
    "data": "mnist",
    "model": "dcgan28",
    "loss": "bce",
    "batch_size": 128,
    "update": "alternating",
    "precision": "fp32",
    "g_lr": 2e-4,
    "d_lr": 2e-4,
    "beta1": 0.5,
    "beta2": 0.999,
    "eps": 1e-8,
    "seed": 0,
    "accelerate": True,
    "cuda_graph": False,
}


def add_parser(subparsers: Any) -> None:
    """Add the ``train`` subcommand. Options have no defaults of their own, so that a resume knows which ones were
    given."""
    parser = subparsers.add_parser(
        "train",
        help="train a model on a data set",
        description="Trains a GAN. The run folder OUTDIR/00000-NAME/ gets checkpoints, sample grids and statistics; "
        "the same command with --resume auto goes on where a stopped or killed run was.",
    )
    what = parser.add_argument_group("what to train")
    what.add_argument(*DATA, metavar="SET", help="mnist, fashion-mnist, digits, an image folder or a zip (mnist)")
    what.add_argument(*DATA_DIR, metavar="DIR", help="folder with the files of a named set, or its parent")
    what.add_argument("--no-download", action="store_true", help="never fetch a named set from the network")
    what.add_argument("--model", metavar="NAME", help="dcgan28, dcgan64, keras_mnist (dcgan28)")
    what.add_argument(*LATENT_DIM, type=int, help="size of a latent (the model's own)")
    what.add_argument("--ngf", type=int, help="width of the generator (the model's own)")
    what.add_argument("--ndf", type=int, help="width of the discriminator (the model's own)")
    what.add_argument("--channels", "--nc", type=int, help="image channels, 1 or 3 (the model's own)")
    what.add_argument("--loss", metavar="NAME", help="bce, minimax (bce)")

    length = parser.add_argument_group("how long; counted from the run's beginning, a resume included")
    length.add_argument("--steps", "--num_steps", type=int, help=f"batches ({_DEFAULT_STEPS} if no length is given)")
    # PyTorch's DCGAN script counts epochs in --niter.
    length.add_argument("--epochs", "--n_epochs", "--niter", type=int, help="passes over the data")
    length.add_argument("--until", metavar="RULE", help="'converged', or 'window=1000,tolerance=0.05,patience=3'")

    how = parser.add_argument_group("how")
    how.add_argument(*BATCH_SIZE, type=int, help="images in a step (128)")
    how.add_argument(
        "--update", metavar="WORD", help="alternating, or simultaneous: one pass over D serves both (alternating)"
    )
    how.add_argument("--precision", metavar="WORD", help="fp32, bf16; on CUDA also tf32, fp16 (fp32)")
    how.add_argument("--amp", dest="precision", action="store_const", const="bf16", help="the same as --precision bf16")
    how.add_argument("--lr", type=float, help="learning rate of both networks (0.0002)")
    how.add_argument("--g-lr", "--g_lr", "--glr", type=float, help="learning rate of the generator")
    how.add_argument("--d-lr", "--d_lr", "--dlr", type=float, help="learning rate of the discriminator")
    how.add_argument("--beta1", "--b1", type=float, help="Adam's first beta (0.5)")
    how.add_argument("--beta2", "--b2", type=float, help="Adam's second beta (0.999)")
    how.add_argument("--eps", type=float, help="Adam's epsilon (1e-8)")
    how.add_argument("--seed", "--manualSeed", type=int, help="of networks, latents and the order of the data (0)")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (%(default)s)")
    how.add_argument("--threads", type=int, help="CPU threads (PyTorch's own choice)")
    how.add_argument(
        "--no-accelerate", dest="accelerate", action="store_const", const=False, help="plain PyTorch layers"
    )

    how.add_argument(
        "--cuda-graph",
        action="store_const",
        const=True,
        help="on CUDA, record the step once and replay it (unproven: not run on a device yet)",
    )

    where = parser.add_argument_group("what is written, and where")
    where.add_argument(
        "--outdir", "--outf", "--save_dir", default="runs", help="folder of the run folders (%(default)s)"
    )
    where.add_argument("--name", help="name of the run (MODEL-DATA-bBATCH)")
    where.add_argument(
        "--log-every", "--log_interval", type=int, default=50, help="steps between statistics (%(default)s)"
    )
    where.add_argument(
        "--sample-every", "--sample_interval", type=int, default=500, help="steps between grids (%(default)s)"
    )
    where.add_argument(
        "--save-every", "--checkpoint_interval", type=int, default=1000, help="steps between checkpoints (%(default)s)"
    )
    where.add_argument("--keep-last", type=int, help="how many checkpoints stay (all)")
    where.add_argument(
        "--resume", metavar="auto|PATH", help="go on: the newest run of this name, or this run or checkpoint folder"
    )
    where.add_argument(
        "--continue_train", dest="resume", action="store_const", const="auto", help="the same as --resume auto"
    )
    where.add_argument("--allow-changes", action="store_true", help="resume although settings differ from the run's")
    where.add_argument(
        "-n", "--dry-run", action="store_true", help="check everything, a resume too; one step; write nothing"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build, train, report."""
    import torch

    from gan_fast.training import Convergence

    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    stored = _stored(args.resume)
    options = _resolve(args, stored.get("training", {}), stored.get("data") or {})
    until = Convergence.parse(args.until) if args.until else None
    goal = {"steps": args.steps, "epochs": args.epochs, "until": until}
    if args.steps is None and args.epochs is None and until is None:
        before = stored.get("goal") or {}
        goal["until"] = Convergence.make(before.get("until"))
        goal["steps"] = before.get("step") or (None if goal["until"] else _DEFAULT_STEPS)
    trainer = _build(args, options)
    given = {
        "resume": args.resume,
        "allow_changes": args.allow_changes,
        "data_options": _data_options(args, options, stored.get("data") or {}),
    }
    if args.dry_run:
        return _dry_run(trainer, options, goal, given)
    result = trainer.fit(options["data"], **goal, **given)
    print(f"{result.reason}; {result.steps} steps, {result.img_s:.0f} img/s")
    print(f"run folder: {result.folder}")
    return 0


def _stored(resume: str | None) -> dict[str, Any]:
    """The configuration of the run to go on with; empty for a new run and for "auto", which compares all settings."""
    if resume is None or resume == "auto":
        return {}
    from gan_fast.training.run_folder import load_checkpoint

    found, folder = load_checkpoint(Path(resume))
    whole = folder.read_json("config.json") if folder is not None else None
    return {**found.config, "goal": (whole or {}).get("goal")}


def _resolve(args: argparse.Namespace, training: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Each setting from the command line, else from the run to go on with, else the default."""
    from gan_fast import losses
    from gan_fast.training.config import number
    from gan_fast.words import near

    settled = {**_DEFAULTS, **{key: value for key, value in training.items() if key in _DEFAULTS}}
    if "betas" in training:
        settled["beta1"], settled["beta2"] = training["betas"]
    if training.get("model") == "custom":
        raise ValueError(f"--resume {args.resume}: networks of your own go on in Python, with gan_fast.Trainer.load")
    if data:
        settled["data"] = data.get("source")
    if args.lr is not None:
        number("--lr", args.lr)
    given = {key: getattr(args, key, None) for key in _DEFAULTS}
    for key in ("g_lr", "d_lr"):
        given[key] = args.lr if given[key] is None else given[key]
    settled.update({key: value for key, value in given.items() if value is not None})
    if settled["data"] is None:
        raise ValueError(f"--resume {args.resume}: it was trained on data without a name; give it with --data")
    settled["loss"] = _LOSS_ALIASES.get(settled["loss"], settled["loss"])
    if settled["loss"] not in losses.names():
        raise ValueError(f"--loss {settled['loss']!r} is unknown; {near(settled['loss'], losses.names())}")
    asked = {key: getattr(args, key) for key in _MODEL_OPTIONS if getattr(args, key) is not None}
    same_model = settled["model"] == training.get("model")  # another one has options of its own
    settled["model_options"] = {**(training.get("model_options", {}) if same_model else {}), **asked}
    return settled


def _build(args: argparse.Namespace, options: dict[str, Any]) -> Any:
    import random

    import numpy as np
    import torch

    from gan_fast import models
    from gan_fast.training import Trainer

    if options["seed"] < 0:
        raise ValueError(f"--seed must be at least 0, got {options['seed']}")
    torch.manual_seed(options["seed"])
    np.random.seed(options["seed"] % 2**32)
    random.seed(options["seed"])
    model_options = dict(options["model_options"])
    if "accelerate" in models.options(options["model"]):
        model_options["accelerate"] = options["accelerate"]
    try:
        generator, discriminator = models.build(options["model"], **model_options)
    except TypeError as error:  # an option that this model does not have
        raise ValueError(f"--model {options['model']}: {error}") from error
    return Trainer(
        generator,
        discriminator,
        betas=(options["beta1"], options["beta2"]),
        **{
            key: options[key]
            for key in (
                "loss",
                "batch_size",
                "update",
                "precision",
                "g_lr",
                "d_lr",
                "eps",
                "seed",
                "accelerate",
                "cuda_graph",
            )
        },
        outdir=args.outdir,
        name=args.name,
        device=args.device,
        log_every=args.log_every,
        sample_every=args.sample_every,
        save_every=args.save_every,
        keep_last=args.keep_last,
    )


def _data_options(args: argparse.Namespace, options: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Where the data lies; its size and channels are the trainer's matter."""
    where = args.data_dir
    if where is None and options["data"] == data.get("source"):
        where = (data.get("options") or {}).get("data_dir")
    return {"data_dir": where, "download": not args.no_download}


def _dry_run(trainer: Any, options: dict[str, Any], goal: dict[str, Any], given: dict[str, Any]) -> int:
    """All that a training does up to its first step, that step, and nothing on the disk."""
    batches = trainer.prepare(options["data"], **given)
    begun = trainer.step
    metrics = trainer.train_step(batches.next())
    length = {key: value for key, value in goal.items() if value is not None}
    for key, value in {**options, **length, "data": batches.describe(), "device": str(trainer.device)}.items():
        print(f"{key:<14} {value}")
    if given["resume"]:
        print(f"resume         {f'{trainer.run_folder}, step {begun}' if begun else 'nothing to resume: a new run'}")
    print(f"one step       {metrics}")
    print("dry run: nothing was written")
    return 0
