"""Checks of every kernel on the device against float64: the tests' cases, tiles with 4 and 8 warps, repeated runs.

Everything here calls the kernels themselves (`raw_kernels`): the check at a kernel's first use, behind which PyTorch
would serve, must not hide what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import CONV, CONV_TRANSPOSE, ConvCase, conv_case, lay
from torch import Tensor

from .device import DTYPES, Settings, few_programs, normal, precision
from .journal import Row, row
from .verdicts import Verdict, judge, raw_kernels, truncated, uses_kernels

CASES: list[ConvCase] = [*CONV, *CONV_TRANSPOSE]
ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh", "sigmoid")
#: Runs that must agree bit by bit.
REPEATS = 50
Call = Callable[..., Any]


def core_cases(settings: Settings) -> list[ConvCase]:
    """The article's four kinds of layers, with enough positions for several tiles of every size."""
    n, c = (1, 17) if settings.tiny else (4, 128)
    side = 3 if settings.tiny else 14
    return [
        conv_case("up_k5s2", (n, c, side, side), (c, c, 5, 5), (2 * side, 2 * side), stride=2, pad=2, transposed=True,
                  layout="channels_last", activation="leaky_relu"),
        conv_case("down_k3s2", (n, c, side, side), (c, c, 3, 3), stride=2, pad=1, layout="channels_last",
                  activation="relu"),
        conv_case("to_one_k7", (n, c, 2 * side, 2 * side), (1, c, 7, 7), pad=3, activation="tanh"),
        conv_case("from_one_k3s2", (2 * n, 1, 2 * side, 2 * side), (c, 1, 3, 3), stride=2, pad=1,
                  activation="leaky_relu"),
    ]  # fmt: skip


def compare(call: Call, tensors: dict[str, Tensor | None], name: str, backend: str = "triton") -> Verdict:
    """`call(backend, **tensors)` by our kernels against float64; that Triton's ran is seen by their launches."""
    given = {key: None if t is None else t.to(DTYPES[name]) for key, t in tensors.items()}

    def exactly(change: Callable[[Tensor], Tensor]) -> Any:
        return call("reference", **{key: None if t is None else change(t).double() for key, t in given.items()})

    with torch.no_grad(), precision(name):
        with raw_kernels(), uses_kernels() as used:
            ours = call(backend, **given)
        theirs = call("reference", **given)
        empty = all(out.numel() == 0 for out in (ours if isinstance(ours, tuple) else (ours,)))
        ideal = exactly(truncated) if name == "tf32" else None
        return judge(ours, exactly(lambda t: t), theirs, ideal, None if empty or backend != "triton" else used)


def _uniform(settings: Settings, shape: tuple[int, ...], seed: int) -> Tensor:
    """Numbers in (0.1, 0.9): outputs that every activation can have."""
    generator = torch.Generator(settings.device).manual_seed(seed)
    return torch.rand(shape, generator=generator, device=settings.device) * 0.8 + 0.1


def calls_of(case: ConvCase, settings: Settings) -> dict[str, tuple[Call, dict[str, Tensor | None]]]:
    """The three kinds of calls of a case: value, prologue (a gradient that passes an activation), weight gradient."""
    from gan_fast.ops import OPERATORS

    x, w, b = (None if t is None else t.to(settings.device) for t in case.tensors(requires_grad=False))
    assert x is not None and w is not None
    x = lay(x, case.layout)
    act = case.activation
    stride, pad, dilation, groups, _ = case.form

    def value(backend: str, x: Tensor, w: Tensor, b: Tensor | None) -> Any:
        return OPERATORS[case.op](x, w, b, *case.form, act, case.slope, None, "none", 0.3, backend)

    def prologue(backend: str, x: Tensor, w: Tensor, y: Tensor) -> Any:
        return OPERATORS[case.op](x, w, None, *case.form, "none", 0.01, y, act, 0.3, backend)

    last = case.layout == "channels_last" and len(case.weight) == 4

    def weight_grad(backend: str, x: Tensor, g: Tensor, y: Tensor) -> Any:
        before = (None, "none") if act == "none" else (y, act)
        return OPERATORS["conv_weight_grad"](
            x, g, list(case.weight[2:]), stride, pad, dilation, groups, case.transposed, True, *before, 0.3, last,
            backend,
        )  # fmt: skip

    g, y = normal(settings, case.output, 3), _uniform(settings, case.output, 4)
    found: dict[str, tuple[Call, dict[str, Tensor | None]]] = {
        "value": (value, {"x": x, "w": w, "b": b}),
        "weight_grad": (weight_grad, {"x": x, "g": g, "y": y}),
    }
    if act != "none":
        found["prologue"] = (prologue, {"x": x, "w": w, "y": _uniform(settings, case.input, 5)})
    return found


