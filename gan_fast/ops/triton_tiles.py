"""Which block of the output a program of the convolution kernels computes: a short list, and the choice from it.

Why these. A matrix unit of Hopper multiplies 64 rows at a time for each group of four warps. 128 x 128 with eight warps
keeps 64 float32 sums in each thread, reads each operand once for 128 products and needs 128 registers, so that two
programs share a multiprocessor; with four warps it needs all 255, and with a prologue it spills. Half as many columns
serve layers of 64 channels; 64 x 64 with four warps is for launches that would leave multiprocessors idle otherwise.
float32 without TF32 has no matrix unit: 64 x 64 sums in the registers of eight warps. 32 channels at a time: with 64 of
two bytes the addresses of some kernels spill on sm_80 and sm_100; as they are, none spills on any architecture that the
proof compiles for (tools/triton_aot.py). What is fastest is for a device to say.
"""

from __future__ import annotations

import torch

from gan_fast.ops._triton import Tile, ceil_div, forced_tile, power_of_two

#: By kind of product: largest first.
TILES: dict[str, tuple[Tile, ...]] = {
    "half": (Tile(128, 128, 32, 8, 4), Tile(128, 64, 32, 8, 4), Tile(64, 64, 32, 4, 4)),
    "tf32": (Tile(128, 128, 32, 8, 3), Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 4, 3)),
    "ieee": (Tile(64, 64, 16, 8, 3), Tile(32, 32, 16, 4, 3)),
}
#: For inner dimensions made of taps, whose elements are gathered one by one: their addresses take registers.
FLAT_TILES: dict[str, tuple[Tile, ...]] = {
    "half": (Tile(64, 128, 32, 4, 2), Tile(64, 64, 32, 4, 2)),
    "tf32": (Tile(64, 64, 16, 8, 2),),
    "ieee": (Tile(64, 64, 16, 8, 2), Tile(32, 32, 16, 4, 2)),
}
#: Programs that keep the largest present device (132 to 148 multiprocessors) busy.
BUSY = 132


def kind(dtype: torch.dtype, precision: str) -> str:
    """Key of the tables: how the operands are multiplied."""
    return precision if dtype == torch.float32 else "half"


def fit(tile: Tile, n: int, k: int) -> Tile:
    """``tile`` cut to n columns and an inner dimension of k; 16 is the least that a matrix product takes."""
    return tile._replace(n=min(tile.n, power_of_two(n, 16)), k=min(tile.k, power_of_two(k, 16)))


def choose(tiles: tuple[Tile, ...], m: int, n: int, k: int, copies: int) -> Tile:
    """The largest tile that still gives every multiprocessor a program; ``copies``: problems of m x n in the launch."""
    forced = forced_tile()
    if forced is not None:
        return fit(forced, n, k)
    fitted = [fit(tile, n, k) for tile in tiles]
    for tile in fitted:
        if ceil_div(m, tile.m) * ceil_div(n, tile.n) * copies >= BUSY:
            return tile
    return fitted[-1]


def choose_for_sum(tiles: tuple[Tile, ...], m: int, n: int, k: int) -> Tile:
    """The tile of a product whose inner dimension is split until the device is busy: the largest that m and n fill.

    Its rows are channels, so that they are cut as its columns are.
    """
    forced = forced_tile()
    for tile in tiles if forced is None else (forced,):
        if (tile.m <= power_of_two(m, 16) and tile.n <= power_of_two(n, 16)) or tile is tiles[-1] or forced:
            break
    return fit(tile, n, k)._replace(m=min(tile.m, power_of_two(m, 16)))
