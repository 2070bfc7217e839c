"""gan_fast.functional.upsample_conv1d and 2d: the collapse is exact, differentiable, and made where it should be."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import LAYOUTS, lay
from checks import BACKENDS, level_of, recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from native import kernels
from swap_networks import close
from tolerance import Errors, assert_as_good, errors
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import gan_fast
from gan_fast import functional
from gan_fast.ops import upsample_conv

FUNCTIONS: dict[int, Callable[..., Tensor]] = {1: functional.upsample_conv1d, 2: functional.upsample_conv2d}
#: Large enough that the automatic choice collapses it: 67 MFLOP and 512 pixels.
LARGE = ((8, 64, 8, 8), (64, 64, 3, 3))


def one_after_the_other(x: Tensor, weight: Tensor, bias: Tensor | None, factor: Any, **form: Any) -> Tensor:
    convolve = F.conv1d if weight.dim() == 3 else F.conv2d
    return convolve(F.interpolate(x, scale_factor=factor, mode="nearest"), weight, bias, **form)


def tensors(input: tuple[int, ...], weight: tuple[int, ...], seed: int = 0, dtype: Any = torch.float32) -> list[Tensor]:
    """(input, weight, bias): the same numbers for every dtype."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator) for shape in (input, weight, weight[:1])]
    made[1] /= made[1][0].numel() ** 0.5
    return [t.to(dtype).requires_grad_() for t in made]