def check_case(case: ConvCase, settings: Settings, name: str) -> list[Row]:
    """A case with the tile that its shapes choose."""
    rows = []
    for kind, (call, tensors) in calls_of(case, settings).items():
        verdict = compare(call, tensors, name)
        what = f"{case.op} {case.name} {kind}"
        rows.append(row(what, check=verdict.check, dtype=name, batch=case.input[0], **verdict.fields()))
    return rows


def tiles(case: ConvCase, settings: Settings, name: str) -> list[Any]:
    """What the kernels of a case may be compiled with, each with 4 and with 8 warps."""
    from gan_fast.ops import triton_tiles
    from gan_fast.ops._triton import Tile

    if settings.tiny:
        return [Tile(32, 32, 32, warps, 1) for warps in (4, 8)]
    few = case.weight[0 if case.transposed else 1] < 16
    table = triton_tiles.FLAT_TILES if few else triton_tiles.TILES
    kind = triton_tiles.kind(DTYPES[name], "tf32" if name == "tf32" else "ieee")
    found = [tile._replace(warps=warps) for tile in table[kind] for warps in (4, 8)]
    return list(dict.fromkeys(found))


def check_tiles(case: ConvCase, settings: Settings, name: str) -> list[Row]:
    """4 warps against 8: every tile with both, each against float64."""
    from gan_fast.ops import _triton

    rows = []
    for kind, (call, tensors) in calls_of(case, settings).items():
        for tile in tiles(case, settings, name):
            what = f"{case.op} {case.name} {kind} {tile.m}x{tile.n}x{tile.k} warps {tile.warps}"
            try:
                with _triton.tile(tile):
                    verdict = compare(call, tensors, name)
            except Exception as error:
                if type(error).__name__ != "OutOfResources":
                    raise
                # Not a wrong number: that combination does not fit the device, and no table has to have it.
                rows.append(row(what, check="green", dtype=name, state="skipped", reason=str(error)[:200]))
                continue
            rows.append(
                row(what, check=verdict.check, dtype=name, batch=case.input[0], warps=tile.warps, **verdict.fields())
            )
    return rows


# ------------------------------------------------------------------------------------------------------ element-wise


