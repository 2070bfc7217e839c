"""The CUDA kernel of the convolution to few channels, emulated, against float64."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable

import pytest
import torch
from cuda_texts import DTYPES, MOST_SHARED, PRODUCTS, Form, address, both_ways, emulation, numbers, rounded
from native import ACT_CODES
from tolerance import assert_as_good
from torch import Tensor

from gan_fast.ops.conv import reference


def check_conv(form: Form, product: str, act: str = "none", bias: bool = True) -> None:
    taps = form.channels * form.kernel[0] * form.kernel[1]
    x = numbers((form.batch, *form.size, form.channels), 1, product)
    w = numbers((form.outputs, *form.kernel, form.channels), 2, product, taps**-0.5)
    b = numbers((form.outputs,), 3, product) if bias else None

    def run(backwards: int) -> tuple[Tensor, ...]:
        y = torch.full((form.batch, *form.out_size, form.outputs), float("nan"), dtype=DTYPES[product])
        said = emulation().conv(
            PRODUCTS[product], form.numbers(), address(x), address(w), address(b), address(y), ACT_CODES[act],
            ctypes.c_float(0.2), backwards,
        )  # fmt: skip
        assert said == b"", said.decode()
        return (y,)

    def by_torch(to: Callable[[Tensor], Tensor]) -> Tensor:
        image, weight = to(x).permute(0, 3, 1, 2), to(w).permute(0, 3, 1, 2)
        geometry = (form.stride, form.pad, form.dilation, 1, form.out_size)
        return reference.conv(image, weight, None if b is None else to(b), *geometry, act, 0.2)

    (y,) = both_ways(run)
    exact = by_torch(lambda t: t.double())
    theirs = by_torch((lambda t: rounded(t, product).double()) if product == "tf32" else (lambda t: t))
    assert_as_good(y.permute(0, 3, 1, 2), exact, theirs, f"{product} {form}")


ARTICLE = Form(2, 128, (28, 28), 1, (7, 7), pad=(3, 3))
FORMS = {
    "article": ARTICLE,
    "rgb k7": Form(1, 64, (11, 13), 3, (7, 7), pad=(3, 3)),
    "four k9": Form(1, 24, (9, 17), 4, (9, 9), pad=(4, 4)),
    "pointwise": Form(3, 40, (5, 7), 2, (1, 1)),
    "one channel": Form(2, 1, (9, 8), 1, (3, 3), pad=(1, 1)),
    "odd channels": Form(2, 37, (10, 9), 2, (5, 4), (2, 1), (2, 1)),
    "many channels": Form(1, 300, (7, 6), 1, (3, 3), pad=(1, 1)),
    "wide": Form(1, 8, (3, 530), 1, (3, 7), pad=(1, 3)),
    "wide steps": Form(1, 8, (4, 601), 3, (3, 9), (2, 3), (1, 2), (1, 2)),
    "all padding": Form(1, 4, (3, 3), 2, (2, 2), pad=(-7, 0), out=(2, 2)),
    "crop": Form(2, 16, (9, 9), 3, (3, 3), (2, 2), (-1, -2), out=(3, 4)),
    "far padding": Form(1, 3, (4, 5), 1, (3, 3), (3, 3), (5, 4), out=(6, 5)),
    "larger than the image": Form(1, 16, (3, 3), 1, (5, 5), pad=(2, 2)),
    "wider than the image": Form(1, 16, (3, 3), 4, (3, 3), pad=(2, 400), out=(3, 700)),
    "line": Form(2, 6, (1, 9), 1, (1, 3), pad=(0, 2), dilation=(1, 2), out=(1, 11)),
    "one row at a time": Form(1, 8, (5, 250), 4, (4, 3), pad=(1, 1)),
}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", FORMS)
def test_conv(name: str, product: str) -> None:
    acts = list(ACT_CODES)
    check_conv(FORMS[name], product, acts[list(FORMS).index(name) % len(acts)], bias=name != "crop")


@pytest.mark.parametrize("product", PRODUCTS)
def test_conv_of_random_geometries(product: str) -> None:
    draw = random.Random(product)
    for _ in range(25):
        kernel = draw.choice((1, 3, 4, 5, 7, 9)), draw.choice((1, 2, 3, 5, 7, 9))
        stride, dilation = ((draw.randint(1, 3), draw.randint(1, 3)) for _ in range(2))
        size = draw.randint(1, 24), draw.randint(1, 40)
        pad = draw.randint(-2, 5), draw.randint(-2, 5)
        out = draw.randint(1, 20), draw.randint(1, 30)
        channels, outputs = draw.choice((1, 3, 8, 16, 31, 64, 130)), draw.randint(1, 4)
        check_conv(Form(draw.randint(1, 2), channels, size, outputs, kernel, stride, pad, dilation, out), product)


def plan_of(form: Form, product: str) -> tuple[str, list[int]]:
    found = (ctypes.c_int64 * 5)()
    return emulation().conv_plan(PRODUCTS[product], form.numbers(), found).decode(), list(found)


def test_conv_fills_the_device_and_fits_into_it() -> None:
    said, (tile_h, tile_w, blocks, slice_rows, _) = plan_of(ARTICLE._replace(batch=128), "bfloat16")
    assert (said, tile_h, tile_w, blocks, slice_rows) == ("", 14, 28, 256, 7)
    draw = random.Random(1)
    for _ in range(500):
        form = Form(
            draw.choice((1, 16, 4096)), draw.choice((1, 128, 700)), (draw.randint(1, 300), draw.randint(1, 2000)),
            draw.randint(1, 4), (draw.randint(1, 11), draw.randint(1, 11)), (draw.randint(1, 3), draw.randint(1, 3)),
            (3, 3), (1, draw.randint(1, 3)), (draw.randint(1, 300), draw.randint(1, 3000)),
        )  # fmt: skip
        for product in PRODUCTS:
            said, found = plan_of(form, product)
            assert said == "" and 0 < found[4] <= MOST_SHARED and min(found) > 0, (form, product, said, found)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (Form(1, 8, (9, 9), 5, (3, 3)), "output channels=5: expected 1 to 4"),
        (Form(1, 8, (9, 400), 1, (3, 3), dilation=(1, 140)), "columns that a kernel spans=281: expected at most 256"),
        (
            Form(1, 1 << 20, (1 << 10, 1 << 10), 1, (3, 3)),
            "elements of an image=1099511627776: expected less than 2^30",
        ),
        (Form(1, 8, (9, 9), 1, (3, 3), pad=(1 << 30, 0), out=(9, 9)), "span=1073741836: expected less than 2^30"),
    ],
)
def test_conv_refuses_what_it_cannot_do(form: Form, said: str) -> None:
    assert said in plan_of(form, "bfloat16")[0]