# ----------------------------------------------------------------------------------------------------- the collapse


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes, factors and a padding that leaves an output; up to two pixels more than the kernel reaches."""
    rank = draw(st.integers(1, 2))
    batch, channels, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    size = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    kernel = tuple(draw(st.integers(1, 6)) for _ in range(rank))
    factor = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    lowest = [max(0, -(-(k - n * s) // 2)) for k, n, s in zip(kernel, size, factor, strict=True)]
    padding = tuple(draw(st.integers(low, max(low, k + 1))) for low, k in zip(lowest, kernel, strict=True))
    return {
        "shapes": ((batch, channels, *size), (outputs, channels, *kernel)),
        "factor": draw(st.sampled_from((factor, tuple(map(float, factor))))),
        "padding": draw(st.sampled_from((padding, "same"))),
        "bias": draw(st.booleans()),
        "layouts": (draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(LAYOUTS))),
    }


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@settings(max_examples=150)
@given(problems())
def test_the_collapse_is_exact_in_float64(problem: dict[str, Any]) -> None:
    """Values at every border, gradients, and PyTorch's strides, on the kernel's own text for float64."""
    kernels()
    x, weight, bias = tensors(*problem["shapes"], dtype=torch.float64)
    x, weight = (lay(t.detach(), how).requires_grad_() for t, how in zip((x, weight), problem["layouts"], strict=True))
    b = bias if problem["bias"] else None
    theirs = one_after_the_other(x, weight, b, problem["factor"], padding=problem["padding"])
    ours = FUNCTIONS[x.dim() - 2](x, weight, b, problem["factor"], padding=problem["padding"], backend="cpu")
    assert ours.stride() == theirs.stride()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs = [t for t in (x, weight, b) if t is not None]
    for mine, expected in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-11)


def test_the_kernel_for_factor_2_and_size_3() -> None:
    weight = torch.tensor([1.0, 10.0, 100.0], requires_grad=True)
    collapsed = upsample_conv.collapse(weight.view(1, 1, 3), (2,))
    assert collapsed.flatten().tolist() == [100.0, 110.0, 11.0, 1.0]
    two = upsample_conv.collapse((weight[:, None] * torch.tensor([1.0, 2.0, 4.0])).view(1, 1, 3, 3), (2, 2))
    close(two[0, 0], collapsed.flatten()[:, None] * torch.tensor([4.0, 6.0, 3.0, 1.0]))
    (grad,) = torch.autograd.grad((collapsed.flatten() * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum(), weight)
    assert grad.tolist() == [1100.0, 110.0, 11.0]


@pytest.fixture
def no_matrices(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Tensor]:
    kept: dict[Any, Tensor] = {}
    monkeypatch.setattr(upsample_conv, "_matrices", kept)
    return kept


@contextlib.contextmanager
def nothing() -> Iterator[None]:
    yield


def in_vmap(weight: Tensor) -> None:
    torch.func.vmap(lambda w: upsample_conv.collapse(w, (2, 2)))(weight[None])


def in_grad(weight: Tensor) -> None:
    torch.func.grad(lambda w: upsample_conv.collapse(w, (2, 2)).sum())(weight.detach())


@pytest.mark.parametrize("world", [nothing, torch.inference_mode, torch.no_grad, FakeTensorMode, in_vmap, in_grad])
def test_the_matrix_is_kept_but_never_one_of_another_world(world: Any, no_matrices: dict[Any, Tensor]) -> None:
    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    if world in (in_vmap, in_grad):
        world(weight)
    else:
        with world():
            upsample_conv.collapse(torch.empty(3, 2, 3, 3), (2, 2))
    assert torch.autograd.gradgradcheck(
        lambda w: upsample_conv.collapse(w.float(), (2, 2)).double() ** 2,
        weight.detach().double().requires_grad_(),
        eps=0.5,
        atol=1e-3,
    )  # a square, which differences of any width give exactly, up to float32's rounding
    (kept,) = no_matrices.values()
    assert type(kept) is Tensor and not kept.is_inference()
    in_vmap(weight)
    in_grad(weight)
    with FakeTensorMode() as mode:
        fake = upsample_conv.collapse(mode.from_tensor(weight), (2, 2))
    assert type(fake) is FakeTensor and fake.shape == (2, 3, 4, 4)
    assert list(no_matrices.values()) == [kept]


def test_only_so_many_matrices_are_kept(no_matrices: dict[Any, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsample_conv, "MOST_KEPT", 3 * 4 + 5 * 6)
    for size in (3, 5, 7, 5, 3):
        weight = torch.randn(2, 2, size)
        assert upsample_conv.collapse(weight, (2,)).shape == (2, 2, size + 1)
    assert [matrix.shape for matrix in no_matrices.values()] == [(3, 4), (5, 6)]


@pytest.mark.parametrize("activation", [None, "tanh", "leaky_relu"])
@pytest.mark.parametrize(
    ("input", "weight", "factor", "padding"),
    [
        ((2, 2, 2, 3), (3, 2, 3, 3), 2, 1),
        ((1, 2, 2, 2), (2, 2, 2, 4), (3, 2), (0, 4)),
        ((2, 2, 3), (2, 2, 5), 4, "same"),
    ],
)
def test_gradcheck(
    input: tuple[int, ...], weight: tuple[int, ...], factor: Any, padding: Any, activation: str | None
) -> None:
    kernels()

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return FUNCTIONS[x.dim() - 2](
            x, weight, bias, factor, padding=padding, activation=activation, negative_slope=0.3, backend="cpu"
        )

    inputs = tensors(input, weight, dtype=torch.float64)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def orders(call: Callable[..., Tensor], inputs: list[Tensor]) -> dict[str, Tensor]:
    """Value, gradients, and gradients of a product of the gradients, as a gradient penalty has them."""

    def mix(t: Tensor, seed: int) -> Tensor:
        return torch.randn(t.shape, generator=torch.Generator().manual_seed(seed)).to(t.dtype)

    y = call(*inputs)
    first = torch.autograd.grad((y * mix(y, 1)).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(torch.stack([(g * mix(g, 2)).sum() for g in first]).sum(), inputs)
    names = ("input", "weight", "bias")
    found = {"value": y, **{f"d/d{n}": g for n, g in zip(names, first, strict=True)}}
    return {k: t.detach() for k, t in {**found, **{f"d2/d{n}": g for n, g in zip(names, second, strict=True)}}.items()}


SINGLE: list[tuple[tuple[int, ...], tuple[int, ...], Any, Any]] = [
    ((3, 17, 5, 6), (33, 17, 3, 3), 2, 1),
    ((2, 40, 8, 7), (35, 40, 3, 3), 2, 1),  # as many pixels and channels as Winograd's algorithm takes
    ((2, 9, 4, 3), (5, 9, 5, 4), (2, 3), (2, 0)),
    ((4, 32, 6, 6), (1, 32, 3, 3), 2, 1),
    ((2, 16, 20), (12, 16, 25), 4, 12),
]


@pytest.mark.parametrize("backend", ["auto", *BACKENDS[1:]])
@pytest.mark.parametrize(("input", "weight", "factor", "padding"), [*SINGLE, (*LARGE, 2, 1)])
def test_float32_is_as_good_as_pytorch_s(
    input: tuple[int, ...], weight: tuple[int, ...], factor: Any, padding: Any, backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """At most twice the error of one after the other in PyTorch, in value, first and second derivatives."""

    def truth(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(one_after_the_other(x, w, b, factor, padding=padding))

    # PyTorch is lucky on some numbers: the worst of three samples is the yardstick.
    worst: dict[str, Errors] = {}
    for seed in range(3):
        exact = orders(truth, tensors(input, weight, seed, torch.float64))
        for what, value in orders(truth, tensors(input, weight, seed)).items():
            loss = errors(value, exact[what])
            worst[what] = Errors(*map(max, loss, worst.get(what, loss)))
    exact = orders(truth, tensors(input, weight, 0, torch.float64))

    def ours(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        function = FUNCTIONS[x.dim() - 2]
        return function(x, w, b, factor, padding=padding, activation="tanh", backend=name)

    if backend == "auto":
        name = "auto"
        found = orders(ours, tensors(input, weight))
    else:
        with level_of(backend, monkeypatch) as name, recorded(monkeypatch) as ran:
            found = orders(ours, tensors(input, weight))
        assert ran[0] == ("conv_transpose", "cpu") and ran.backends() == {"cpu"}
    for what, value in found.items():
        assert_as_good(value, exact[what], worst[what], what)


def test_pytorch_repeats_every_element_as_often_as_we_say() -> None:
    x = torch.arange(3000.0).view(1, 1, -1)
    for factor in range(2, upsample_conv.LARGEST_FACTOR + 1):
        upsampled = F.interpolate(x, scale_factor=factor, mode="nearest")
        assert torch.equal(upsampled, x.repeat_interleave(factor, 2)), factor
    assert upsample_conv.whole_factors(upsample_conv.LARGEST_FACTOR + 1, 2) is None


# ------------------------------------------------------------------------------------------------------- the choice


def serves(call: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, bool]:
    """The result, and whether an upsampled tensor was made."""
    made = []
    interpolate = F.interpolate

    def watching(*args: Any, **kwargs: Any) -> Tensor:
        made.append(True)
        return interpolate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(F, "interpolate", watching)
        return call(), bool(made)


def test_auto_collapses_what_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for shapes, upsampled in ((LARGE, False), (((2, 8, 8, 8), (8, 8, 3, 3)), True)):
        x, weight, bias = tensors(*shapes)
        ours, made = serves(lambda: functional.upsample_conv2d(x, weight, bias, padding=1), monkeypatch)  # noqa: B023  (called at once)
        assert made == upsampled
        close(ours, one_after_the_other(x, weight, bias, 2, padding=1))


def test_without_the_compiled_module_too(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = gan_fast.backends._Extension()
    absent.tried = True
    monkeypatch.setattr(gan_fast.backends, "_extension", absent)
    x, weight, bias = tensors(*LARGE)
    ours, made = serves(lambda: functional.upsample_conv2d(x, weight, bias, padding=1), monkeypatch)
    assert not made
    close(ours, one_after_the_other(x, weight, bias, 2, padding=1))


def test_the_reference_is_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = tensors(*LARGE)
    ours, made = serves(
        lambda: functional.upsample_conv2d(x, weight, bias, padding=1, backend="reference"), monkeypatch
    )
    assert made
    close(ours, one_after_the_other(x, weight, bias, 2, padding=1))


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
@pytest.mark.parametrize(
    ("weight", "factor", "form"),
    [
        ((24, 64, 3, 3), 2, {"stride": 2, "padding": 1}),
        ((24, 64, 3, 3), 2, {"dilation": 2}),
        ((24, 16, 3, 3), 2, {"groups": 4}),
        ((24, 64, 3, 3), 1.5, {}),
        ((24, 64, 3, 3), (2, 0.5), {}),
        ((24, 64, 3, 3), 30, {}),
        ((24, 64, 3, 3), 1, {}),
        ((24, 64, 1, 1), 2, {}),
    ],
    ids=str,
)
def test_what_cannot_be_collapsed(
    weight: tuple[int, ...], factor: Any, form: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "cpu":
        kernels()
    x, w, b = tensors((8, 64, 8, 8) if factor != 30 else (1, 64, 3, 3), weight)
    ours, made = serves(
        lambda: functional.upsample_conv2d(x, w, b, factor, **form, activation="relu", backend=backend), monkeypatch
    )
    assert made
    close(ours, torch.relu(one_after_the_other(x, w, b, factor, **form)))


def test_explicit_is_strict() -> None:
    kernels()
    x, weight, bias = (t.detach().half() for t in tensors(*LARGE))
    with pytest.raises(RuntimeError, match=r"'cpu' was asked for by name and cannot run conv_transpose.*float32"):
        functional.upsample_conv2d(x, weight, bias, padding=1, backend="cpu")
    with pytest.raises(RuntimeError, match="'cuda' was asked for by name"):
        functional.upsample_conv2d(x, weight, bias, padding=1, backend="cuda")


def test_errors_are_pytorch_s() -> None:
    x, weight, bias = tensors(*LARGE)
    wrong: list[Callable[..., Tensor]] = [
        lambda call: call(x[:, :5], weight, bias, 2),
        lambda call: call(x, weight, bias[:5], 2),
        lambda call: call(x, weight.double(), bias, 2),
        lambda call: call(x[:, :, :1, :1], weight, bias, 2),  # the kernel is larger than the upsampled image
        lambda call: call(x, weight, bias, 2, padding=-1),
        lambda call: call(x, weight, bias, 0),
        lambda call: call(x, weight, bias, (2, 2, 2)),
    ]
    for attempt in wrong:
        with pytest.raises((RuntimeError, ValueError)) as theirs:
            attempt(one_after_the_other)
        with pytest.raises(type(theirs.value)) as ours:
            attempt(functional.upsample_conv2d)
        assert str(ours.value) == str(theirs.value)
    with pytest.raises(ValueError, match="activation: unknown 'swish'"):
        functional.upsample_conv2d(x, weight, bias, activation="swish")


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
def test_a_single_sample_and_none(backend: str) -> None:
    if backend == "cpu":
        kernels()
    x, weight, bias = tensors((1, 64, 32, 32), (64, 64, 3, 3))
    ours = functional.upsample_conv2d(x[0], weight, bias, padding=1, backend=backend)
    close(ours, one_after_the_other(x, weight, bias, 2, padding=1)[0])
    line = functional.upsample_conv1d(x[0, :, 0], weight[:, :, 0], bias, 3, padding=1, backend=backend)
    close(line, one_after_the_other(x[:, :, 0], weight[:, :, 0], bias, 3, padding=1)[0])
    assert functional.upsample_conv2d(x[:0], weight, bias, padding=1, backend=backend).shape == (0, 64, 64, 64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_autocast(dtype: torch.dtype) -> None:
    """bfloat16 within twice PyTorch's error: the collapsed weights are sums, rounded to bfloat16 once more."""

    def compare(x: Tensor, weight: Tensor, bias: Tensor, result: torch.dtype, autocast: bool) -> None:
        truth = one_after_the_other(*(t.detach().double() for t in (x, weight, bias)), 2, padding=1)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            ours = functional.upsample_conv2d(x, weight, bias, padding=1)
            theirs = one_after_the_other(x, weight, bias, 2, padding=1)
        assert ours.dtype == theirs.dtype == result
        assert_as_good(ours, truth, theirs, "upsample_conv2d")

    compare(*(t.detach().to(dtype) for t in tensors(*LARGE)), dtype, autocast=False)
    compare(*(t.detach() for t in tensors(*LARGE)), torch.bfloat16, autocast=True)


