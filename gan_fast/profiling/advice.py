"""What a profile means, in words; and what `accelerate` would bring to networks that have not seen it."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator

import torch
from torch import nn

from gan_fast import nn as fast_nn
from gan_fast.accelerate import accelerate
from gan_fast.explain import Row, explain

from .networks import Networks
from .phases import DATA, GAPS, LOGGING, OPTIMISER, SAVING
from .report import LayerRow, Report

__all__ = ["choices", "is_accelerated", "prospects", "sentences"]

#: From this share of the step on a phase gives its name to the verdict.
NOTABLE = 0.25
#: What copying or explaining a user's network can raise: a forecast is then left out, the measurement stands.
_CANNOT = (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError)

_CURES = {
    DATA: ("data-bound", "waiting for the loader", "more workers, decoded images in memory, or a smaller transform"),
    LOGGING: ("logging-bound", "writing logs", "log less often"),
    SAVING: ("saving-bound", "in checkpoints and pictures", "save less often"),
    GAPS: ("host-bound", "in Python outside of networks, losses and optimisers", "larger batches, or less of it"),
    OPTIMISER: ("optimiser-bound", "in the optimisers", "fused=True"),
}


def sentences(report: Report) -> list[str]:
    """The verdict from the phases, layers and roof of a report."""
    found = []
    shares: dict[str, float] = {}
    for row in report.phases:
        shares[row.phase] = shares.get(row.phase, 0.0) + row.share
    for phase, (bound, where, cure) in _CURES.items():
        if shares.get(phase, 0.0) >= NOTABLE:
            found.append((shares[phase], f"{bound}: {shares[phase]:.0%} {where} ({cure})"))
    said = [sentence for _, sentence in sorted(found, reverse=True)]
    if not said and shares:
        networks = sum(share for phase, share in shares.items() if phase not in _CURES)
        said.append(
            f"compute-bound: {networks:.0%} in the networks and losses, {shares.get(DATA, 0):.0%} in the loader"
        )
    if report.gaps is not None and report.gaps >= NOTABLE:
        said.append(f"the device waits for the host {report.gaps:.0%} of the time (larger batches, or CUDA graphs)")
    if report.outside is not None and report.outside >= NOTABLE:
        said.append(f"no operator ran in {report.outside:.0%} of the watched steps: Python and autograd between them")
    layers = [row for row in report.layers if row.layer]
    total = sum(row.forward + row.backward for row in report.layers)
    if layers and total:
        longest = max(layers, key=lambda row: row.forward + row.backward)
        share = (longest.forward + longest.backward) / total
        roof = f", at {longest.roof:.0%} of the roof" if longest.roof else ""
        said.append(f"the longest layer is {longest.layer} ({longest.kind}): {share:.0%} of the operators' time{roof}")
    return said


def choices(networks: Networks) -> dict[str, Row]:
    """``network.layer`` -> what `gan_fast.explain` says of it, for the inputs that were seen."""
    found = {}
    for name, module in networks.modules.items():
        for row in _explained(networks, name, module):
            found[f"{name}.{row.name}" if row.name else name] = row
    return found


def is_accelerated(module: nn.Module) -> bool:
    """Whether any layer is gan_fast's."""
    ours = tuple(getattr(fast_nn, name) for name in fast_nn.__all__)
    return any(isinstance(layer, ours) for layer in module.modules())


def prospects(networks: Networks, layers: list[LayerRow]) -> list[str]:
    """What `accelerate` would change in the networks that have no layer of gan_fast's."""
    said = []
    times = {row.layer: row.forward + row.backward for row in layers}
    total = sum(times.values())
    for name, module in networks.modules.items():
        if is_accelerated(module) or not isinstance(module, nn.Module):
            continue
        try:
            with _quiet("gan_fast.accelerate"):
                twin = copy.deepcopy(module)
                swapped = accelerate(twin)
            rows = _explained(networks, name, twin)
        except _CANNOT as error:
            said.append(f"accelerate({name}): not foreseen, it cannot be copied ({error})")
            continue
        served = [row for row in rows if row.forward.backend not in ("torch", "none")]
        if not swapped.swapped:
            said.append(f"accelerate({name}) would swap nothing: it has no layer that gan_fast has kernels for")
            continue
        share = sum(times.get(f"{name}.{row.name}" if row.name else name, 0.0) for row in served)
        of_time = f", which take {share / total:.0%} of the operators' time now" if total and served else ""
        said.append(
            f"accelerate({name}) would swap {len(swapped.swapped)} layers; kernels would serve {len(served)} of them"
            f"{of_time}, PyTorch the others"
        )
    return said


def _explained(networks: Networks, name: str, module: nn.Module) -> list[Row]:
    """The explanation for the shape that the network saw; without a shape where that cannot be followed."""
    shape, dtype = networks.inputs.get(name, (None, None))
    device = next((p.device.type for p in module.parameters()), "cpu")
    autocast = contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype)
    with autocast:
        if shape is not None:
            with contextlib.suppress(*_CANNOT):
                return list(explain(module, shape))
        return list(explain(module))


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
