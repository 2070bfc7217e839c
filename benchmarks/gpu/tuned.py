"""`gan-fast tune` on the device: every tile of a layer's passes is timed by both clocks, and the choice follows."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from .device import Settings, lay, normal
from .journal import Row, row

CLOCKS = ("one_by_one", "as_graph")


def check(settings: Settings) -> list[Row]:
    """A strided convolution with its gradients, in float32 without TF32."""
    what = "gan-fast tune"
    if not settings.cuda:
        return [row(what, check="unchecked", state="skipped", reason="its clocks need a CUDA device")]
    from gan_fast import choice_table, functional, tuning
    from gan_fast.bench import on_device
    from gan_fast.precision import float32_products

    x, w = (
        lay(normal(settings, shape, seed), "channels_last")
        for seed, shape in enumerate(((64, 64, 28, 28), (64,) * 2 + (3, 3)))
    )
    x.requires_grad_()
    w.requires_grad_()

    def step() -> list[Tensor]:
        y = functional.conv2d(x, w, stride=2, padding=1, activation="tanh")
        return [y, *torch.autograd.grad(y.sum(), [x, w])]

    rows = []
    before = os.environ.get("GAN_FAST_TABLE")
    os.environ["GAN_FAST_TABLE"] = str(settings.out / "tuned.json")
    try:
        with float32_products("fp32", "cuda"):
            for name in CLOCKS:
                calls = tuning.record(step)
                cells = tuning.measure(calls, 5, clock=getattr(on_device, name))
                tuning.save(cells)
                served: dict[str, str] = {}
                with tuning.recording(lambda op, _, choice, served=served: served.update({op.name: choice.backend})):
                    step()
                for call in calls:
                    rows.append(_row(f"{what}, {name}: {call.text}", call, cells, served))
    finally:
        if before is None:
            del os.environ["GAN_FAST_TABLE"]
        else:
            os.environ["GAN_FAST_TABLE"] = before
        choice_table.forget()
    return rows


def _row(what: str, call: Any, cells: list[Any], served: dict[str, str]) -> Row:
    cell = next((cell for cell in cells if cell.call is call), None)
    if cell is None:
        return row(what, check="red", dtype="fp32", batch=64, reason="no kernel passed its check")
    wanted, got = cell.use or "torch", served.get(call.op, "torch")
    facts = {"use": cell.use, "tile": cell.tile, **{f"{name}_seconds": took for name, took in cell.seconds.items()}}
    reason = {} if got == wanted else {"reason": f"measured: {wanted}, served: {got}"}
    return row(what, check="red" if reason else "green", dtype="fp32", batch=64, **facts, **reason)
