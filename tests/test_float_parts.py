"""Floats on matrix registers, each the sum of three bfloat16 (csrc/cpu/matrix_kernels.h): as exact as other floats, and
other kernels' where the parts cannot hold them."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import conv_checks
import pytest
import torch
from cases import ConvCase
from checks import level_of, run, run_torch, run_truth
from native import kernels
from tolerance import assert_as_good
from torch import Tensor

from gan_fast.ops import OPERATORS
from gan_fast.ops.geometry import Geometry

LEVELS = ("cpu:amx_bf16", "cpu:portable+matrix", "cpu:avx512+matrix")


def case(
    name: str, channels: tuple[int, int], size: tuple[int, ...], kernel: int, stride: int = 1, pad: int = 1,
    transposed: bool = False, batch: int = 3, groups: int = 1,
) -> ConvCase:  # fmt: skip
    """``channels``: in and out of all groups."""
    spread, rank = kernel - 1, len(size)
    if transposed:
        out = tuple((n - 1) * stride + kernel - 2 * pad for n in size)
        weight = (channels[0], channels[1] // groups)
    else:
        out = tuple((n + 2 * pad - spread - 1) // stride + 1 for n in size)
        weight = (channels[1], channels[0] // groups)
    geometry = Geometry((stride,) * rank, (pad,) * rank, (1,) * rank, groups, out)
    return ConvCase(
        name, (batch, channels[0], *size), (*weight, *(kernel,) * rank), geometry, transposed, "channels_last",
        activation="leaky_relu", slope=0.1,
    )  # fmt: skip


#: With one thread small images lie side by side in tiles, the last of which has fewer of them; those of whole_rows do
#: not. Few channels have steps of a kernel's row.
CASES = [
    case("strided", (40, 35), (9, 7), 3, 2),
    case("small_images", (33, 48), (4, 4), 3, 1, batch=41),
    case("whole_rows", (32, 20), (5, 32), 3, 1, batch=2),
    case("one_pixel_wide", (48, 40), (6, 1), 3, 1, batch=43),
    case("few_in", (3, 40), (12, 13), 7, 1, pad=3),
    case("few_out", (64, 3), (8, 9), 4, 2, transposed=True),
    case("up", (64, 33), (6, 7), 4, 2, transposed=True),
    case("groups", (64, 48), (9, 8), 3, 2, groups=2),
    case("line", (24, 40), (61,), 5, 3, pad=2),
    case("line_up", (64, 17), (19,), 8, 4, pad=2, transposed=True),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def module(level: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The compiled module, at a level whose kernels have matrix registers."""
    with level_of(level, monkeypatch):
        yield kernels()


def weight_gradient(case: ConvCase, x: Tensor, grad: Tensor, backend: str) -> Tensor:
    kernel = list(case.weight[2:])
    return OPERATORS["conv_weight_grad"](
        x, grad, kernel, *case.form[:4], case.transposed, False, None, "none", 0.01, False, backend
    )[0]


def detached(case: ConvCase) -> tuple[Tensor, Tensor, Tensor | None]:
    x, weight, bias = case.tensors(requires_grad=False)
    return x, weight, bias


@every_case
def test_cases_are_served_in_parts(module: ModuleType, case: ConvCase) -> None:
    """Weight gradients too, but where one side has few channels, or one more than a multiple of 16."""
    x, weight, bias = detached(case)
    module.begin_plan()
    run(case, x, weight, bias, "cpu")
    assert module.end_plan()["parts"] == 3
    module.begin_plan()
    weight_gradient(case, x, torch.empty(case.output), "cpu")
    wanted = 0 if case.name in ("few_in", "few_out", "line_up") else 3
    assert module.end_plan()["parts"] == wanted


