"""The CUDA kernels' texts (csrc/cuda/*-inl.h) on the CPU, thread by thread, against float64; no GPU is needed or used.

tests/cuda_emulation.h stands in for the device: every index, mask and fragment of the kernels is executed, with memory
that is watched; what only a device can show (its compiler's bugs, races between warps, speed) is not.
"""

from __future__ import annotations

import ctypes
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from native import ACT_CODES, compiler
from tolerance import assert_as_good
from torch import Tensor

from gan_fast.ops.conv import reference

ROOT = Path(__file__).resolve().parent.parent
#: Product's code -> what tensors are stored in, by name.
PRODUCTS = {"bfloat16": 0, "float16": 1, "tf32": 2, "ieee": 3}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}
#: Shared memory of a block that every device since compute capability 8.0 has.
MOST_SHARED = 99 * 1024


class Form(NamedTuple):
    """A convolution: batch, channels, size; outputs, kernel; stride, begin padding, dilation; its output's size."""

    batch: int
    channels: int
    size: tuple[int, int]
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    out: tuple[int, int] | None = None

    @property
    def out_size(self) -> tuple[int, int]:
        """``out``, or what symmetric padding gives."""
        if self.out is not None:
            return self.out
        axes = zip(self.size, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        h, w = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
        return h, w

    def numbers(self) -> Any:
        """As the kernels take a geometry."""
        return (ctypes.c_int64 * 16)(
            self.batch, self.channels, *self.size, self.outputs, *self.out_size, *self.kernel, *self.stride, *self.pad,
            *self.dilation, 1,
        )  # fmt: skip


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels' texts, compiled for the CPU."""
    library = tmp_path_factory.mktemp("cuda") / "emulation.so"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler(), *flags, ROOT / "tests" / "cuda_emulation.cpp", "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))
    for name in ("conv", "conv_plan", "bce_with_logits"):
        getattr(loaded, name).restype = ctypes.c_char_p
    return loaded


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def both_ways(run: Callable[[int], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The result with the threads first to last and last to first: the same bits, or threads did not wait."""
    forwards, backwards = run(0), run(1)
    for one, other in zip(forwards, backwards, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), "the result depends on the threads' order"
    return forwards


def numbers(shape: tuple[int, ...], seed: int, product: str, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DTYPES[product])


def rounded(tensor: Tensor, product: str) -> Tensor:
    """What the matrix unit multiplies."""
    if product != "tf32":
        return tensor
    return ((tensor.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def check_conv(emulation: ctypes.CDLL, form: Form, product: str, act: str = "none", bias: bool = True) -> None:
    taps = form.channels * form.kernel[0] * form.kernel[1]
    x = numbers((form.batch, *form.size, form.channels), 1, product)
    w = numbers((form.outputs, *form.kernel, form.channels), 2, product, taps**-0.5)
    b = numbers((form.outputs,), 3, product) if bias else None

    def run(backwards: int) -> tuple[Tensor, ...]:
        y = torch.full((form.batch, *form.out_size, form.outputs), float("nan"), dtype=DTYPES[product])
        said = emulation.conv(
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
def test_conv(emulation: ctypes.CDLL, name: str, product: str) -> None:
    acts = list(ACT_CODES)
    check_conv(emulation, FORMS[name], product, acts[list(FORMS).index(name) % len(acts)], bias=name != "crop")


@pytest.mark.parametrize("product", PRODUCTS)
def test_conv_of_random_geometries(emulation: ctypes.CDLL, product: str) -> None:
    draw = random.Random(product)
    for _ in range(25):
        kernel = draw.choice((1, 3, 4, 5, 7, 9)), draw.choice((1, 2, 3, 5, 7, 9))
        stride, dilation = ((draw.randint(1, 3), draw.randint(1, 3)) for _ in range(2))
        size = draw.randint(1, 24), draw.randint(1, 40)
        pad = draw.randint(-2, 5), draw.randint(-2, 5)
        out = draw.randint(1, 20), draw.randint(1, 30)
        channels, outputs = draw.choice((1, 3, 8, 16, 31, 64, 130)), draw.randint(1, 4)
        check_conv(
            emulation, Form(draw.randint(1, 2), channels, size, outputs, kernel, stride, pad, dilation, out), product
        )


def plan_of(emulation: ctypes.CDLL, form: Form, product: str) -> tuple[str, list[int]]:
    found = (ctypes.c_int64 * 5)()
    return emulation.conv_plan(PRODUCTS[product], form.numbers(), found).decode(), list(found)


def test_conv_fills_the_device_and_fits_into_it(emulation: ctypes.CDLL) -> None:
    said, (tile_h, tile_w, blocks, slice_rows, _) = plan_of(emulation, ARTICLE._replace(batch=128), "bfloat16")
    assert (said, tile_h, tile_w, blocks, slice_rows) == ("", 14, 28, 256, 7)
    draw = random.Random(1)
    for _ in range(500):
        form = Form(
            draw.choice((1, 16, 4096)), draw.choice((1, 128, 700)), (draw.randint(1, 300), draw.randint(1, 2000)),
            draw.randint(1, 4), (draw.randint(1, 11), draw.randint(1, 11)), (draw.randint(1, 3), draw.randint(1, 3)),
            (3, 3), (1, draw.randint(1, 3)), (draw.randint(1, 300), draw.randint(1, 3000)),
        )  # fmt: skip
        for product in PRODUCTS:
            said, found = plan_of(emulation, form, product)
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
def test_conv_refuses_what_it_cannot_do(emulation: ctypes.CDLL, form: Form, said: str) -> None:
    assert said in plan_of(emulation, form, "bfloat16")[0]


# ------------------------------------------------------------------------------------------------- bce_with_logits


@pytest.mark.parametrize("product", ["bfloat16", "float16", "ieee"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("elements", [1, 255, 2049, 9_011])
def test_bce_with_logits(emulation: ctypes.CDLL, elements: int, reduction: str, product: str) -> None:
    x = numbers((elements,), 4, product, 8.0)
    share = torch.rand(elements, generator=torch.Generator().manual_seed(5)).to(DTYPES[product])
    weight, pos_weight = share + 0.5, share * 2 + 0.1
    scale = 1.0 / elements if reduction == "mean" else 1.0
    for t, constant, w, p in (
        (None, 1.0, None, None),
        (None, 0.0, weight, None),
        (share, 0.0, None, pos_weight),
        (share, 0.0, weight, pos_weight),
    ):
        partial = torch.full((64,), float("nan"), dtype=torch.float64)
        counter = torch.zeros(1, dtype=torch.int32)

        def run(
            backwards: int, t=t, constant=constant, w=w, p=p, partial=partial, counter=counter
        ) -> tuple[Tensor, ...]:
            loss = torch.full((elements if reduction == "none" else 1,), float("nan"), dtype=x.dtype)
            grad = torch.full_like(x, float("nan"))
            said = emulation.bce_with_logits(
                PRODUCTS[product], ctypes.c_int64(elements), address(x), address(t), ctypes.c_float(constant),
                address(w), address(p), ["none", "mean", "sum"].index(reduction), ctypes.c_float(scale), address(loss),
                address(grad), address(partial), address(counter), backwards,
            )  # fmt: skip
            assert said == b"", said.decode()
            assert counter.item() == 0, "the counter is not ready for the next launch"
            return loss, grad

        def by_torch(dtype: torch.dtype, t=t, constant=constant, w=w, p=p) -> tuple[Tensor, Tensor]:
            target = torch.full_like(x, constant) if t is None else t
            given = [None if a is None else a.to(dtype) for a in (x, target, w, p)]
            logits = given[0].requires_grad_()
            loss = F.binary_cross_entropy_with_logits(
                logits, given[1], given[2], reduction=reduction, pos_weight=given[3]
            )
            return loss.detach().reshape(-1), torch.autograd.grad(loss.sum(), logits)[0]

        for what, mine, exact, theirs in zip(
            ("loss", "gradient"), both_ways(run), by_torch(torch.float64), by_torch(x.dtype), strict=True
        ):
            assert_as_good(mine, exact, theirs, f"{what} {reduction} {elements} {product}")


def test_bce_of_large_logits_keeps_its_small_values(emulation: ctypes.CDLL) -> None:
    x = torch.tensor([-30.0, -20.0, 20.0, 30.0, -80.0, 80.0])
    for constant in (0.0, 1.0):
        loss, grad = torch.empty_like(x), torch.empty_like(x)
        emulation.bce_with_logits(
            PRODUCTS["ieee"], ctypes.c_int64(6), address(x), None, ctypes.c_float(constant), None, None, 0,
            ctypes.c_float(1.0), address(loss), address(grad), None, None, 0,
        )  # fmt: skip
        exact = F.softplus(x.double() if constant == 0 else -x.double(), threshold=1e9)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
