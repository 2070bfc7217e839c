"""gan_fast::conv_weight_grad on its Triton kernels: slices of the positions, then their sum. Two launches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gan_fast.ops import _triton, activation, layout, triton_tiles
from gan_fast.ops.conv_weight_grad.reference import weight_shape
from gan_fast.ops.conv_weight_grad.triton_kernels import partial_sums, sum_slices

#: Programs that a launch is cut into: two for each multiprocessor of the largest present device, so that the number of
#: slices, and with it every bit of the result, is the same on all of them.
_PROGRAMS = 264
#: Steps of the inner loop that a slice is worth.
_LEAST_STEPS = 4
#: Elements of the weight that one program of the second launch sums.
_BLOCK = 512


def conv_weight_grad(
    input: Tensor,
    grad_output: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    pad_begin: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool,
    want_bias: bool,
    prologue_y: Tensor | None,
    prologue_activation: str,
    prologue_slope: float,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """Same arguments as the reference; float32, bfloat16 or float16, 1-D and 2-D."""
    shape = weight_shape(input, grad_output, kernel_size, groups, transposed)
    memory_format = layout.named(channels_last)
    weight_grad = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format)
    bias_grad = input.new_empty(grad_output.shape[1] if want_bias else 0)
    if input.shape[0] == 0:
        return weight_grad.zero_(), bias_grad.zero_()
    x, g = _triton.dense(input), _triton.dense(grad_output)
    y = None if prologue_y is None else _triton.dense(prologue_y)
    act = activation.CODES[prologue_activation]
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = (
        _triton.two(values, fill) for values, fill in ((kernel_size, 1), (stride, 1), (pad_begin, 0), (dilation, 1))
    )
    anchored, gathered = (x, g) if transposed else (g, x)
    few = [t.shape[1] // groups < 16 for t in (anchored, gathered)]
    # Swapped roles at stride 1 put the tensor of few channels where its taps can be columns.
    swapped = few[0] and not few[1] and sh == sw == 1
    if swapped:
        anchored, gathered = gathered, anchored
        dh, dw, ph, pw = -dh, -dw, -ph, -pw
    flat = few[1] or swapped
    ca, cb = anchored.shape[1] // groups, gathered.shape[1] // groups
    taps = kh * kw
    columns = taps * cb if flat else cb

    positions = anchored.numel() // anchored.shape[1]
    bias_rows = g.numel() // g.shape[1]
    if max(positions, bias_rows) > _triton.MOST_ROWS:
        raise RuntimeError(f"backend 'triton': {positions} positions are more than its kernels can number")
    precision = _triton.precision(x.dtype)
    tiles = (triton_tiles.FLAT_TILES if flat else triton_tiles.TILES)[triton_tiles.kind(x.dtype, precision)]
    copies = groups * (1 if flat else taps)
    # Here the matrix's rows are channels, and its inner dimension the positions.
    tile = triton_tiles.choose_for_sum(tiles, ca, columns, positions)
    work = _triton.ceil_div(ca, tile.m) * _triton.ceil_div(columns, tile.n) * copies
    bias_work = _triton.ceil_div(g.shape[1], tile.n) if want_bias else 0
    splits = max(1, min(_PROGRAMS // work, positions // (_LEAST_STEPS * tile.k)))
    weight_partial = x.new_empty((splits, weight_grad.numel()), dtype=torch.float32)
    bias_partial = x.new_empty((splits, bias_grad.numel()), dtype=torch.float32)
    g_is_anchored = g is anchored
    _triton.launch(
        partial_sums,
        splits * (work + bias_work),
        x.device,
        {
            "a": anchored, "b": gathered, "y": y, "g": g, "weight_partial": weight_partial,
            "bias_partial": bias_partial, "positions": positions, "ah": anchored.shape[2], "aw": anchored.shape[3],
            "bh": gathered.shape[2], "bw": gathered.shape[3], "length": _triton.ceil_div(positions, splits),
            "bias_rows": bias_rows, "bias_length": _triton.ceil_div(bias_rows, splits), "slope": float(prologue_slope),
        },
        {
            "KH": kh, "KW": kw, "MULH": sh, "MULW": sw, "STEPH": dh, "STEPW": dw, "OFFH": -ph, "OFFW": -pw,
            "GROUPS": groups, "CA": ca, "CB": cb, "OC": g.shape[1], "PROLOGUE_A": act if g_is_anchored else 0,
            "PROLOGUE_B": 0 if g_is_anchored else act, "WANT_BIAS": want_bias, "FLAT": flat,
            "WIDE": _triton.wide(x, g), "PRECISION": precision, "BA": tile.m, "BB": tile.n, "BK": tile.k,
        },
        tile.warps,
        tile.stages,
        tiles,
    )  # fmt: skip
    blocks = _triton.ceil_div(weight_grad.numel(), _BLOCK)
    bias_blocks = _triton.ceil_div(g.shape[1], _BLOCK) if want_bias else 0
    _triton.launch(
        sum_slices,
        blocks + bias_blocks,
        x.device,
        {
            "weight_partial": weight_partial, "bias_partial": bias_partial, "weight_grad": weight_grad,
            "bias_grad": bias_grad, "splits": splits,
        },
        {
            "TAPS": taps, "ROWS": groups * ca, "CA": ca, "CB": cb, "OC": g.shape[1], "SWAPPED": swapped,
            "LAST": channels_last, "BLOCK": _BLOCK,
        },
        4,
        1,
    )  # fmt: skip
    return weight_grad, bias_grad
