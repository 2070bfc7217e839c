"""The Triton kernels of conv_weight_grad: sums over slices of the positions, then their sum. No atomics: the same bits
every time.

One of (input, grad_output) is *anchored*: it is read position by position. The other is *gathered*, for each tap at

    position * MUL + tap * STEP + OFF

A convolution anchors grad_output at its outputs, a transposed one the input, both with MUL = stride, STEP = dilation,
OFF = -pad_begin. With stride 1 the roles can be swapped (STEP = -dilation, OFF = pad_begin), so that the one of few
channels is gathered and its taps, times its channels, are one dimension of the matrix product (FLAT).
"""

from __future__ import annotations

import triton
import triton.language as tl

from gan_fast.ops.triton_common import act_backward, load_gradient, product

SIZES = ["positions", "ah", "aw", "bh", "bw", "length", "bias_rows", "bias_length", "slope"]


@triton.jit
def _column_sums(
    g, y, partial, tile, split, rows, length, slope,
    OC: tl.constexpr, ACT: tl.constexpr, WIDE: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """This slice's share of the bias gradient: sums of g * act'(y) over rows, for BC channels."""
    c = tile * BC + tl.arange(0, BC)
    total = tl.zeros((BR, BC), dtype=tl.float32)
    begin = split * length
    end = tl.minimum(begin + length, rows)
    for start in range(begin, end, BR):
        r = start + tl.arange(0, BR)
        mask = (r < end)[:, None] & (c < OC)[None, :]
        if WIDE:
            r = r.to(tl.int64)
        offsets = r[:, None] * OC + c[None, :]
        value = tl.load(g + offsets, mask=mask, other=0.0).to(tl.float32)
        if ACT != 0:
            value = act_backward(value, tl.load(y + offsets, mask=mask, other=0.0).to(tl.float32), slope, ACT)
        total += value
    tl.store(partial + split * OC + c, tl.sum(total, axis=0), mask=c < OC)


@triton.jit(do_not_specialize=SIZES)
def partial_sums(
    a, b, y, g, weight_partial, bias_partial,
    positions, ah, aw, bh, bw, length, bias_rows, bias_length, slope,
    KH: tl.constexpr, KW: tl.constexpr, MULH: tl.constexpr, MULW: tl.constexpr,
    STEPH: tl.constexpr, STEPW: tl.constexpr, OFFH: tl.constexpr, OFFW: tl.constexpr,
    GROUPS: tl.constexpr, CA: tl.constexpr, CB: tl.constexpr, OC: tl.constexpr, PROLOGUE_A: tl.constexpr,
    PROLOGUE_B: tl.constexpr, WANT_BIAS: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, BA: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One slice's sums, for BA anchored channels times BB gathered ones (FLAT: times BB taps and channels).

    ``a``, ``b``: anchored (rows of GROUPS * CA) and gathered tensor (GROUPS * CB); ``y``: output of the prologue's
    activation, laid out like ``g``, the grad_output, which is one of the two. The slice is the slowest part of the
    program's number: what runs at the same time reads the same positions.
    """
    TAPS: tl.constexpr = KH * KW
    COLUMNS: tl.constexpr = TAPS * CB if FLAT else CB
    A_TILES: tl.constexpr = (CA + BA - 1) // BA
    B_TILES: tl.constexpr = (COLUMNS + BB - 1) // BB
    WORK: tl.constexpr = A_TILES * B_TILES * (1 if FLAT else TAPS) * GROUPS
    BIAS_WORK: tl.constexpr = (OC + BB - 1) // BB if WANT_BIAS else 0
    pid = tl.program_id(0)
    split = pid // (WORK + BIAS_WORK)
    pid = pid % (WORK + BIAS_WORK)
    if pid >= WORK:
        _column_sums(
            g, y, bias_partial, pid - WORK, split, bias_rows, bias_length, slope,
            OC, PROLOGUE_A + PROLOGUE_B, WIDE, BK, BB,
        )  # fmt: skip
    else:
        ca = (pid % A_TILES) * BA + tl.arange(0, BA)
        pid = pid // A_TILES
        column = (pid % B_TILES) * BB + tl.arange(0, BB)
        pid = pid // B_TILES
        if FLAT:
            group = pid
            tap = column // CB  # a vector, as long as the columns
            cb = column % CB
        else:
            tap = pid % TAPS
            group = pid // TAPS
            cb = column
        ty, tx = (tap // KW) * STEPH + OFFH, (tap % KW) * STEPW + OFFW
        total = tl.zeros((BA, BB), dtype=tl.float32)
        begin = split * length
        end = tl.minimum(begin + length, positions)
        for start in range(begin, end, BK):
            p = start + tl.arange(0, BK)
            here = p < end
            px, py, image = p % aw, (p // aw) % ah, p // (aw * ah)
            if WIDE:
                p = p.to(tl.int64)
                image = image.to(tl.int64)
            a_mask = here[:, None]
            if CA % BA != 0:
                a_mask = a_mask & (ca < CA)[None, :]
            rows = load_gradient(
                a, y, (p * (GROUPS * CA))[:, None] + (group * CA + ca)[None, :], a_mask, slope, PROLOGUE_A
            )
            if FLAT:
                gy, gx = (py * MULH)[:, None] + ty[None, :], (px * MULW)[:, None] + tx[None, :]
                mask = here[:, None] & (gy >= 0) & (gy < bh) & (gx >= 0) & (gx < bw) & (column < COLUMNS)[None, :]
                offsets = ((image[:, None] * bh + gy) * bw + gx) * (GROUPS * CB) + (group * CB + cb)[None, :]
            else:
                gy, gx = py * MULH + ty, px * MULW + tx
                mask = (here & (gy >= 0) & (gy < bh) & (gx >= 0) & (gx < bw))[:, None]
                if CB % BB != 0:
                    mask = mask & (cb < CB)[None, :]
                offsets = (((image * bh + gy) * bw + gx) * (GROUPS * CB))[:, None] + (group * CB + cb)[None, :]
            taken = load_gradient(b, y, offsets, mask, slope, PROLOGUE_B)
            total = product(tl.trans(rows), taken, total, PRECISION)
        if not FLAT:
            column = tap * CB + cb
        target = ((split * GROUPS + group) * CA + ca)[:, None] * (TAPS * CB) + column[None, :]
        store = (ca < CA)[:, None] & (cb < CB)[None, :] & (column < TAPS * CB)[None, :]
        tl.store(weight_partial + target, total, mask=store)


@triton.jit(do_not_specialize=["splits"])
def sum_slices(
    weight_partial, bias_partial, weight_grad, bias_grad, splits,
    TAPS: tl.constexpr, ROWS: tl.constexpr, CA: tl.constexpr, CB: tl.constexpr, OC: tl.constexpr,
    SWAPPED: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The slices' sums in order, to (row channel, column channel, tap) of the weight, or (row channel, tap, column
    channel) where it is channels-last (LAST); the last programs do the bias.

    ``ROWS``: anchored channels of all groups. Read in the order of the slices, for they are many.
    """
    SIZE: tl.constexpr = ROWS * TAPS * CB
    BLOCKS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    pid = tl.program_id(0)
    if pid >= BLOCKS:
        c = (pid - BLOCKS) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for split in range(splits):
            total += tl.load(bias_partial + split * OC + c, mask=c < OC, other=0.0)
        tl.store(bias_grad + c, total.to(bias_grad.dtype.element_ty), mask=c < OC)
    else:
        e = pid * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for split in range(splits):
            total += tl.load(weight_partial + split * SIZE + e, mask=e < SIZE, other=0.0)
        cb = e % CB
        tap = (e // CB) % TAPS
        row = e // (CB * TAPS)
        SECOND: tl.constexpr = CA if SWAPPED else CB
        if SWAPPED:  # the gathered channel is the weight's first
            first, second = row // CA * CB + cb, row % CA
        else:
            first, second = row, cb
        if LAST:  # the weight lies in channels-last memory
            target = (first * TAPS + tap) * SECOND + second
        else:
            target = (first * SECOND + second) * TAPS + tap
        tl.store(weight_grad + target, total.to(weight_grad.dtype.element_ty), mask=e < SIZE)
