"""The CUDA kernels of the transposed convolution from few channels and the weight gradient, emulated on the CPU."""

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

from gan_fast.ops import activation
from gan_fast.ops.conv_transpose import reference as transposed
from gan_fast.ops.conv_weight_grad import reference as gradient


def check_conv_transpose(form: Form, product: str, act: str, before: str, bias: bool = True) -> None:
    """``form.outputs`` are the few input channels here, ``form.channels`` the many that come out; ``out`` is given."""
    x = numbers((form.batch, *form.size, form.outputs), 1, product)
    taps = form.outputs * form.kernel[0] * form.kernel[1]
    w = numbers((form.outputs, *form.kernel, form.channels), 2, product, taps**-0.5)
    b = numbers((form.channels,), 3, product) if bias else None
    y = (torch.rand(x.shape, generator=torch.Generator().manual_seed(4)) - 0.3).to(x.dtype)
    geometry = (form.stride, form.pad, form.dilation, 1, form.out_size)
    code = (ctypes.c_int64 * 16)(
        form.batch, form.outputs, *form.size, form.channels, *form.out_size, *form.kernel, *form.stride, *form.pad,
        *form.dilation, 1,
    )  # fmt: skip

    def run(backwards: int) -> tuple[Tensor, ...]:
        out = torch.full((form.batch, *form.out_size, form.channels), float("nan"), dtype=DTYPES[product])
        said = emulation().conv_transpose(
            PRODUCTS[product], code, address(x), address(w), address(b), address(None if before == "none" else y),
            address(out), ACT_CODES[act], ctypes.c_float(0.2), ACT_CODES[before], ctypes.c_float(0.3), backwards,
        )  # fmt: skip
        assert said == b"", said.decode()
        return (out,)

    def by_torch(to: Callable[[Tensor], Tensor], exact: bool = True) -> Tensor:
        g = activation.grad(x.double() if exact else x, y.double() if exact else y, before, 0.3)
        g = to(g.to(x.dtype) if product == "tf32" else g)
        image, weight = g.permute(0, 3, 1, 2), to(w).permute(0, 3, 1, 2)
        return transposed.conv_transpose(image, weight, None if b is None else to(b), *geometry, act, 0.2)

    (out,) = both_ways(run)
    exact = by_torch(lambda t: t.double())
    theirs = by_torch((lambda t: rounded(t, product).double()) if product == "tf32" else (lambda t: t), exact=False)
    assert_as_good(out.permute(0, 3, 1, 2), exact, theirs, f"{product} {act} {before} {form}")


TRANSPOSED = {
    "article's input gradient": Form(1, 128, (28, 28), 1, (7, 7), pad=(3, 3), out=(28, 28)),
    "k5s2": Form(2, 72, (7, 6), 1, (5, 5), (2, 2), (2, 2), out=(14, 11)),
    "rgb k4s2": Form(2, 64, (6, 5), 3, (4, 4), (2, 2), (1, 1), out=(12, 10)),
    "two parts": Form(1, 40, (9, 8), 4, (9, 9), pad=(4, 4), out=(9, 8)),
    "odd channels": Form(2, 37, (5, 7), 2, (3, 2), (1, 3), out=(7, 20)),
    "three groups": Form(1, 300, (5, 6), 1, (3, 3), pad=(1, 1), out=(5, 6)),
    "gaps": Form(2, 6, (4, 3), 4, (2, 1), (3, 3), out=(11, 8)),
    "all cut": Form(1, 3, (3, 3), 2, (2, 2), pad=(6, 0), out=(2, 2)),
    "negative begin": Form(2, 5, (4, 4), 4, (3, 3), (2, 2), (-1, -3), out=(10, 12)),
    "dilated": Form(2, 8, (5, 4), 3, (3, 2), (2, 2), (2, 1), (2, 3), out=(9, 9)),
    "pointwise": Form(3, 16, (5, 7), 2, (1, 1), out=(5, 7)),
}


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose(name: str, product: str) -> None:
    acts, place = list(ACT_CODES), list(TRANSPOSED).index(name)
    act, before = acts[place % 5], acts[(place + 3) % 5]
    check_conv_transpose(TRANSPOSED[name], product, act, before, bias=name != "gaps")


