"""The Trainer's other half: what a checkpoint holds beside the networks, and how a trainer is made from it again.

Read it together with `trainer.py`; the functions here use the Trainer's private attributes.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gan_fast import losses, models

from . import checkpoint, environment, randomness, run_folder
from .checkpoint import Checkpoint
from .config import compare, differences
from .errors import CheckpointError
from .latent import LatentSource
from .run_folder import RunFolder
from .step import GanLoss

if TYPE_CHECKING:
    from .trainer import Trainer

__all__ = ["CHANGES", "config_of", "default_name", "load", "log_resumed", "resume", "state_of", "unchanged_on_error"]

logger = logging.getLogger(__name__)

#: What to do about a configuration that differs from a checkpoint's.
CHANGES = "Give the same settings, or allow_changes=True (--allow-changes) to go on with the new ones"
_OWN = "custom"  # stands in config.json for an object of the user's


def config_of(trainer: Trainer) -> dict[str, Any]:
    """The contents of config.json."""
    settings, run = trainer.settings, trainer.run_settings
    built = getattr(trainer.generator, "built_from", None)
    return {
        "format": checkpoint.FORMAT,
        "training": {
            "model": built["model"] if built else _OWN,
            "model_options": dict(built["options"]) if built else {},
            "generator": _size(trainer.generator),
            "discriminator": _size(trainer.discriminator),
            "loss": trainer._loss_name,
            "latent": "normal" if trainer._latent.source is None else _OWN,
            "latent_shape": list(trainer._latent.shape),
            "sample_shape": list(trainer.sample_shape),
            **{key: list(value) if isinstance(value, tuple) else value for key, value in vars(settings).items()},
        },
        "run": {key: value for key, value in vars(run).items() if key not in ("outdir", "progress")},
        "data": None if trainer._feed is None else {**trainer._feed.describe(), **trainer._data},
    }


def state_of(trainer: Trainer) -> dict[str, Any]:
    """The trainer's own state: plain values and tensors."""
    step = trainer._step
    return {
        "step": trainer.step,
        "seconds": trainer.seconds,
        **step.state_dict(),
        "latent_generator": trainer._latent.generator.get_state(),
        "latent_device": trainer.device.type,
        "random": trainer._random_state or randomness.capture(trainer.device),
        "losses": trainer.losses.state_dict(),
        "feed": trainer._feed.state_dict() if trainer._feed is not None else trainer._restored.get("feed"),
        "watch": trainer._watch.state_dict() if trainer._watch is not None else trainer._restored.get("watch"),
        "environment": environment.fingerprint(trainer.device),
    }


@contextlib.contextmanager
def unchanged_on_error(trainer: Trainer) -> Iterator[None]:
    """Inside the block a checkpoint is taken over; if that fails, at whatever part of it, everything is put back bit
    for bit: networks, optimisers, generators, counters."""
    step = trainer._step
    networks = [(net, copy.deepcopy(net.state_dict())) for net in (trainer.generator, trainer.discriminator)]
    updates = copy.deepcopy(step.state_dict())
    latents = trainer._latent.generator.get_state()
    collected = trainer.losses.state_dict()
    names = ("step", "seconds", "run_folder", "_random_state", "_feed", "_data", "_watch")
    plain = {**{name: getattr(trainer, name) for name in names}, "_restored": dict(trainer._restored)}
    try:
        yield
    except BaseException:
        for network, before in networks:
            network.load_state_dict(before)
        step.load_state_dict(updates)
        trainer._latent.generator.set_state(latents)
        trainer.losses.load_state_dict(collected)
        for name, value in plain.items():
            setattr(trainer, name, value)
        raise


def default_name(generator: nn.Module, data: str, batch_size: int) -> str:
    """The run's name where none is given, such as "dcgan28-mnist-b128"."""
    built = getattr(generator, "built_from", None)
    model = built["model"] if built else type(checkpoint.uncompiled(generator)).__name__.lower()
    plain = "".join(char if char.isalnum() or char in "-_." else "-" for char in f"{model}-{Path(data).name}")
    return f"{plain.lstrip('.')}-b{batch_size}"


def resume(trainer: Trainer, place: str | Path | bool, *, data: str, allow_changes: bool) -> Path | None:
    """Put a run's last good checkpoint into a trainer that has not trained yet; "auto" or True: the newest run of
    its name. ``data``: what the data is called. Use it inside `unchanged_on_error`.

    Returns:
        The checkpoint's folder, or None if a new run begins.
    """
    if trainer.step:
        raise ValueError(
            f"resume={str(place)!r}: this trainer has already done {trainer.step} steps; resume with a new one"
        )
    if place is True or place == "auto":
        outdir = trainer.run_settings.outdir
        if outdir is None:
            logger.warning("resume=%r: without an outdir there are no runs to go on with, a new training begins", place)
            return None
        name = trainer.run_settings.name or default_name(trainer.generator, data, trainer.settings.batch_size)
        run = run_folder.find_run(Path(outdir), name)
        if run is None:
            logger.info("resume: no run of that name yet in %s, a new one begins", outdir)
            if trainer.run_settings.name is None:
                _warn_of_like_run(trainer, Path(outdir), name, data)
            return None
        if not run.candidates():
            logger.info("resume: %s ended before its first checkpoint, it begins anew", run.path)
            trainer.run_folder = run.path
            return None
        place = run.path
    found, run = run_folder.load_checkpoint(Path(str(place)))
    _adopt(trainer, found, run, allow_changes)
    return found.folder