@every_case
@pytest.mark.parametrize("threads", [1, 2])
def test_values_and_derivatives(level: str, case: ConvCase, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        conv_checks.check_orders(case, level, monkeypatch)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("channels", [64, 48])
def test_outputs_that_leave_the_cache(level: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are stored around it, a block of 32 channels that is not full as others are."""
    large = case("large", (16, channels), (260, 260), 3, 1, batch=(16 << 20) // (260 * 260 * channels * 4) + 1)
    x, weight, bias = detached(large)
    with level_of(level, monkeypatch) as name:
        ours = run(large, x, weight, bias, name)
    assert_as_good(
        ours, run_truth(large, x.double(), weight.double(), bias.double()), run_torch(large, x, weight, bias), level
    )


def test_weights_that_are_fetched_ahead(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    many = case("many_weights", (130, 160), (7, 6), 3, 1, batch=2)
    x, weight, bias = detached(many)
    with level_of(level, monkeypatch) as name:
        kernels().begin_plan()
        run(many, x, weight, bias, name)
        assert kernels().end_plan()["shared_weights"] > 1 << 20
        ours = run(many, x, weight, bias, name)
    assert_as_good(
        ours, run_truth(many, x.double(), weight.double(), bias.double()), run_torch(many, x, weight, bias), level
    )


def test_rows_that_no_output_reads_decide_nothing(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far tiles reach depends on the threads; NaN behind the last row that is read must not."""
    geometry = Geometry((1, 1), (0, 0), (1, 1), 1, (33, 6))
    cropped = ConvCase("cropped", (1, 32, 64, 8), (32, 32, 3, 3), geometry, False, "channels_last")
    x, weight, bias = detached(cropped)
    x[:, :, 35:] = float("nan")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 5):
            torch.set_num_threads(threads)
            with level_of(level, monkeypatch) as name:
                results.append(run(cropped, x, weight, bias, name))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)
    assert bool(results[0].isfinite().all())


@pytest.mark.parametrize("transposed", [False, True])
def test_random_geometry(level: str, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    conv_checks.random_geometries(transposed, level, monkeypatch, examples=15, most=70)


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
def test_many_random_geometries(level: str, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    conv_checks.random_geometries(transposed, level, monkeypatch, examples=700, most=70)


@every_case
def test_numbers_of_very_different_sizes(level: str, case: ConvCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels from 2^-40 to 2^40, whose weights make their products alike: every part of a number counts."""
    x, weight, bias = detached(case)
    generator = torch.Generator().manual_seed(11)
    channels = case.input[1] // case.geometry.groups
    size = torch.exp2(torch.randint(-40, 41, (channels,), generator=generator).float())
    along = (1, -1, *(1,) * case.rank)
    x = x * size.repeat(case.geometry.groups).view(along)
    if case.transposed:
        weight = weight / size.repeat(case.geometry.groups).view(-1, *(1,) * (case.rank + 1))
    else:
        weight = weight / size.view(along)
    truth = run_truth(case, x.double(), weight.double(), None if bias is None else bias.double())
    with level_of(level, monkeypatch) as name:
        ours = run(case, x, weight, bias, name)
    assert_as_good(ours, truth, run_torch(case, x, weight, bias), f"{case.name}, {level}")


@every_case
def test_what_parts_cannot_hold(level: str, case: ConvCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, infinity, the largest floats, denormal ones, and ones whose last digits would be."""
    conv_checks.check_special_values(case, level, monkeypatch)
    x, weight, _ = detached(case)
    x, weight = x / x.abs().max(), weight / weight.abs().max()
    for scale in (3.4e38, 1e-33):
        small = weight * (1e-4 if scale > 1 else 1.0)
        truth = run_truth(case, x.double() * scale, small.double(), None)
        with level_of(level, monkeypatch) as name:
            ours = run(case, x * scale, small, None, name)
        assert_as_good(ours, truth, run_torch(case, x * scale, small, None), f"{case.name} times {scale}")


@every_case
@pytest.mark.parametrize("operand", [0, 1])
def test_weight_gradients_of_what_parts_cannot_hold(
    level: str, case: ConvCase, operand: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Denormal numbers count, and what is not finite shows."""
    x, _, _ = detached(case)
    grad = torch.randn(case.output, generator=torch.Generator().manual_seed(3))
    tiny = [x, grad]
    tiny[operand] = tiny[operand] * 1e-40
    truth = weight_gradient(case, x.double(), grad.double(), "reference") * 1e-40
    theirs = weight_gradient(case, *tiny, "reference")
    with level_of(level, monkeypatch) as name:
        assert_as_good(weight_gradient(case, *tiny, name), truth, theirs, f"{case.name}, {level}")
        for special in (float("nan"), float("inf")):
            both = [x.clone(), grad.clone()]
            both[operand][tuple(n // 2 for n in both[operand].shape)] = special
            assert not bool(weight_gradient(case, *both, name).isfinite().all())


@every_case
def test_bits_do_not_depend_on_threads(level: str, case: ConvCase, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = detached(case)
    grad = torch.randn(case.output, generator=torch.Generator().manual_seed(3))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with level_of(level, monkeypatch) as name:
                results.append((run(case, x, weight, bias, name), weight_gradient(case, x, grad, name)))
    finally:
        torch.set_num_threads(before)
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])
