"""One step of adversarial training: the discriminator's update, then the generator's against the updated
discriminator; or both at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gan_fast.precision import autocast, float32_products

from . import simultaneous
from .config import TrainingSettings
from .probe import Probe, statistics_layers
from .step_metrics import StepMetrics

__all__ = ["GanLoss", "GanStep", "StepMetrics"]


class GanLoss(Protocol):
    """What the step needs of a loss; `gan_fast.losses` has them. Logits may have any shape, the results are scalars."""

    def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The discriminator's loss: its mean over real samples plus its mean over generated ones."""

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        """The generator's loss."""


class GanStep:
    """The two networks, their optimisers, and the step.

    - The generator runs forward once: the discriminator's update sees its samples detached, the generator's update goes
    on
      from the same graph. Its running statistics therefore move once.
    - The discriminator sees real and generated samples in one batch, unless it takes statistics over the batch; then it
      sees them separately, so that the two kinds do not mix.
    - In the generator's update the discriminator's parameters do not ask for gradients: their weight gradients would be
      thrown away.

    With ``update="simultaneous"`` the discriminator runs once, forward and backward, on both kinds of samples, and both
    updates follow from that (see `gan_fast.training.simultaneous`): the generator descends against the discriminator
    before its update.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        loss: GanLoss,
        settings: TrainingSettings,
        found: Probe,
        device: torch.device,
        capturable: bool = False,
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.loss = loss
        self.device = device
        #: From the beginning of an update to its end: a step that failed in between leaves networks and optimisers
        #: between two steps.
        self.halfway = False
        #: How often `load_state_dict` has put other tensors into the optimisers.
        self.loads = 0
        self._sigmoid = found.sigmoid
        self._mixes_samples = found.mixes_samples
        self._statistics = statistics_layers(discriminator)
        self._precision = settings.precision
        self._update = settings.update
        self._logits_per_sample = found.logits_per_sample
        if self._update == "simultaneous":
            self._require_simultaneous(starting=True)
        self.g_parameters = _trainable(generator, "generator")
        self.d_parameters = _trainable(discriminator, "discriminator")
        shared = {id(p) for p in self.g_parameters} & {id(p) for p in self.d_parameters}
        if shared:
            raise ValueError(f"generator and discriminator share {len(shared)} parameters; each needs its own")
        self.g_optimizer = _adam(self.g_parameters, settings.g_lr, settings, capturable)
        self.d_optimizer = _adam(self.d_parameters, settings.d_lr, settings, capturable)
        # fp16 alone has so few exponent bits that small gradients vanish unless the losses are scaled up.
        scaled = settings.precision == "fp16"
        self.g_scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.d_scaler = torch.amp.GradScaler(device.type, enabled=scaled)

    @property
    def separate(self) -> bool:
        """Whether the discriminator must see real and generated samples in two batches."""
        if self._mixes_samples:
            return True
        return any(layer.training or not layer.track_running_stats for layer in self._statistics)

    @property
    def passes(self) -> str:
        """In words: how the discriminator runs in a step."""
        if self._update == "simultaneous":
            return "one forward and one backward pass over both kinds of samples serve both losses"
        if self.separate:
            return "real and generated samples apart, since it takes statistics over the batch; then its input gradient"
        return "real and generated samples in one batch; then its input gradient, after its update"

    def _require_simultaneous(self, starting: bool = False) -> None:
        """Raise ValueError where this discriminator cannot serve both losses at once; ``starting``: before the first
        step, which puts a network in eval mode into train mode."""
        statistics = self.separate or (starting and bool(self._statistics) and not self.discriminator.training)
        reason = simultaneous.refusal(statistics, self._logits_per_sample)
        if reason is not None:
            raise ValueError(reason)

    def enter_train_mode(self) -> None:
        """Undo an eval mode that the networks' owner has left; single layers held in eval mode stay so."""
        for network in (self.generator, self.discriminator):
            if not network.training:
                network.train()

    def __call__(self, real: Tensor, z: Tensor) -> StepMetrics:
        """One step on ``real`` (N, ...) and ``z`` (N, ...), both on the training's device."""
        self.halfway = True
        self.enter_train_mode()
        with float32_products(self._precision, self.device.type), self._sigmoid_skipped():
            with self._autocast():
                fakes = self.generator(z)
            if self._update == "simultaneous":
                metrics = self._update_both(real, fakes)
            else:
                d_loss, real_logits, fake_logits = self._update_discriminator(real, fakes.detach())
                metrics = StepMetrics(d_loss, self._update_generator(fakes), real_logits, fake_logits)
        self.halfway = False
        return metrics

    def _update_both(self, real: Tensor, fakes: Tensor) -> StepMetrics:
        self._require_simultaneous()  # a layer may have been put into train mode meanwhile
        for optimizer in (self.d_optimizer, self.g_optimizer):
            optimizer.zero_grad(set_to_none=True)
        judged = fakes.detach().requires_grad_()
        with self._autocast():
            logits = self.discriminator(torch.cat((real.to(fakes.dtype), judged)))
        found = simultaneous.seeds(
            logits,
            lambda real_logits, fake_logits: _checked(self.loss.d_loss(real_logits, fake_logits), "d_loss"),
            lambda fake_logits: _checked(self.loss.g_loss(fake_logits), "g_loss"),
        )
        logits.backward(found.logits)
        if judged.grad is None:
            raise ValueError("the discriminator's logits do not depend on its input: there is nothing for G to learn")
        fakes.backward(simultaneous.generator_gradient(judged.grad, found.quotients))
        self.d_optimizer.step()
        self.g_optimizer.step()
        real_logits, fake_logits = _full(logits.detach()).chunk(2)
        return StepMetrics(found.d_loss, found.g_loss, real_logits, fake_logits)

    def _update_discriminator(self, real: Tensor, fakes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.d_optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            if self.separate:
                real_logits, fake_logits = self.discriminator(real), self.discriminator(fakes)
            else:
                logits = self.discriminator(torch.cat((real.to(fakes.dtype), fakes)))
                real_logits, fake_logits = logits.chunk(2)
        real_logits, fake_logits = _full(real_logits), _full(fake_logits)
        loss = _checked(self.loss.d_loss(real_logits, fake_logits), "d_loss")
        _descend(loss, self.d_optimizer, self.d_scaler)
        return loss.detach(), real_logits.detach(), fake_logits.detach()

    def _update_generator(self, fakes: Tensor) -> Tensor:
        self.g_optimizer.zero_grad(set_to_none=True)
        with _frozen(self.d_parameters):
            with self._autocast():
                logits = self.discriminator(fakes)
            loss = _checked(self.loss.g_loss(_full(logits)), "g_loss")
            _descend(loss, self.g_optimizer, self.g_scaler)
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        """For a forward pass: losses are outside."""
        return autocast(self._precision, self.device.type)

    def _sigmoid_skipped(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self._sigmoid is None else self._sigmoid.skipped()

    def state_dict(self) -> dict[str, Any]:
        """Optimisers and loss scales, for a checkpoint. The networks' parameters are stored apart."""
        return {
            "g_optimizer": self.g_optimizer.state_dict(),
            "d_optimizer": self.d_optimizer.state_dict(),
            "g_scaler": self.g_scaler.state_dict(),
            "d_scaler": self.d_scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the state of `state_dict` back; the learning rates, betas and eps stay those of this step's settings.

        Raises:
            ValueError: the stored moments are of other parameters.
        """
        self.loads += 1
        for name in ("g_optimizer", "d_optimizer"):
            optimizer: torch.optim.Optimizer = getattr(self, name)
            own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(state[name])
            for group, settings in zip(optimizer.param_groups, own, strict=True):
                group.update(settings)
            for number, (parameter, moments) in enumerate(optimizer.state.items()):
                for key in ("exp_avg", "exp_avg_sq"):
                    if moments[key].shape != parameter.shape:
                        raise ValueError(
                            f"{name}: {key} of parameter {number} has shape {tuple(moments[key].shape)}, "
                            f"the parameter {tuple(parameter.shape)}"
                        )
        for name in ("g_scaler", "d_scaler"):
            scaler: torch.amp.GradScaler = getattr(self, name)
            if scaler.is_enabled() and state[name]:
                scaler.load_state_dict(state[name])


def _checked(loss: object, name: str) -> Tensor:
    """What a loss returned, if one can descend on it."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"{name} of the loss must return a scalar tensor, got {type(loss).__name__}")
    if loss.dim() != 0:
        raise ValueError(
            f"{name} of the loss must return a scalar tensor, got shape {tuple(loss.shape)}; take its mean()"
        )
    if not loss.requires_grad:
        raise ValueError(f"{name} of the loss returned a tensor without a gradient (detached, or made from numbers)")
    return loss


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    if scaler.is_enabled():
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    else:
        loss.backward(simultaneous.unit_seed(loss))
        optimizer.step()


def _full(logits: Tensor) -> Tensor:
    """Logits in at least fp32: the losses are never computed in a 16-bit type."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _trainable(network: nn.Module, name: str) -> list[nn.Parameter]:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(f"the {name} has no parameter with requires_grad=True: there is nothing to train")
    return parameters


def _adam(parameters: list[nn.Parameter], lr: float, settings: TrainingSettings, capturable: bool) -> torch.optim.Adam:
    # Fused Adam is one pass over each parameter; PyTorch has it for these devices and floating types.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.Adam(
        parameters, lr=lr, betas=settings.betas, eps=settings.eps, fused=fused, capturable=capturable
    )


@contextlib.contextmanager
def _frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    held = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
