"""The shapes that every check of the convolution operators runs on, and the truth that it compares with.

One list for each operator feeds values, first and second derivatives, opcheck, torch.compile and strides. They are
small and awkward on purpose: sizes of 1, primes, channel counts around the vector widths, kernels larger than the
input, gaps, crops.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from gan_fast.ops.geometry import Geometry

LAYOUTS = ("contiguous", "channels_last", "strided")


@dataclass(frozen=True)
class ConvCase:
    """One call: shapes, geometry, how the input lies in memory, and which activation ends it."""

    name: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    geometry: Geometry
    transposed: bool
    layout: str = "contiguous"
    activation: str = "none"
    slope: float = 0.2
    bias: bool = True
    weight_last: bool = False  # the weight in channels_last
    nudge: int = 0  # another sample of nearly the same numbers, see conv_checks.yardsticks

    @property
    def op(self) -> str:
        return "conv_transpose" if self.transposed else "conv"

    @property
    def rank(self) -> int:
        return len(self.input) - 2

    @property
    def output(self) -> tuple[int, ...]:
        channels = self.weight[1] * self.geometry.groups if self.transposed else self.weight[0]
        return (self.input[0], channels, *self.geometry.out_size)

    @property
    def form(self) -> tuple[object, ...]:
        """Geometry as the operators take it, out_size last."""
        g = self.geometry
        return list(g.stride), list(g.pad_begin), list(g.dilation), g.groups, list(g.out_size)

    def tensors(
        self, dtype: torch.dtype = torch.float32, scale: float = 1.0, requires_grad: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(input, weight, bias): the same numbers for every dtype."""
        generator = torch.Generator().manual_seed(sum(self.input) * 1009 + sum(self.weight))
        neighbour = torch.Generator().manual_seed(self.nudge)

        def normal(shape: tuple[int, ...], factor: float) -> Tensor:
            # Rounded to float32 first, so that the float64 truth starts from the very same numbers.
            numbers = torch.randn(shape, generator=generator, dtype=torch.float64) * factor
            noise = torch.randn(shape, generator=neighbour, dtype=torch.float64)
            return (numbers * (1 + 1e-3 * noise) if self.nudge else numbers).float().to(dtype)

        taps = self.weight[1]
        for size in self.weight[2:]:
            taps *= size
        x = lay(normal(self.input, scale), self.layout).requires_grad_(requires_grad)
        weight = normal(self.weight, taps**-0.5)
        if self.weight_last:
            weight = lay(weight, "channels_last")
        weight.requires_grad_(requires_grad)
        bias = normal(self.output[1:2], scale).requires_grad_(requires_grad) if self.bias else None
        return x, weight, bias


def lay(x: Tensor, layout: str) -> Tensor:
    """x in another memory order: "channels_last" (4-D), or "strided", a view with gaps inside a larger tensor."""
    if layout == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        big = x.new_full([*x.shape[:-1], 2 * x.shape[-1] + 1], float("nan"))
        view = big[..., 1::2]
        view.copy_(x)
        return view.detach()
    return x