@pytest.mark.parametrize("product", PRODUCTS)
def test_conv_transpose_of_random_geometries(product: str) -> None:
    draw = random.Random(f"transposed {product}")
    for _ in range(25):
        kernel = draw.choice((1, 3, 4, 5, 7, 9)), draw.choice((1, 2, 3, 5, 7, 9))
        stride, dilation = ((draw.randint(1, 3), draw.randint(1, 3)) for _ in range(2))
        size, out = (draw.randint(1, 9), draw.randint(1, 12)), (draw.randint(1, 20), draw.randint(1, 30))
        form = Form(
            draw.randint(1, 2), draw.choice((1, 3, 8, 16, 31, 64, 130)), size, draw.randint(1, 4), kernel, stride,
            (draw.randint(-2, 5), draw.randint(-2, 5)), dilation, out,
        )  # fmt: skip
        check_conv_transpose(form, product, "none", draw.choice(("none", "tanh")))


def test_conv_transpose_fits_into_a_device() -> None:
    draw = random.Random(2)
    for _ in range(300):
        kernel = draw.randint(1, 11), draw.randint(1, 11)
        batch, inputs, channels = draw.choice((1, 512)), draw.randint(1, 4), draw.choice((1, 64, 128, 512))
        code = (ctypes.c_int64 * 16)(batch, inputs, 28, 28, channels, 56, 50, *kernel, 2, 2, 1, 1, 1, 1, 1)
        for product, number in PRODUCTS.items():
            found = (ctypes.c_int64 * 4)()
            assert emulation().conv_transpose_plan(number, code, found) == b""
            assert 0 < found[3] <= MOST_SHARED and min(found) > 0, (kernel, inputs, channels, product, list(found))


def test_conv_transpose_refuses_what_it_cannot_do() -> None:
    code = (ctypes.c_int64 * 16)(1, 5, 3, 3, 8, 3, 3, 1, 1, 1, 1, 0, 0, 1, 1, 1)
    said = emulation().conv_transpose_plan(0, code, (ctypes.c_int64 * 4)())
    assert said == b"input channels=5: expected 1 to 4"


def check_conv_weight_grad(form: Form, product: str) -> int:
    """Shapes as :func:`check_conv_transpose` has them; the number of parts that were added up."""
    few = numbers((form.batch, *form.size, form.outputs), 1, product)
    many = numbers((form.batch, *form.out_size, form.channels), 2, product)
    code = (ctypes.c_int64 * 16)(
        form.batch, form.outputs, *form.size, form.channels, *form.out_size, *form.kernel, *form.stride, *form.pad,
        *form.dilation, 1,
    )  # fmt: skip
    parts = ctypes.c_int()

    def run(backwards: int) -> tuple[Tensor, ...]:
        grad = torch.full((form.outputs, *form.kernel, form.channels), float("nan"), dtype=DTYPES[product])
        said = emulation().conv_weight_grad(
            PRODUCTS[product], code, address(few), address(many), address(grad), ctypes.byref(parts), backwards
        )
        assert said == b"", said.decode()
        return (grad,)

    def by_torch(to: Callable[[Tensor], Tensor]) -> Tensor:
        given = [to(t).permute(0, 3, 1, 2) for t in (few, many)]
        return gradient.conv_weight_grad(*given, form.kernel, form.stride, form.pad, form.dilation, 1, True, False)[0]

    (grad,) = both_ways(run)
    exact = by_torch(lambda t: t.double())
    theirs = by_torch((lambda t: rounded(t, product).double()) if product == "tf32" else (lambda t: t))
    assert_as_good(grad.permute(0, 3, 1, 2), exact, theirs, f"{product} {form}")
    return parts.value


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_weight_grad(name: str, product: str) -> None:
    check_conv_weight_grad(TRANSPOSED[name], product)


@pytest.mark.parametrize("product", PRODUCTS)
def test_conv_weight_grad_of_many_parts(product: str) -> None:
    """Tails of a stage and of the last part."""
    form = Form(3, 200, (17, 15), 2, (7, 7), pad=(3, 2), out=(17, 15))
    assert check_conv_weight_grad(form, product) in (6, 12)


@pytest.mark.parametrize("product", PRODUCTS)
def test_conv_weight_grad_of_random_geometries(product: str) -> None:
    draw = random.Random(f"gradient {product}")
    for _ in range(15):
        kernel = draw.choice((1, 3, 4, 5, 7, 9)), draw.choice((1, 2, 3, 5, 7))
        stride, dilation = ((draw.randint(1, 3), draw.randint(1, 3)) for _ in range(2))
        size, out = (draw.randint(1, 9), draw.randint(1, 12)), (draw.randint(1, 20), draw.randint(1, 30))
        form = Form(
            draw.randint(1, 2), draw.choice((1, 3, 8, 31, 64, 130)), size, draw.randint(1, 4), kernel, stride,
            (draw.randint(-2, 5), draw.randint(-2, 5)), dilation, out,
        )  # fmt: skip
        check_conv_weight_grad(form, product)
