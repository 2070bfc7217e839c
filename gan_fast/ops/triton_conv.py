"""The Triton kernel behind conv and conv_transpose: a convolution by gathering, one tile of outputs per program.

Both operators are the same sum over taps t and channels c,

    out[n, q * OUT_STEP + r] = act(sum x[n, q * IN_STEP + base + t * STEP, c] * w[first + t * TAP_STEP, c] + bias)

with OUT_STEP = 1 for a strided convolution. A transposed one falls into stride x stride phases r, each of which reads
its input at unit stride with its own taps: no product with an inserted zero is ever formed. All phases are one launch.

Tensors are dense channels-last. A program owns BM output positions times BN output channels of one group and one phase.
It walks over the kernel's rows, columns and the channels in three nested loops. Never in one that computes the tap from
a running number: Triton is known to miscompile that one with 8 warps (pytorch/pytorch#173068). Nor with the taps
unrolled: 25 of them take 20 to 250 s to compile, make a binary of 1.4 MB and spill; the loops take 2 s and do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gan_fast.ops import _triton, activation, geometry, layout, triton_tiles
from gan_fast.ops.triton_common import activate, load_gradient, phase_of_stride, product

#: Arguments that change from call to call: no kernel is compiled anew for their values.
SIZES = ["m_total", "ih", "iw", "oh", "ow", "qh", "qw", "m_tiles", "slope", "prologue_slope"]


@triton.jit
def _tile(
    m_total, ih, iw, qh, qw, m_tiles,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, GH: tl.constexpr, GW: tl.constexpr, OFFH: tl.constexpr, OFFW: tl.constexpr,
    GROUPS: tl.constexpr, IC: tl.constexpr, OCG: tl.constexpr, TRANSPOSED: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """What this program computes: (group, channels within it, image, output rows and columns, inside, first tap and
    number of taps by axis, input row and column of the first tap, offset of that input's channel 0)."""
    n_tiles: tl.constexpr = (OCG + BN - 1) // BN
    pid = tl.program_id(0)
    n = (pid % n_tiles) * BN + tl.arange(0, BN)
    pid = pid // n_tiles
    m = (pid % m_tiles) * BM + tl.arange(0, BM)
    pid = pid // m_tiles
    group = pid % GROUPS
    inside = m < m_total
    column = m % qw
    row = (m // qw) % qh
    image = m // (qw * qh)
    if TRANSPOSED:
        phase = pid // GROUPS
        ry, first_y, base_y, taps_y = phase_of_stride(phase // SW, KH, SH, PH, DH, GH, OFFH)
        rx, first_x, base_x, taps_x = phase_of_stride(phase % SW, KW, SW, PW, DW, GW, OFFW)
        iy, ix = row + base_y, column + base_x
        oy, ox = row * SH + ry, column * SW + rx
    else:
        first_y, first_x, taps_y, taps_x = 0, 0, KH, KW
        iy, ix = row * SH - PH, column * SW - PW
        oy, ox = row, column
    if WIDE:
        image = image.to(tl.int64)
    source = ((image * ih + iy) * iw + ix) * IC
    return group, n, image, oy, ox, inside, first_y, first_x, taps_y, taps_x, iy, ix, source


@triton.jit
def _finish(
    total, bias, out, group, n, image, oy, ox, inside, oh, ow, slope,
    GROUPS: tl.constexpr, OCG: tl.constexpr, HAS_BIAS: tl.constexpr, ACT: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Bias, activation, and the way to memory."""
    if HAS_BIAS:
        total += tl.load(bias + group * OCG + n, mask=n < OCG, other=0.0).to(tl.float32)[None, :]
    total = activate(total, slope, ACT)
    target = ((image * oh + oy) * ow + ox) * (GROUPS * OCG) + group * OCG
    mask = (inside & (oy < oh) & (ox < ow))[:, None]
    if OCG % BN != 0:
        mask = mask & (n < OCG)[None, :]
    tl.store(out + target[:, None] + n[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _tap(
    total, x, y, w, source, w_column, n, inside, iy, ix, tap, ih, iw, prologue_slope,
    ICG: tl.constexpr, OCG: tl.constexpr, TAPS: tl.constexpr, TRANSPOSED: tl.constexpr,
    PROLOGUE: tl.constexpr, PRECISION: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """total plus the products of one tap: all input channels of the group."""
    here = inside & (iy >= 0) & (iy < ih) & (ix >= 0) & (ix < iw)
    for start in range(0, ICG, BK):
        c = start + tl.arange(0, BK)
        a_mask = here[:, None]
        if ICG % BK != 0:
            a_mask = a_mask & (c < ICG)[None, :]
        a = load_gradient(x, y, source[:, None] + c[None, :], a_mask, prologue_slope, PROLOGUE)
        if TRANSPOSED:  # (input channel, tap, output channel)
            weights = w + (c[:, None] * TAPS + tap) * OCG + w_column[None, :]
        else:  # (output channel, tap, input channel)
            weights = w + w_column[None, :] + (tap * ICG + c)[:, None]
        if ICG % BK != 0 and OCG % BN != 0:
            b = tl.load(weights, mask=(c < ICG)[:, None] & (n < OCG)[None, :], other=0.0)
        elif ICG % BK != 0:
            b = tl.load(weights, mask=(c < ICG)[:, None], other=0.0)
        elif OCG % BN != 0:
            b = tl.load(weights, mask=(n < OCG)[None, :], other=0.0)
        else:
            b = tl.load(weights)
        total = product(a, b, total, PRECISION)
    return total


@triton.jit(do_not_specialize=SIZES)
def gather_conv(
    x, w, bias, y, out, m_total, ih, iw, oh, ow, qh, qw, m_tiles, slope, prologue_slope,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, GH: tl.constexpr, GW: tl.constexpr, OFFH: tl.constexpr, OFFW: tl.constexpr,
    GROUPS: tl.constexpr, ICG: tl.constexpr, OCG: tl.constexpr, TRANSPOSED: tl.constexpr, WIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACT: tl.constexpr, PROLOGUE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The kernel for many input channels: one matrix product over channels for each tap."""
    IC: tl.constexpr = GROUPS * ICG
    group, n, image, oy, ox, inside, first_y, first_x, taps_y, taps_x, iy, ix, source = _tile(
        m_total, ih, iw, qh, qw, m_tiles, KH, KW, SH, SW, PH, PW, DH, DW, GH, GW, OFFH, OFFW,
        GROUPS, IC, OCG, TRANSPOSED, WIDE, BM, BN,
    )  # fmt: skip
    source += group * ICG
    # From one tap of a phase to the next: in the kernel, in the input's rows and columns.
    TAP_H: tl.constexpr = SH // GH if TRANSPOSED else 1
    TAP_W: tl.constexpr = SW // GW if TRANSPOSED else 1
    STEP_H: tl.constexpr = -(DH // GH) if TRANSPOSED else DH
    STEP_W: tl.constexpr = -(DW // GW) if TRANSPOSED else DW
    if TRANSPOSED:
        w_column = group * (ICG * KH * KW * OCG) + n
    else:
        w_column = (group * OCG + n) * (KH * KW * ICG)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for j in range(taps_y):
        for i in range(taps_x):
            tap = (first_y + j * TAP_H) * KW + first_x + i * TAP_W
            total = _tap(
                total, x, y, w, source + (j * STEP_H * iw + i * STEP_W) * IC, w_column, n, inside,
                iy + j * STEP_H, ix + i * STEP_W, tap, ih, iw, prologue_slope,
                ICG, OCG, KH * KW, TRANSPOSED, PROLOGUE, PRECISION, BN, BK,
            )  # fmt: skip
    _finish(
        total, bias, out, group, n, image, oy, ox, inside, oh, ow, slope, GROUPS, OCG, HAS_BIAS, ACT, BN
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def flat_conv(
    x, w, bias, y, out, m_total, ih, iw, oh, ow, qh, qw, m_tiles, slope, prologue_slope,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, GH: tl.constexpr, GW: tl.constexpr, OFFH: tl.constexpr, OFFW: tl.constexpr,
    GROUPS: tl.constexpr, ICG: tl.constexpr, OCG: tl.constexpr, TRANSPOSED: tl.constexpr, WIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACT: tl.constexpr, PROLOGUE: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The kernel for few input channels: taps times channels are the inner dimension of one matrix product.

    One channel for each tap would fill a sixteenth of what the matrix unit takes at a time.
    """
    IC: tl.constexpr = GROUPS * ICG
    group, n, image, oy, ox, inside, first_y, first_x, taps_y, taps_x, iy, ix, source = _tile(
        m_total, ih, iw, qh, qw, m_tiles, KH, KW, SH, SW, PH, PW, DH, DW, GH, GW, OFFH, OFFW,
        GROUPS, IC, OCG, TRANSPOSED, WIDE, BM, BN,
    )  # fmt: skip
    source += group * ICG
    TAP_H: tl.constexpr = SH // GH if TRANSPOSED else 1
    TAP_W: tl.constexpr = SW // GW if TRANSPOSED else 1
    STEP_H: tl.constexpr = -(DH // GH) if TRANSPOSED else DH
    STEP_W: tl.constexpr = -(DW // GW) if TRANSPOSED else DW
    COLUMNS: tl.constexpr = (KW + TAP_W - 1) // TAP_W
    INNER: tl.constexpr = ((KH + TAP_H - 1) // TAP_H) * COLUMNS * ICG  # of the phase with most taps
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in tl.static_range(0, INNER, BK):
        k = start + tl.arange(0, BK)
        c = k % ICG
        i = (k // ICG) % COLUMNS
        j = k // (ICG * COLUMNS)
        there = (j < taps_y) & (i < taps_x)
        y_here = iy[:, None] + (j * STEP_H)[None, :]
        x_here = ix[:, None] + (i * STEP_W)[None, :]
        mask = inside[:, None] & there[None, :] & (y_here >= 0) & (y_here < ih) & (x_here >= 0) & (x_here < iw)
        offsets = source[:, None] + ((j * STEP_H * iw + i * STEP_W) * IC + c)[None, :]
        a = load_gradient(x, y, offsets, mask, prologue_slope, PROLOGUE)
        tap = (first_y + j * TAP_H) * KW + first_x + i * TAP_W
        if TRANSPOSED:
            weights = (((group * ICG + c) * (KH * KW) + tap) * OCG)[:, None] + n[None, :]
        else:
            weights = (tap * ICG + c)[:, None] + ((group * OCG + n) * (KH * KW * ICG))[None, :]
        b = tl.load(w + weights, mask=there[:, None] & (n < OCG)[None, :], other=0.0)
        total = product(a, b, total, PRECISION)
    _finish(
        total, bias, out, group, n, image, oy, ox, inside, oh, ow, slope, GROUPS, OCG, HAS_BIAS, ACT, BN
    )  # fmt: skip


#: Input channels of a group below which taps times channels become the inner dimension; 16 is what a product takes.
FEW_CHANNELS = 16
#: Longest such dimension: its loop is unrolled.
LONGEST_FLAT = 512


def make_triton(op: str) -> Any:
    """conv or conv_transpose on the kernels above."""
    transposed = op == "conv_transpose"

    def implementation(
        input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pad_begin: Sequence[int],
        dilation: Sequence[int], groups: int, out_size: Sequence[int], act: str, slope: float,
        prologue_y: Tensor | None, prologue_activation: str, prologue_slope: float,
    ) -> Tensor:  # fmt: skip
        shape = (input.shape[0], geometry.out_channels(weight.shape, groups, transposed), *out_size)
        x, w = _triton.dense(input), _triton.dense(weight)
        y = None if prologue_y is None else _triton.dense(prologue_y)
        out = _triton.empty_dense(shape, input)
        if out.numel():
            form = geometry.Geometry(tuple(stride), tuple(pad_begin), tuple(dilation), groups, tuple(out_size))
            _launch(
                x, w, None if bias is None else bias.contiguous(), y, out, form, transposed,
                (activation.CODES[act], slope), (activation.CODES[prologue_activation], prologue_slope),
            )  # fmt: skip
        return layout.from_kernel(out, input.dim() - 2, layout.output_format(input, weight))

    return implementation


def _launch(
    x: Tensor, w: Tensor, bias: Tensor | None, y: Tensor | None, out: Tensor, form: geometry.Geometry,
    transposed: bool, epilogue: tuple[int, float], prologue: tuple[int, float],
) -> None:  # fmt: skip
    groups = form.groups
    (sh, sw), (ph, pw), (dh, dw) = (
        _triton.two(values, fill) for values, fill in ((form.stride, 1), (form.pad_begin, 0), (form.dilation, 1))
    )
    kh, kw = w.shape[2:]
    gh, gw = math.gcd(sh, dh), math.gcd(sw, dw)
    channels, outputs = x.shape[1] // groups, out.shape[1] // groups
    oh, ow = out.shape[2:]
    # Outputs of one phase (the largest), and the taps that reach them.
    steps = (sh, sw) if transposed else (1, 1)
    qh, qw = _triton.ceil_div(oh, steps[0]), _triton.ceil_div(ow, steps[1])
    m = out.shape[0] * qh * qw
    if m > _triton.MOST_ROWS:
        raise RuntimeError(f"backend 'triton': {m} output positions are more than its kernels can number")
    taps = _triton.ceil_div(kh, sh // gh) * _triton.ceil_div(kw, sw // gw) if transposed else kh * kw
    flat = channels < FEW_CHANNELS and taps * channels <= LONGEST_FLAT
    precision = _triton.precision(x.dtype)
    tiles = (triton_tiles.FLAT_TILES if flat else triton_tiles.TILES)[triton_tiles.kind(x.dtype, precision)]
    copies = groups * steps[0] * steps[1]
    tile = triton_tiles.choose(tiles, m, outputs, taps * channels if flat else channels, copies)
    m_tiles = _triton.ceil_div(m, tile.m)
    _triton.launch(
        flat_conv if flat else gather_conv,
        m_tiles * _triton.ceil_div(outputs, tile.n) * copies,
        x.device,
        {
            "x": x, "w": w, "bias": bias, "y": y, "out": out, "m_total": m, "ih": x.shape[2], "iw": x.shape[3],
            "oh": oh, "ow": ow, "qh": qh, "qw": qw, "m_tiles": m_tiles,
            "slope": float(epilogue[1]), "prologue_slope": float(prologue[1]),
        },
        {
            "KH": kh, "KW": kw, "SH": sh, "SW": sw, "PH": ph, "PW": pw, "DH": dh, "DW": dw, "GH": gh, "GW": gw,
            "OFFH": -ph % sh, "OFFW": -pw % sw, "GROUPS": groups, "ICG": channels, "OCG": outputs,
            "TRANSPOSED": transposed, "WIDE": _triton.wide(x, out), "HAS_BIAS": bias is not None,
            "ACT": epilogue[0], "PROLOGUE": prologue[0], "PRECISION": precision,
            "BM": tile.m, "BN": tile.n, "BK": tile.k,
        },
        tile.warps,
        tile.stages,
        tiles,
    )  # fmt: skip
