"""`Trainer`: a generator and a discriminator trained against each other, with run folders and exact resume."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gan_fast import backends, losses
from gan_fast.accelerate import accelerate as swap_layers
from gan_fast.data import DataError, Feed, mix_seed
from gan_fast.data import feed as make_feed

from . import checkpoint, cuda, environment, inputs, randomness, restoring
from .config import RunSettings, TrainingSettings, check_keywords, number, plain, resolve_device, suggesting, whole
from .convergence import Convergence, ConvergenceWatch
from .errors import ConfigMismatchError
from .fit import FitLoop, FitResult
from .latent import Latent, LatentSource, latent_shape
from .pictures import is_picture
from .probe import evaluating, probe, settle_lazy_layers
from .run_folder import RunFolder
from .statistics import LossLog
from .step import GanLoss, GanStep, StepMetrics
from .step_graph import StepGraph

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)

_LATENT_STREAM = -1  # names the training's latents among the streams that a run's seed gives
_FEED_ARGUMENTS = inspect.signature(make_feed).parameters
_DATA_OPTIONS = [name for name in _FEED_ARGUMENTS if name not in ("source", "batch_size", "seed", "device")]
_FULL_CHECKS = 3  # on CUDA only the first batches, and one of every log_every, are looked at value by value


class Trainer:
    """Trains a GAN.

        trainer = Trainer(G, D, latent_dim=100, batch_size=128)
        trainer.fit("mnist", steps=10_000)
        images = trainer.sample(64, seed=0)

    Nothing is written before `fit` or `save`. One small trial run of both networks (two samples, eval mode, no random
    state touched) finds the shapes, a trailing sigmoid of the discriminator, and networks that do not fit together.

    Args:
        generator: latents (N, *latent) -> samples (N, ...) in [-1, 1]. Moved to ``device`` and trained in place.
        discriminator: samples -> logits of any shape with the batch first ((N, 1), PatchGAN maps, ...). A trailing
            ``nn.Sigmoid`` is stepped over in the losses, and logged once.
        loss: a name known to `gan_fast.losses` ("bce", "minimax", ...) or an object with ``d_loss`` and ``g_loss``.
        latent_dim: size of a latent, or the shape of one ((100, 1, 1)); by default the generator's ``latent_shape``
            attribute or its first layer tell it.
        latent: ``latent(n, generator) -> z`` instead of standard normal latents; all its randomness must come from
            ``generator``.
        batch_size: real samples in a step, and generated ones.
        update: "alternating": the discriminator's update, then the generator's against the updated discriminator;
            "simultaneous": one pass over the discriminator serves both, faster, and the generator descends against the
            discriminator before its update. That needs one logit for each sample and no statistics over the batch.
        precision: "fp32"; "bf16" (autocast around both networks; parameters and losses stay fp32); on CUDA also "tf32",
            "fp16".
        lr, g_lr, d_lr: learning rates of the two Adam optimisers; ``g_lr`` and ``d_lr`` default to ``lr``.
        betas, eps: Adam's.
        seed: of the latents and the order of the data. The networks' own randomness (dropout) is torch's global one.
        outdir: where run folders go; None writes nothing.
        name: the run folder is called ``00007-name``; by default after the model, the data and the batch size.
        device: "auto" (CUDA where there is one), "cpu", "cuda:1", ...
        accelerate: swap layers for gan_fast's where it has them (`gan_fast.accelerate`).
        cuda_graph: on CUDA, record the step once and replay it, Python left out: one launch for the host, not hundreds.
            Batches that are not of ``batch_size``, and networks that read values in a step, run operation by operation;
            a line in the log says so. Unproven: it has not run on a device yet (`benchmarks/gpu_suite.py` checks it).
        log_every: steps between lines of stats.jsonl; also between looks at the convergence rule, at the values of the
            real batches, and, on CUDA, for non-finite losses.
        sample_every, save_every: steps between sample grids and checkpoints; 0 for the last step only.
        keep_last: how many checkpoints stay; None for all.
        progress: show a progress bar; None for terminals only.

    Attributes:
        step: finished steps.
        generator, discriminator, device, sample_shape (of one sample), run_folder (None before the first `fit`).

    Raises:
        ValueError, TypeError: an argument is wrong; the text names it, the value, and what was expected.
    """

    @suggesting
    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        loss: str | GanLoss = "bce",
        latent_dim: int | Sequence[int] | None = None,
        latent: LatentSource | None = None,
        batch_size: int = 128,
        update: str = "alternating",
        precision: str = "fp32",
        lr: float = 2e-4,
        g_lr: float | None = None,
        d_lr: float | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
        eps: float = 1e-8,
        seed: int = 0,
        outdir: str | Path | None = "runs",
        name: str | None = None,
        device: str | torch.device = "auto",
        accelerate: bool = True,
        cuda_graph: bool = False,
        log_every: int = 50,
        sample_every: int = 500,
        save_every: int = 1000,
        keep_last: int | None = None,
        progress: bool | None = None,
    ) -> None:
        backends.check_environment()
        for argument, network in (("generator", generator), ("discriminator", discriminator)):
            if not isinstance(network, nn.Module):
                raise TypeError(f"{argument} must be a torch.nn.Module, got {type(network).__name__}")
        number("lr", lr)
        self.settings = TrainingSettings(
            batch_size=batch_size,
            precision=precision,
            g_lr=lr if g_lr is None else g_lr,
            d_lr=lr if d_lr is None else d_lr,
            betas=betas,
            eps=eps,
            seed=seed,
            accelerate=accelerate,
            update=update,
            cuda_graph=cuda_graph,
        )
        outdir = None if outdir is None else str(outdir)
        self.run_settings = RunSettings(outdir, name, log_every, sample_every, save_every, keep_last, progress)
        self.device = resolve_device(device)
        self.settings.check_device(self.device)
        criterion = losses.get(loss)
        self.generator = generator.to(self.device)
        self.discriminator = discriminator.to(self.device)
        if latent is None:
            shape = latent_shape(generator, latent_dim)
        else:
            shape = tuple(latent(1, torch.Generator(device=self.device).manual_seed(0)).shape[1:])
        self._latent = Latent(shape, latent, self.device, mix_seed(self.settings.seed, _LATENT_STREAM))
        settle_lazy_layers(generator, discriminator, self._latent)
        if accelerate:
            swap_layers(generator, discriminator)  # logs what it did
        found = probe(generator, discriminator, self._latent)
        self.sample_shape = found.sample_shape
        recorder = cuda.device_for(self.device) if cuda_graph else None
        self._step = GanStep(
            generator, discriminator, criterion, self.settings, found, self.device, recorder is not None
        )
        self._graph: StepGraph | None = None
        if recorder is not None:
            self._graph = StepGraph(self._step, self._latent, self.settings.batch_size, recorder)
        logger.info("the discriminator in a step (update=%r): %s", update, self._step.passes)
        self.step = 0
        self.seconds = 0.0
        self.losses = LossLog()
        self.run_folder: Path | None = None
        self._loss_name = loss if isinstance(loss, str) else f"{type(loss).__module__}.{type(loss).__qualname__}"
        self._feed: Feed | None = None
        self._data: dict[str, Any] = {}
        self._watch: ConvergenceWatch | None = None
        self._checks = 0
        # Parts of a checkpoint that wait for the data and the first step.
        self._restored: dict[str, Any] = {}
        self._random_state: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------------------------ training

    def train_step(self, real: Tensor, z: Tensor | None = None) -> StepMetrics:
        """Update the discriminator, then the generator against it (or both at once, as ``update`` says).

        ``real`` is checked each time; on CUDA, where looking at the values (NaN, range) would wait for the device,
        those of the first three batches and then of every ``log_every``th.

        Args:
            real: (N, *sample_shape), floating point in [-1, 1]; any device.
            z: (N, *latent shape); None draws it from the trainer's own generator.

        Returns:
            The losses and D's probabilities as tensors on the device: nothing waits for it.
        """
        real = inputs.check_form(real, self.sample_shape)
        on_host = real.device.type == "cpu"
        if on_host or self._checks < _FULL_CHECKS or self.step % self.run_settings.log_every == 0:
            inputs.check_values(real)
            self._checks += 1
        self._restore_randomness()
        if z is not None:
            z = self._latent.check(z, len(real))
        real = real.to(self.device, torch.float32)
        if self._graph is not None:
            metrics = self._graph(real, z)
        else:
            metrics = self._step(real, self._latent.draw(len(real)) if z is None else z)
        self.step += 1
        return metrics

    def send(self, batch: Tensor) -> Tensor:
        """A batch of `fit`, on its way to the device; the host does not wait for it."""
        if self._graph is not None and batch.device.type == "cpu":
            return self._graph.upload(batch)
        return batch.to(self.device, non_blocking=True)

    @suggesting
    def fit(
        self,
        data: Any,
        steps: int | None = None,
        epochs: int | None = None,
        until: Convergence | Mapping[str, Any] | bool | None = None,
        *,
        resume: str | Path | bool | None = None,
        allow_changes: bool = False,
        data_options: Mapping[str, Any] | None = None,
    ) -> FitResult:
        """Train on ``data``.

        Without ``resume``, ``steps`` and ``epochs`` count from where the trainer stands. With it they count from the
        run's beginning, so that the same script, run again, goes on to the same goal.

        Args:
            data: a tensor (N, C, H, W), Dataset, DataLoader, name ("mnist", "digits"), folder or zip: see
                `gan_fast.data.feed`.
            steps: batches to train on.
            epochs: passes over the data to train for.
            until: stop when the losses have converged: True, a dict of settings, or a `Convergence`. With ``steps`` or
                ``epochs`` the first of the two ends the training.
            resume: a run or checkpoint folder to continue; "auto" (or True) for the newest run of this name in
                ``outdir``, if any.
            allow_changes: continue although settings or data differ from the checkpoint's.
            data_options: further arguments of `gan_fast.data.feed`, such as ``data_dir``, ``image_size``, ``channels``.
                Images of a name, folder or zip are brought to the generator's size and channels unless these say
                otherwise.

        Raises:
            NonFiniteLossError: a loss became NaN or infinite; the last good checkpoint is named and untouched.
            NonFiniteError: the same of a parameter, buffer or moment that was to be saved.
            OutputError: the run folder cannot be written; the trainer itself is unharmed.
            ConfigMismatchError: the checkpoint is of another configuration or other data; lists the differences.
        """
        steps = None if steps is None else whole("steps", steps, 1)
        epochs = None if epochs is None else whole("epochs", epochs, 1)
        if steps is not None and epochs is not None:
            raise ValueError(f"give steps or epochs, not both (steps={steps}, epochs={epochs})")
        rule = Convergence.make(until)
        if steps is None and epochs is None and rule is None:
            raise ValueError("give steps=, epochs= or until=: without one of them the training has no end")
        feed, options = self._open(data, data_options)
        if epochs is not None:
            if not feed.steps_per_epoch:
                raise ValueError(f"epochs={epochs}, but {feed.name} does not tell its length; give steps=")
            steps = epochs * feed.steps_per_epoch
        start = 0 if resume else self.step
        self._take_over(feed, data, options, resume, allow_changes)
        self._watch = ConvergenceWatch(rule) if rule is not None else None
        watched = self._restored.pop("watch", None)
        if self._watch is not None and watched is not None:
            self._watch.load_state_dict(watched)
        goal = None if steps is None else start + steps
        return FitLoop(self, feed, goal, self._watch)()

    def prepare(
        self,
        data: Any,
        *,
        resume: str | Path | bool | None = None,
        allow_changes: bool = False,
        data_options: Mapping[str, Any] | None = None,
    ) -> Feed:
        """Do all that `fit` does before its first batch, with the same arguments and errors: open the data and, with
        ``resume``, take a checkpoint over. Nothing is written; after an error the trainer is as it was."""
        feed, options = self._open(data, data_options)
        self._take_over(feed, data, options, resume, allow_changes)
        return feed

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Generate samples with the generator in eval mode; training goes on afterwards as if this had not happened.

        Returns:
            (n, *sample_shape) in [-1, 1], float32, on the trainer's device. The same seed gives the same latents.
        """
        n, seed = whole("n", n, 1), whole("seed", seed, 0)
        with torch.no_grad(), evaluating(self.generator), randomness.preserved(self.device):
            torch.manual_seed(seed)  # for generators that draw noise of their own
            z = self._latent.draw(n, seed=seed)
            return torch.cat([self.generator(part).float() for part in z.split(self.settings.batch_size)])

    # --------------------------------------------------------------------------------------- saving and loading

    @property
    def config(self) -> dict[str, Any]:
        """What goes into config.json: "training" decides the numbers and is compared on a resume, "run" does not."""
        return restoring.config_of(self)

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint folder: both networks (safetensors), the trainer's state, the configuration, a manifest.

        A kill at any moment leaves the former checkpoint of that name, or the new one.

        Raises:
            NonFiniteError: a parameter, buffer or moment is not finite; nothing is written.
            OutputError: the folder cannot be written; the trainer is unharmed.
        """
        checkpoint.write(Path(folder), **self._contents())
        return Path(folder)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        *,
        loss: str | GanLoss | None = None,
        latent: LatentSource | None = None,
        device: str | torch.device = "auto",
        allow_changes: bool = False,
        **changes: Any,
    ) -> Trainer:
        """Make the trainer of a run folder (its last good checkpoint) or of a checkpoint folder, ready to go on
        exactly.

        Networks from `gan_fast.models.build` are built again by name. Others must be handed over, newly made: their
        class is the user's own, and a checkpoint holds no code.

        Args:
            folder: a run folder, or a folder that `save` wrote.
            generator, discriminator: networks of the same make as the stored ones.
            loss, latent: needed again if they were the user's own objects.
            device: where to go on; another one than before goes on, but not bit for bit (a warning says so).
            allow_changes: let ``changes`` differ from the stored settings.
            changes: settings of `Trainer`; those of the run folder (log_every, name, ...) may always differ.

        Raises:
            CheckpointError: missing, truncated or corrupted file, named; or networks that do not fit.
            ConfigMismatchError: ``changes`` differ from the stored settings; the differences are listed.
        """
        return restoring.load(
            cls,
            Path(folder),
            networks=(generator, discriminator),
            loss=loss,
            latent=latent,
            device=device,
            allow_changes=allow_changes,
            changes=changes,
        )

    @property
    def halfway(self) -> bool:
        """Whether the last step failed in its middle, so that the networks are between two steps."""
        return self._step.halfway

    def save_to_run(self, run: RunFolder) -> Path:
        """Write the checkpoint of this step into the run folder."""
        return run.save(self.run_settings.keep_last, **self._contents())

    def open_run_folder(self, feed: Feed, goal: int | None, watch: ConvergenceWatch | None) -> RunFolder | None:
        """Make the run folder, or go on in the one this trainer has; None without an ``outdir``."""
        settings = self.run_settings
        if self.run_folder is not None:
            run = RunFolder(self.run_folder)
        elif settings.outdir is not None:
            name = settings.name or restoring.default_name(self.generator, feed.name, self.settings.batch_size)
            run = RunFolder.create(Path(settings.outdir), name)
            self.run_folder = run.path
        else:
            return None
        run.prepare(self.step)
        goals = {"step": goal, "until": None if watch is None else vars(watch.rule)}
        run.write_json("config.json", {**self.config, "goal": goals})
        starts = run.read_json("env.json") or []
        run.write_json("env.json", [*starts, environment.describe(self.device, self.step)])
        logger.info("run folder: %s", run.path)
        return run

    def _contents(self) -> dict[str, Any]:
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        optimizers = {"g_optimizer": self._step.g_optimizer, "d_optimizer": self._step.d_optimizer}
        self.losses.read(self.step)
        checkpoint.require_finite(self.step, networks, optimizers)
        return {"step": self.step, "networks": networks, "state": restoring.state_of(self), "config": self.config}

    def _open(self, data: Any, data_options: Mapping[str, Any] | None) -> tuple[Feed, dict[str, Any]]:
        """The feed, and the options that it was made with: images by name are brought to what the generator makes."""
        options = dict(data_options or {})
        check_keywords("data_options", options, _DATA_OPTIONS)
        if isinstance(data, (str, os.PathLike)) and is_picture(self.sample_shape):
            channels, height, width = self.sample_shape
            options.setdefault("channels", channels)
            if height == width:
                options.setdefault("image_size", height)
        if isinstance(data, Tensor | np.ndarray) and data.ndim == len(self.sample_shape):
            sizes = ", ".join(map(str, self.sample_shape))
            raise ValueError(
                f"data has shape {tuple(data.shape)}, expected (N, {sizes}) as the generator's samples are"
                + ("; add the channel dimension with x.unsqueeze(1)" if self.sample_shape[0] == 1 else "")
            )
        return make_feed(data, self.settings.batch_size, self.settings.seed, device=self.device, **options), options

    def _take_over(
        self, feed: Feed, data: Any, options: dict[str, Any], resume: str | Path | bool | None, allow_changes: bool
    ) -> None:
        """Let the training go on with this feed, from a checkpoint if asked to."""
        with restoring.unchanged_on_error(self) if resume else contextlib.nullcontext():
            found = None
            if resume:
                found = restoring.resume(self, resume, data=feed.name, allow_changes=allow_changes)
            self._attach(feed, allow_changes)
        if found is not None:
            restoring.log_resumed(found, self.step)
        self._data = {
            "source": str(data) if isinstance(data, (str, os.PathLike)) else None,
            "options": {key: plain(value) for key, value in options.items()},
        }

    def _attach(self, feed: Feed, allow_changes: bool) -> None:
        """Let the feed go on where the last one, or the checkpoint's, stood."""
        position = self._restored.pop("feed", None)
        if position is None and self._feed is not None and self._feed is not feed:
            position, allow_changes = self._feed.state_dict(), True
        if position is not None:
            try:
                feed.load_state_dict(position)
            except DataError as error:
                if not allow_changes:
                    raise ConfigMismatchError(f"{error}. {restoring.CHANGES}", [str(error)]) from error
                logger.warning("the data begins with its first batch: %s", error)
        self._feed = feed
        self._restore_randomness()  # before the first batch: data sets may draw from the global generators too

    def _restore_randomness(self) -> None:
        """Put the global random states of a loaded checkpoint in force; as late as possible, since others draw from
        them."""
        if self._random_state is not None:
            randomness.restore(self._random_state, self.device)
            self._random_state = None
