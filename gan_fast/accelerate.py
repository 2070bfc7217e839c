"""Put gan_fast's kernels into any torch GAN, in place, and take them out again.

    report = gan_fast.accelerate(G, D)
    print(report)            # what was swapped, what was left and why
    gan_fast.restore(G, D)

A swap only sets a module's class to the `gan_fast` subclass of its torch class. Parameters, buffers, hooks,
state_dict keys and every reference stay the same objects, so optimisers made before or after work alike. Only exact
torch classes are swapped: a subclass may rely on what its forward does, and is left and reported.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator

import torch
from torch.nn.utils import parametrize

from gan_fast import nn
from gan_fast.sequential import Sequential, against_collapse, fused_activation, is_upsampling

__all__ = ["Left", "Report", "Swap", "accelerate", "restore"]

logger = logging.getLogger(__name__)

_LAYERS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.Conv1d: nn.Conv1d,
    torch.nn.Conv2d: nn.Conv2d,
    torch.nn.Conv3d: nn.Conv3d,
    torch.nn.ConvTranspose1d: nn.ConvTranspose1d,
    torch.nn.ConvTranspose2d: nn.ConvTranspose2d,
    torch.nn.ConvTranspose3d: nn.ConvTranspose3d,
    torch.nn.Linear: nn.Linear,
    torch.nn.BatchNorm1d: nn.BatchNorm1d,
    torch.nn.BatchNorm2d: nn.BatchNorm2d,
    torch.nn.BCEWithLogitsLoss: nn.BCEWithLogitsLoss,
}
_ORIGINALS = {ours: original for original, ours in {**_LAYERS, torch.nn.Sequential: Sequential}.items()}

#: Set on a module while it is swapped, so that `restore` leaves alone what was built from gan_fast's layers in the
#: first place. It lives in the instance, hence survives copying and pickling.
_MARK = "_gan_fast_swapped"


@dataclasses.dataclass(frozen=True)
class Swap:
    """One swapped layer: its name, its torch class, its new class, and the layers after it (an activation) and before
    it (an upsampling) that it now computes too."""

    name: str
    old: str
    new: str
    activation: str | None = None
    upsampling: str | None = None


@dataclasses.dataclass(frozen=True)
class Left:
    """One layer that could have been swapped by its kind but was not, and why."""

    name: str
    kind: str
    reason: str


@dataclasses.dataclass
class Report:
    """What `accelerate` did.

    Attributes:
        swapped: layers that now run gan_fast's code.
        left: layers of those kinds that stayed as they were, each with its reason; also nearest upsamplings that come
            before a convolution and are not left to it.
        already: names of layers that were gan_fast's before the call.
        sequentials: names of the `torch.nn.Sequential` containers that now fuse activations and keep channels_last.
    """

    swapped: list[Swap] = dataclasses.field(default_factory=list)
    left: list[Left] = dataclasses.field(default_factory=list)
    already: list[str] = dataclasses.field(default_factory=list)
    sequentials: list[str] = dataclasses.field(default_factory=list)

    @property
    def reasons(self) -> dict[str, str]:
        """Why each layer in `left` was left, by name."""
        return {entry.name: entry.reason for entry in self.left}

    def __str__(self) -> str:
        fused = sum(swap.activation is not None for swap in self.swapped)
        lines = [
            f"accelerate: {len(self.swapped)} swapped ({fused} with a fused activation), {len(self.left)} left, "
            f"{len(self.already)} already gan_fast's, {len(self.sequentials)} Sequential kept in channels_last"
        ]
        rows = []
        for swap in self.swapped:
            before = f"{swap.upsampling} + " if swap.upsampling else ""
            after = f" + {swap.activation}" if swap.activation else ""
            rows.append(("swapped", swap.name, f"{swap.old} -> {before}{swap.new}{after}"))
        rows += [("left", entry.name, f"{entry.kind}: {entry.reason}") for entry in self.left]
        width = max((len(name) for _, name, _ in rows), default=0)
        lines += [f"  {what:7}  {name:{width}}  {text}" for what, name, text in rows]
        return "\n".join(lines)


def accelerate(*modules: torch.nn.Module) -> Report:
    """Swap the layers of `modules` that gan_fast has kernels for; in place, undone by `restore`.

    Swapped: exact `torch.nn` Conv1d/2d/3d, ConvTranspose1d/2d/3d, Linear, BatchNorm1d/2d and BCEWithLogitsLoss, with
    old-style or parametrized weight and spectral norm too; and `torch.nn.Sequential` around them (see
    `gan_fast.sequential`), where a directly following ReLU, LeakyReLU, Tanh or Sigmoid is computed by the layer's own
    kernel, and a directly preceding nearest Upsample together with the convolution. Results agree with the unswapped
    modules up to rounding, in training and evaluation. A second call does nothing more.

    Returns:
        A `Report`; its str() is a table. With several modules the names start with the module's position: `0.main.3`.

    Raises:
        TypeError: an argument is not a module.
    """
    report = Report()
    seen: set[int] = set()
    for name, module in _walk(modules):
        if id(module) in seen:
            continue
        seen.add(id(module))
        _swap_layer(name, module, report)
    _swap_sequentials(modules, report)
    _pair_upsamplings(modules, report)
    logger.info("%s", report)
    return report


def restore(*modules: torch.nn.Module) -> int:
    """Undo `accelerate`: give every module in `modules` that was swapped its torch class back; in place.

    Layers that were built from gan_fast's classes stay. Returns the number of modules changed.

    Raises:
        TypeError: an argument is not a module.
    """
    changed = 0
    for _, module in _walk(modules):
        if module.__dict__.get(_MARK) and _set_class(module, _ORIGINALS):
            del module.__dict__[_MARK]
            changed += 1
    return changed


def _walk(modules: tuple[torch.nn.Module, ...]) -> Iterator[tuple[str, torch.nn.Module]]:
    """Every module with its qualified name, children after their parents."""
    for index, root in enumerate(modules):
        if not isinstance(root, torch.nn.Module):
            raise TypeError(f"modules[{index}]: got {type(root).__name__}, expected a torch.nn.Module")
    for index, root in enumerate(modules):
        for name, module in root.named_modules():
            parts = [str(index)] if len(modules) > 1 else []
            yield ".".join(parts + [name] if name else parts) or "(itself)", module


def _parametrized_base(module: torch.nn.Module) -> type[torch.nn.Module] | None:
    """The class under the one that `torch.nn.utils.parametrize` made for `module`; None if not parametrized."""
    kind = type(module)
    if not parametrize.is_parametrized(module) or kind.__module__ != parametrize.__name__:
        return None
    return kind.__bases__[0]


def _set_class(module: torch.nn.Module, table: dict[type[torch.nn.Module], type[torch.nn.Module]]) -> bool:
    """Exchange the class of `module` as `table` says, under a parametrization too; False if it is not in there."""
    kind = type(module)
    if kind in table:
        module.__class__ = table[kind]
        return True
    base = _parametrized_base(module)
    if base is None or base not in table:
        return False
    # The class holds the properties that compute the weights; copies of the module share it, so it is rebuilt, not
    # changed.
    members = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__", "__doc__")}
    module.__class__ = type(kind.__name__, (table[base],), members)
    return True


def _swap_layer(name: str, module: torch.nn.Module, report: Report) -> None:
    kind = type(module)
    base = _parametrized_base(module) or kind
    if base in _LAYERS:
        reason = _reason_against(module)
        if reason is not None:
            report.left.append(Left(name, base.__name__, reason))
            return
        _set_class(module, _LAYERS)
        module.__dict__[_MARK] = True
        report.swapped.append(Swap(name, f"torch.nn.{base.__name__}", f"gan_fast.nn.{_LAYERS[base].__name__}"))
    elif isinstance(module, tuple(_LAYERS.values())):
        report.already.append(name)
    elif isinstance(module, tuple(_LAYERS)):
        if isinstance(module, torch.nn.modules.lazy.LazyModuleMixin):
            reason = "lazy: its sizes are not known yet; run the network once, then accelerate"
        else:
            parent = next(known for known in _LAYERS if isinstance(module, known))
            reason = f"a subclass of torch.nn.{parent.__name__}, whose forward may differ"
        report.left.append(Left(name, kind.__name__, reason))
    elif isinstance(module, torch.jit.ScriptModule):
        original = getattr(module, "original_name", "")
        if original in {known.__name__ for known in _LAYERS}:
            report.left.append(Left(name, original, "compiled by torch.jit, its class cannot be exchanged"))


def _reason_against(module: torch.nn.Module) -> str | None:
    """Why an exact torch layer must stay, or None."""
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    return None


def _swap_sequentials(modules: tuple[torch.nn.Module, ...], report: Report) -> None:
    """Swap containers from the inside out, so that one that only holds swapped containers is swapped too."""
    activations: dict[str, str] = {}
    # Reversed, children come before their parents; of a module's several names the first one wins, as in _swap_layer.
    unique = {id(module): (name, module) for name, module in reversed(list(_walk(modules)))}
    for name, module in unique.values():
        if not isinstance(module, torch.nn.Sequential):
            continue
        children = list(module._modules.items())
        if type(module) is torch.nn.Sequential and "forward" not in module.__dict__:
            if not any(isinstance(child, (*_LAYERS.values(), Sequential)) for _, child in children):
                continue
            module.__class__ = Sequential
            module.__dict__[_MARK] = True
            report.sequentials.append(name)
        if type(module) is Sequential:
            prefix = "" if name == "(itself)" else f"{name}."
            for (key, layer), (_, follower) in itertools.pairwise(children):
                if fused_activation(layer, follower) is not None:
                    activations[prefix + key] = type(follower).__name__
    report.sequentials.reverse()
    report.swapped = [dataclasses.replace(swap, activation=activations.get(swap.name)) for swap in report.swapped]


def _pair_upsamplings(modules: tuple[torch.nn.Module, ...], report: Report) -> None:
    """Report every nearest upsampling with a convolution of ours as its next sibling: computed with it, or left."""
    before: dict[str, str] = {}
    for name, parent in {id(module): (name, module) for name, module in reversed(list(_walk(modules)))}.values():
        prefix = "" if name == "(itself)" else f"{name}."
        for (key, upsampling), (next_key, layer) in itertools.pairwise(parent._modules.items()):
            if upsampling is None or not is_upsampling(upsampling) or not isinstance(layer, (nn.Conv1d, nn.Conv2d)):
                continue
            kind = type(upsampling).__name__
            reason = against_collapse(upsampling, layer)
            if type(parent) is not Sequential:
                reason = (
                    f"{type(parent).__name__} is no Sequential, its forward decides what follows; "
                    "gan_fast.functional.upsample_conv2d computes it with a convolution"
                )
            if reason is None:
                before[prefix + next_key] = kind
            else:
                report.left.append(Left(prefix + key, kind, reason))
    report.swapped = [dataclasses.replace(swap, upsampling=before.get(swap.name)) for swap in report.swapped]