@pytest.mark.parametrize(("backend", "compiler"), [("auto", "eager"), ("cpu", "aot_eager")])
def test_compile_any_size_without_graph_breaks(backend: str, compiler: str) -> None:
    if backend == "cpu":
        kernels()
    torch._dynamo.reset()

    def step(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.upsample_conv2d(x, weight, bias, padding=1, activation="tanh", backend=backend)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=compiler)
    for batch, size in ((2, 8), (3, 5)):
        inputs = tensors((batch, 4, size, size), (5, 4, 3, 3))
        ours, theirs = compiled(*inputs), torch.tanh(one_after_the_other(*inputs, 2, padding=1))
        close(ours, theirs)
        both = (torch.autograd.grad(y.square().sum(), inputs) for y in (ours, theirs))
        for mine, expected in zip(*both, strict=True):
            close(mine, expected)


def test_export_holds_only_aten() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return functional.upsample_conv2d(x, weight, padding=1, activation="relu")

    x, weight, _ = tensors(*LARGE)
    program = torch.export.export(Net(), (x, weight))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets and all(target.startswith("aten.") for target in targets), targets


def test_torch_func() -> None:
    """Per-sample gradients and a penalty, collapsed, against PyTorch's own."""
    kernels()
    x, weight, bias = (t.detach() for t in tensors((5, 6, 4, 4), (7, 6, 3, 3)))

    def ours(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return functional.upsample_conv2d(x[None], w, b, padding=1, activation="tanh", backend="cpu").square().mean()

    def theirs(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(one_after_the_other(x[None], w, b, 2, padding=1)).square().mean()

    def penalty(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args: torch.func.grad(f)(*args).square().sum()

    for make in (lambda f: f, penalty):
        results = [
            torch.func.vmap(torch.func.grad(make(f), argnums=(1, 2)), (0, None, None))(x, weight, bias)
            for f in (ours, theirs)
        ]
        for mine, expected in zip(*results, strict=True):
            close(mine, expected)