def elementwise_calls(settings: Settings, large: bool = False) -> dict[str, tuple[Call, dict[str, Tensor | None]]]:
    """Operators without a matrix product, on awkward sizes or on the article's."""
    from gan_fast.ops import OPERATORS

    shape = (64, 128, 28, 28) if large and not settings.tiny else (3, 67, 5, 13)
    channels = shape[1]
    x, y = lay(normal(settings, shape, 1) + 3, "channels_last"), lay(_uniform(settings, shape, 2), "channels_last")
    g, b = lay(normal(settings, shape, 3), "channels_last"), normal(settings, (channels,), 4)
    # So many logits that a mean is the work of one program on awkward sizes, and of several on the article's.
    w, logits = normal(settings, (channels,), 5) + 1, normal(settings, (shape[0] * 350,), 6, 8.0)

    def with_activation(operator: str, act: str) -> Call:
        def call(backend: str, **tensors: Tensor | None) -> Any:
            return OPERATORS[operator](*tensors.values(), act, 0.2, backend)

        return call

    def norm(backend: str, x: Tensor, w: Tensor, b: Tensor) -> Any:
        return OPERATORS["batch_norm_act"](x, w, b, None, None, 1e-5, "leaky_relu", 0.2, backend)

    def norm_backward(backend: str, g: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Any:
        wide, axes = x.double(), [0, 2, 3]
        statistics = wide.mean(axes), wide.var(axes, correction=0)
        return OPERATORS["batch_norm_act_backward"](g, x, w, b, *statistics, True, 1e-5, "leaky_relu", 0.2, backend)

    def bce(reduction: str, constant: bool) -> Call:
        def call(backend: str, x: Tensor, t: Tensor) -> Any:
            target = (None, 0.9) if constant else (t, 0.0)
            return OPERATORS["bce_with_logits"](x, *target, None, None, reduction, backend)

        return call

    found: dict[str, tuple[Call, dict[str, Tensor | None]]] = {}
    for act in ACTIVATIONS[1:2] if settings.tiny else ACTIVATIONS:
        found[f"bias_act {act}"] = (with_activation("bias_act", act), {"x": x, "b": b})
        found[f"act_grad {act}"] = (with_activation("act_grad", act), {"g": g, "y": y})
    found["batch_norm_act"] = (norm, {"x": x, "w": w, "b": b})
    found["batch_norm_act_backward"] = (norm_backward, {"g": g, "x": x, "w": w, "b": b})
    target = _uniform(settings, tuple(logits.shape), 7)
    for reduction in ("mean", "none"):
        found[f"bce_with_logits {reduction}"] = (bce(reduction, False), {"x": logits, "t": target})
        found[f"bce_with_logits {reduction}, one target"] = (bce(reduction, True), {"x": logits, "t": target})
    return found


def check_elementwise(settings: Settings, name: str, large: bool) -> list[Row]:
    """Every operator without a matrix product."""
    rows = []
    for what, (call, tensors) in elementwise_calls(settings, large).items():
        verdict = compare(call, tensors, name)
        rows.append(row(f"{what}{' large' if large else ''}", check=verdict.check, dtype=name, **verdict.fields()))
    return rows


# ------------------------------------------------------------------------------------------------------ repeated runs


def check_repeats(settings: Settings, name: str, which: str) -> list[Row]:
    """The same call again and again gives the same bits, also while another stream keeps the device busy: no race.

    `which`: "conv" or "elementwise".
    """
    if which == "conv":
        cases = core_cases(settings)[: 1 if settings.tiny else None]
        problems = {f"{c.name} {kind}": made for c in cases for kind, made in calls_of(c, settings).items()}
    else:
        problems = elementwise_calls(settings, large=True)
    repeats = 2 if settings.tiny else REPEATS
    noise = torch.zeros(1 << (4 if settings.tiny else 22), device=settings.device)
    aside = torch.cuda.Stream() if settings.cuda else None
    rows = []
    for what, (call, tensors) in problems.items():
        given = {key: None if t is None else t.to(DTYPES[name]) for key, t in tensors.items()}
        with torch.no_grad(), precision(name), raw_kernels(), few_programs(settings):
            first = flat(call("triton", **given))
            different = 0
            for turn in range(1, repeats):
                if aside is not None and turn % 2:
                    with torch.cuda.stream(aside):
                        noise.mul_(1.0)
                different += not same(first, flat(call("triton", **given)))
        check = "red" if different else "green"
        reason = {"reason": f"{different} of {repeats} runs gave other bits"} if different else {}
        rows.append(row(f"{what}, {repeats} runs", check=check, dtype=name, **reason))
    return rows


def flat(result: Any) -> list[Tensor]:
    """All outputs of a call."""
    return list(result) if isinstance(result, tuple) else [result]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Equal bit by bit, NaN included."""
    bits = [[t.contiguous().flatten().view(torch.uint8) for t in tensors] for tensors in (left, right)]
    return all(torch.equal(a, b) for a, b in zip(*bits, strict=True))