def log_resumed(folder: Path, step: int) -> None:
    """Say that a checkpoint was taken over; to be called when nothing can refuse it any more."""
    logger.info("resumed from %s at step %d", folder, step)


def _warn_of_like_run(trainer: Trainer, outdir: Path, name: str, data: str) -> None:
    """Say so if the newest run of the same networks and data has only another name, because of its batch size or
    because somebody named it: who asks to resume may mean that one."""
    mine = config_of(trainer)["training"]
    for _, _, path in reversed(run_folder.runs_in(outdir)):
        try:
            config = RunFolder(path).read_json("config.json")
            theirs = config["training"]
            alike = (theirs["model"], theirs["generator"]["class"]) == (mine["model"], mine["generator"]["class"])
            alike = alike and config["data"]["name"] == data
        except (CheckpointError, KeyError, TypeError):
            continue  # no run of ours, or one that ended before it wrote its configuration
        if alike:
            other = "; ".join(differences(theirs, mine)) or "the same settings"
            logger.warning(
                "resume: no run is called %s, so a new one begins. %s trained the same model on the same data (%s); "
                "give that folder as resume (--resume) to go on with it", name, path, other,
            )  # fmt: skip
            return


def load(
    kind: type[Trainer],
    folder: Path,
    *,
    networks: tuple[nn.Module | None, nn.Module | None],
    loss: str | GanLoss | None,
    latent: LatentSource | None,
    device: str | torch.device,
    allow_changes: bool,
    changes: Mapping[str, Any],
) -> Trainer:
    """See `Trainer.load`."""
    found, run = run_folder.load_checkpoint(folder)
    training, run_part = _part(found, "training"), _part(found, "run")
    generator, discriminator = _networks(found, training, *networks)
    if loss is None:
        if training["loss"] not in losses.names():
            raise CheckpointError(
                f"{folder} was trained with a loss of your own ({training['loss']}); hand it over with loss="
            )
        loss = training["loss"]
    if training["latent"] == _OWN and latent is None:
        raise CheckpointError(f"{folder} was trained with latents of your own; hand the function over with latent=")
    kept = ("batch_size", "precision", "g_lr", "d_lr", "betas", "eps", "seed", "accelerate", "update", "cuda_graph")
    # A checkpoint from before there were these choices.
    stored = {"update": "alternating", "cuda_graph": False, **training}
    arguments = {**{key: stored[key] for key in kept}, **run_part, **changes}
    if "lr" in changes:  # one rate for both was asked for, so it replaces the two stored ones
        for key in ("g_lr", "d_lr"):
            arguments[key] = changes.get(key)
    if latent is None:
        arguments.setdefault("latent_dim", training["latent_shape"])
    if run is not None:
        arguments.setdefault("outdir", str(run.path.parent))
    trainer = kind(generator, discriminator, loss=loss, latent=latent, device=device, **arguments)
    with unchanged_on_error(trainer):
        _adopt(trainer, found, run, allow_changes)
    log_resumed(found.folder, trainer.step)
    return trainer


def _adopt(trainer: Trainer, found: Checkpoint, run: RunFolder | None, allow_changes: bool) -> None:
    """Compare the configurations, then take over everything that a checkpoint holds. Inside `unchanged_on_error`."""
    if not allow_changes:
        compare(_part(found, "training"), config_of(trainer)["training"], place=str(found.folder), remedy=CHANGES)
    state = found.state
    try:
        for name in ("generator", "discriminator"):
            path = found.folder / f"{name}.safetensors"
            checkpoint.load_network(getattr(trainer, name), getattr(found, name), path)
        trainer._step.load_state_dict(state)
        trainer.step = int(state["step"])
        trainer.seconds = float(state["seconds"])
        trainer.losses.load_state_dict(state["losses"])
        trainer._random_state = state["random"]
        trainer._restored = {"feed": state["feed"], "watch": state["watch"]}
        if state["latent_device"] == trainer.device.type:
            trainer._latent.generator.set_state(state["latent_generator"])
        environment.warn_if_other(state["environment"], trainer.device)
    except KeyError as error:
        raise CheckpointError(
            f"{found.folder / 'trainer_state.pt'} has no entry {error}: it is of another program"
        ) from error
    except CheckpointError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{found.folder / 'trainer_state.pt'} does not fit these networks: {error}") from error
    trainer.run_folder = run.path if run is not None else None


def _networks(
    found: Checkpoint, training: Mapping[str, Any], generator: nn.Module | None, discriminator: nn.Module | None
) -> tuple[nn.Module, nn.Module]:
    if generator is not None and discriminator is not None:
        return generator, discriminator
    if generator is not None or discriminator is not None:
        raise ValueError("give both generator= and discriminator=, or neither")
    if training["model"] == _OWN:
        raise CheckpointError(
            f"{found.folder} holds networks of your own classes ({training['generator']['class']} and "
            f"{training['discriminator']['class']}), and no code; hand newly made ones over: "
            "Trainer.load(folder, generator=..., discriminator=...)"
        )
    return models.build(training["model"], **training["model_options"])


def _part(found: Checkpoint, name: str) -> dict[str, Any]:
    try:
        return dict(found.config[name])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{found.folder / 'config.json'} has no {name!r} entry: it is of another program"
        ) from None


def _size(network: nn.Module) -> dict[str, Any]:
    return {
        "class": type(checkpoint.uncompiled(network)).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
    }