def conv_case(
    name: str,
    input: tuple[int, ...],
    weight: tuple[int, ...],
    out: tuple[int, ...] | None = None,
    *,
    stride: int | tuple[int, ...] = 1,
    pad: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    transposed: bool = False,
    **options: object,
) -> ConvCase:
    """A case; without ``out`` the output's size is PyTorch's for symmetric padding ``pad``."""
    rank = len(input) - 2
    strides, pads, dilations = (
        (value,) * rank if isinstance(value, int) else value for value in (stride, pad, dilation)
    )
    spans = [d * (k - 1) + 1 for k, d in zip(weight[2:], dilations, strict=True)]
    if out is None and transposed:
        out = tuple((n - 1) * s - 2 * p + e for n, s, p, e in zip(input[2:], strides, pads, spans, strict=True))
    elif out is None:
        out = tuple((n + 2 * p - e) // s + 1 for n, s, p, e in zip(input[2:], strides, pads, spans, strict=True))
    return ConvCase(name, input, weight, Geometry(strides, pads, dilations, groups, out), transposed, **options)  # type: ignore[arg-type]  # options are the dataclass's own


CONV = [
    conv_case("gradcheck", (1, 4, 5, 4), (4, 2, 3, 2), (3, 3), stride=(2, 1), pad=(1, -1), dilation=(1, 2), groups=2),
    conv_case("ones", (1, 1, 1, 1), (1, 1, 1, 1)),
    conv_case("pointwise", (2, 19, 3, 5), (35, 19, 1, 1), layout="channels_last", activation="relu"),
    conv_case("k3s2", (2, 5, 9, 8), (7, 5, 3, 3), stride=2, pad=1, activation="leaky_relu"),
    conv_case("tails", (3, 17, 7, 5), (33, 17, 3, 3), pad=1, layout="channels_last", activation="tanh"),
    conv_case("k5s2", (2, 16, 14, 14), (32, 16, 5, 5), stride=2, pad=2, layout="strided", activation="relu"),
    conv_case("few_out", (2, 32, 10, 9), (1, 32, 7, 7), pad=3, activation="tanh"),
    # Whole blocks of channels and few outputs: the input is read where it lies.
    conv_case("few_out_s2", (2, 64, 9, 11), (4, 32, 7, 7), stride=2, pad=3, groups=2, layout="channels_last"),
    conv_case("few_out_line", (1, 256, 900), (1, 256, 9), pad=4),
    conv_case("three_out", (2, 20, 6, 9), (3, 20, 3, 3), pad=1, layout="channels_last", activation="sigmoid"),
    conv_case("few_in", (2, 1, 13, 12), (24, 1, 5, 5), stride=2, pad=2, activation="leaky_relu"),
    conv_case("three_in", (2, 3, 10, 12), (48, 3, 4, 4), stride=2, pad=1, layout="channels_last", bias=False),
    conv_case("groups", (2, 12, 8, 7), (18, 4, 3, 3), stride=(2, 1), pad=(1, 0), groups=3, activation="sigmoid"),
    conv_case("depthwise", (2, 9, 6, 7), (9, 1, 3, 3), pad=1, groups=9, layout="channels_last"),
    conv_case("dilated", (2, 6, 12, 11), (8, 6, 3, 2), dilation=(2, 3), pad=(2, 1), activation="tanh"),
    conv_case("keras_even", (2, 4, 8, 6), (16, 4, 3, 3), (4, 3), stride=2, layout="channels_last", activation="relu"),
    conv_case("negative_begin", (2, 4, 9, 9), (6, 4, 3, 3), (3, 4), stride=2, pad=(-1, -2), activation="sigmoid"),
    conv_case("negative_end", (2, 4, 9, 9), (6, 4, 3, 3), (2, 5), stride=2, pad=1, layout="strided"),
    conv_case("far_padding", (1, 3, 4, 5), (5, 3, 3, 3), (6, 5), stride=3, pad=(5, 4), activation="leaky_relu"),
    conv_case("all_cut", (1, 2, 3, 3), (3, 2, 2, 2), (2, 2), pad=(-7, 0)),
    conv_case("big_kernel", (2, 3, 3, 3), (4, 3, 5, 5), pad=2, layout="channels_last"),
    conv_case("huge_kernel", (2, 28, 16, 16), (32, 28, 15, 15)),
    conv_case("wide", (1, 8, 2, 70), (16, 8, 1, 9), pad=(0, 4), activation="relu"),
    conv_case("deep", (1, 64, 5, 5), (96, 64, 3, 3), pad=1, layout="channels_last"),
    conv_case("hundred", (3, 100, 5, 6), (33, 100, 3, 3), stride=2, pad=1, activation="leaky_relu"),
    # So many weights that they are packed around the cache.
    conv_case("many_weights", (1, 259, 2, 2), (130, 259, 4, 4), stride=2, pad=1),
    conv_case("many_weights_groups", (1, 132, 2, 1), (200, 66, 5, 5), pad=2, groups=2),
    # Enough channels and pixels for Winograd's algorithm, at sizes that 2x2 pieces do not cover evenly (kernel 4: one
    # where 3x3 pieces gain nothing).
    conv_case("winograd_k3", (16, 40, 9, 13), (35, 40, 3, 3), pad=1, activation="relu"),
    conv_case("winograd_k5s2", (7, 35, 13, 14), (33, 35, 5, 5), stride=2, pad=2, layout="channels_last"),
    conv_case("winograd_k4s2", (23, 32, 8, 9), (64, 32, 4, 4), stride=2, pad=1, layout="strided", activation="tanh"),
    # The same for pieces of 3x3 outputs; those of the second lie in several tiles.
    conv_case("winograd_three_k3s2", (67, 40, 14, 13), (33, 40, 3, 3), stride=2, pad=1, activation="relu"),
    conv_case("winograd_three_tiles", (1, 64, 194, 130), (33, 64, 3, 3), stride=2, pad=1, layout="channels_last"),
    conv_case("winograd_three_band", (1, 64, 44, 190), (64, 64, 3, 3), stride=2, pad=1, layout="channels_last"),
    # The same for pieces of 4x4 outputs. A single image is cut into bands of rows by the number of threads, and the
    # pieces must stay the same.
    conv_case(
        "winograd_large_k3",
        (28, 50, 9, 14),
        (50, 50, 3, 3),
        pad=1,
        layout="channels_last",
        weight_last=True,
        activation="relu",
    ),
    conv_case("winograd_large_rows", (1, 64, 25, 25), (64, 64, 3, 3), pad=1, layout="channels_last", weight_last=True),
    conv_case("winograd_large_bands", (1, 64, 10, 64), (64, 64, 3, 3), pad=1, layout="channels_last", weight_last=True),
    conv_case("winograd_k3_plain", (12, 34, 18, 15), (37, 34, 3, 3), pad=1, activation="leaky_relu"),
    conv_case("winograd_large_k5s2", (22, 33, 27, 30), (35, 33, 5, 5), stride=2, pad=2, activation="leaky_relu"),
    conv_case("line", (3, 5, 31), (7, 5, 4), stride=3, pad=2, activation="tanh"),
    conv_case("line_long", (2, 16, 100), (32, 16, 25), stride=4, pad=11, layout="strided", activation="leaky_relu"),
    conv_case("line_far", (2, 24, 150), (33, 24, 3), pad=40, dilation=40, activation="relu"),
    conv_case("line_one", (2, 6, 9), (1, 6, 3), (11,), pad=2, dilation=2, groups=1, activation="sigmoid"),
]

CONV_TRANSPOSE = [
    conv_case(
        "gradcheck",
        (1, 4, 3, 3),
        (4, 2, 3, 2),
        (6, 5),
        stride=(2, 1),
        pad=(1, -1),
        dilation=(1, 2),
        groups=2,
        transposed=True,
    ),
    conv_case("ones", (1, 1, 1, 1), (1, 1, 1, 1), transposed=True),
    conv_case("latent", (3, 50, 1, 1), (50, 24, 4, 4), transposed=True, activation="relu"),
    conv_case(
        "k4s2",
        (2, 16, 5, 6),
        (16, 32, 4, 4),
        stride=2,
        pad=1,
        transposed=True,
        layout="channels_last",
        activation="relu",
    ),
    conv_case("keras_k5s2", (2, 8, 7, 7), (8, 17, 5, 5), (14, 14), stride=2, pad=1, transposed=True, activation="tanh"),
    conv_case("k3s2_odd", (2, 5, 5, 3), (5, 7, 3, 3), stride=2, pad=1, transposed=True, layout="strided"),
    conv_case(
        "output_padding", (2, 6, 4, 5), (6, 9, 3, 3), (8, 10), stride=2, pad=1, transposed=True, activation="sigmoid"
    ),
    conv_case("to_two_k9", (2, 32, 6, 5), (32, 2, 9, 8), stride=2, pad=3, transposed=True, layout="channels_last"),
    conv_case("to_one", (2, 32, 6, 5), (32, 1, 4, 4), stride=2, pad=1, transposed=True, activation="tanh"),
    conv_case(
        "to_three",
        (2, 20, 4, 7),
        (20, 3, 4, 4),
        stride=2,
        pad=1,
        transposed=True,
        layout="channels_last",
        activation="tanh",
    ),
    conv_case("from_one", (2, 1, 6, 5), (1, 24, 5, 5), stride=2, pad=2, transposed=True, activation="leaky_relu"),
    conv_case("stride1", (2, 17, 6, 7), (17, 33, 3, 3), pad=1, transposed=True, layout="channels_last"),
    conv_case("gaps", (2, 4, 4, 3), (4, 6, 2, 1), (11, 8), stride=3, transposed=True, activation="sigmoid"),
    conv_case("groups", (2, 12, 8, 7), (12, 5, 3, 3), stride=(2, 3), groups=3, transposed=True, activation="relu"),
    conv_case("depthwise", (2, 7, 5, 4), (7, 1, 4, 4), stride=2, pad=1, groups=7, transposed=True, bias=False),
    conv_case("dilated", (2, 6, 5, 4), (6, 8, 3, 2), stride=2, dilation=(2, 3), pad=(2, 1), transposed=True),
    conv_case("negative_begin", (2, 4, 4, 4), (4, 5, 3, 3), (10, 12), stride=2, pad=(-1, -3), transposed=True),
    conv_case(
        "cut", (2, 4, 6, 6), (4, 5, 3, 3), (5, 4), stride=2, pad=(3, 4), transposed=True, activation="leaky_relu"
    ),
    conv_case("all_cut", (1, 2, 3, 3), (2, 3, 2, 2), (2, 2), pad=(6, 0), transposed=True, activation="sigmoid"),
    conv_case("deep", (1, 64, 3, 3), (64, 48, 5, 5), stride=2, pad=2, transposed=True, layout="channels_last"),
    conv_case("hundred", (3, 33, 3, 4), (33, 100, 4, 4), stride=2, pad=1, transposed=True, activation="leaky_relu"),
    conv_case(
        "winograd_k5s2",
        (13, 36, 8, 9),
        (36, 34, 5, 5),
        (16, 17),
        stride=2,
        pad=2,
        transposed=True,
        activation="leaky_relu",
    ),
    conv_case(
        "winograd_k4s2", (15, 33, 7, 8), (33, 40, 4, 4), stride=2, pad=1, transposed=True, layout="channels_last"
    ),
    conv_case(
        "winograd_three_k3s2", (61, 40, 9, 9), (40, 33, 3, 3), stride=2, pad=1, transposed=True, activation="tanh"
    ),
    conv_case("winograd_three_last", (61, 34, 8, 7), (34, 40, 3, 3), stride=2, transposed=True, layout="channels_last"),
    conv_case(
        "winograd_large_k5s2",
        (29, 128, 9, 16),
        (128, 32, 5, 5),
        (18, 31),
        stride=2,
        pad=2,
        transposed=True,
        layout="channels_last",
    ),
    conv_case(
        "winograd_large_k4s2",
        (63, 129, 11, 8),
        (129, 33, 4, 4),
        stride=2,
        pad=1,
        transposed=True,
        layout="channels_last",
        activation="relu",
    ),
    conv_case("line", (3, 5, 7), (5, 9, 4), stride=3, pad=1, transposed=True, activation="tanh"),
    conv_case("line_long", (2, 16, 16), (16, 32, 25), (64,), stride=4, pad=11, transposed=True, activation="relu"),
    conv_case("line_wide", (2, 40, 60), (40, 33, 5), dilation=5, transposed=True),
    conv_case("line_one", (2, 8, 9), (8, 1, 3), stride=2, transposed=True, dilation=2, layout="strided"),
]

BY_OP = {"conv": CONV, "conv_transpose": CONV_TRANSPOSE}


# ----------------------------------------------------------------------------------------------------------- truth


def naive_conv(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """The definition, tap by tap, differentiable by autograd; knows nothing of padding arguments."""
    rank = x.dim() - 2
    out_channels = weight.shape[0]
    total = x.new_zeros((x.shape[0], out_channels, *g.out_size))
    for tap in itertools.product(*(range(k) for k in weight.shape[2:])):
        part = x
        for axis in range(rank):
            index = torch.arange(g.out_size[axis]) * g.stride[axis] - g.pad_begin[axis] + tap[axis] * g.dilation[axis]
            inside = (index >= 0) & (index < x.shape[2 + axis])
            part = part.index_select(2 + axis, index.clamp(0, x.shape[2 + axis] - 1))
            shape = [1] * part.dim()
            shape[2 + axis] = -1
            part = torch.where(inside.view(shape), part, torch.zeros((), dtype=x.dtype))
        grouped = part.unflatten(1, (g.groups, -1))
        taps = weight[(slice(None), slice(None), *tap)].unflatten(0, (g.groups, -1))
        total = total + torch.einsum("ngc...,goc->ngo...", grouped, taps).flatten(1, 2)
    return total if bias is None else total + bias.view(-1, *[1] * rank)


def naive_conv_transpose(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """The adjoint of :func:`naive_conv`, taken by autograd."""
    channels = weight.shape[1] * g.groups
    probe = x.new_zeros((x.shape[0], channels, *g.out_size), requires_grad=True)
    adjoint = Geometry(g.stride, g.pad_begin, g.dilation, g.groups, tuple(x.shape[2:]))
    with torch.enable_grad():
        form = (naive_conv(probe, weight, None, adjoint) * x).sum()
        (out,) = torch.autograd.grad(form, probe, create_graph=True)
    return out if bias is None else out + bias.view(-1, *[1] * (x.dim() - 2))


def naive(case: ConvCase, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The case's operation without its activation, by definition."""
    return (naive_conv_transpose if case.transposed else naive_conv)(x, weight, bias, case.geometry)
