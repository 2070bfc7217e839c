"""gan_fast.functional.linear and gan_fast.nn.Linear: PyTorch's results in every form, on every backend."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import BACKENDS, REGISTERED, level_of, recorded
from native import kernels
from swap_networks import close
from tolerance import Errors, assert_as_good, errors
from torch import Tensor, nn

import gan_fast
from gan_fast import backends, choice_table, functional, tuning
from gan_fast.choice_table import Choice

#: Rows, inputs, outputs: tails of every vector, few channels on either side, one row, one of everything; long sums,
#: with results enough that luck with a few of them does not decide what goes back through the activation.
SIZES = [(5, 100, 67), (7, 331, 1), (33, 1, 40), (1, 48, 48), (1, 1, 1), (130, 17, 33), (20, 700, 19)]


def tensors(rows: int, inputs: int, outputs: int, seed: int = 0, dtype: Any = torch.float32) -> list[Tensor]:
    """(input, weight, bias): the same numbers for every dtype."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator) for shape in ((rows, inputs), (outputs, inputs), (outputs,))]
    made[1] /= inputs**0.5
    return [t.to(dtype).requires_grad_() for t in made]


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


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_as_good_as_pytorch_s(size: tuple[int, int, int], backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most twice PyTorch's own error in value, first and second derivatives, by the backend asked for alone."""

    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, w, b))

    # PyTorch is lucky on some numbers: the worst of three samples is the yardstick.
    worst: dict[str, Errors] = {}
    for seed in range(3):
        exact = orders(plain, tensors(*size, seed, torch.float64))
        for what, value in orders(plain, tensors(*size, seed)).items():
            loss = errors(value, exact[what])
            worst[what] = Errors(*map(max, loss, worst.get(what, loss)))
    exact = orders(plain, tensors(*size, 0, torch.float64))
    if backend == "auto":
        found = orders(lambda *t: functional.linear(*t, activation="tanh"), tensors(*size))
    else:
        with level_of(backend, monkeypatch) as name, recorded(monkeypatch) as ran:
            found = orders(lambda *t: functional.linear(*t, activation="tanh", backend=name), tensors(*size))
        assert ran[0] == ("conv", name) and ran.backends() == {name}
        assert {op for op, _ in ran} >= {"conv", "conv_transpose", "conv_weight_grad"}
    for what, value in found.items():
        assert_as_good(value, exact[what], worst[what], what)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("backend", REGISTERED)
def test_gradcheck(backend: str, activation: str | None) -> None:
    if backend == "cpu":
        kernels()

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.linear(x, weight, bias, activation=activation, negative_slope=0.3, backend=backend)

    inputs = tensors(4, 5, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


@pytest.mark.parametrize("backend", ["auto", *REGISTERED])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (3, 6), (2, 3, 6), (2, 1, 3, 6), (0, 6)], ids=str)
def test_any_leading_axes(shape: tuple[int, ...], backend: str) -> None:
    if backend == "cpu":
        kernels()
    _, weight, bias = tensors(1, 6, 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    for given in (x, x.flip(0), x.transpose(0, -2) if x.dim() > 2 else x):
        for b in (bias, None):
            ours, theirs = functional.linear(given, weight, b, backend=backend), F.linear(given, weight, b)
            assert ours.shape == theirs.shape and ours.stride() == theirs.stride()
            close(ours, theirs)
    columns = weight.t().contiguous().t()  # a weight that lies column by column
    close(functional.linear(x, columns, bias, backend=backend), F.linear(x, columns, bias))


@pytest.mark.parametrize("backend", ["auto", *REGISTERED])
def test_errors_are_torch_s(backend: str) -> None:
    if backend == "cpu":
        kernels()
    x, weight, bias = (t.detach() for t in tensors(2, 6, 4))
    for wrong in ((x[:, :5], weight, bias), (x, weight.double(), bias), (x, weight, bias[:3]), (x, weight[None], bias)):
        with pytest.raises(RuntimeError) as expected:
            F.linear(*wrong)
        with pytest.raises(RuntimeError) as got:
            functional.linear(*wrong, backend=backend)
        assert str(got.value) == str(expected.value)
    with pytest.raises(ValueError, match="activation"):
        functional.linear(x, weight, bias, activation="selu")
    # Valid, but nothing for a kernel: one output without an axis for it.
    close(functional.linear(x, weight[0]), F.linear(x, weight[0]))
    with pytest.raises(RuntimeError, match="cannot run"):
        functional.linear(x.long(), weight.long(), backend="cpu")


@pytest.mark.parametrize("backend", ["auto", *REGISTERED])
def test_torch_func_and_compile(backend: str) -> None:
    if backend == "cpu":
        kernels()
    x, weight, bias = (t.detach() for t in tensors(3, 6, 4))

    def ours(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return functional.linear(x, w, b, activation="tanh", backend=backend)

    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(F.linear(x, w, b))

    for transform in (
        lambda f: torch.func.grad(lambda *t: f(*t).sum(), argnums=(0, 1, 2)),
        lambda f: torch.func.vmap(f, in_dims=(0, None, None)),
        lambda f: lambda *t: torch.func.vmap(f)(*(torch.stack((v, 2 * v)) for v in t)),
    ):
        torch.testing.assert_close(transform(ours)(x, weight, bias), transform(plain)(x, weight, bias))
    torch.compiler.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    close(compiled(x, weight, bias), plain(x, weight, bias))


def test_autocast_is_torch_s() -> None:
    x, weight, bias = (t.detach() for t in tensors(3, 6, 4))
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = functional.linear(x, weight, bias), F.linear(x, weight, bias)
        assert torch.equal(ours, theirs) and ours.dtype == torch.bfloat16
        if backends.extension() is not None:
            by_kernel = functional.linear(x, weight, bias, backend="cpu")
            assert by_kernel.dtype == torch.bfloat16
            torch.testing.assert_close(by_kernel, theirs)
    with torch.autocast("cpu", torch.float16), pytest.raises(RuntimeError, match="float16"):
        functional.linear(x, weight, bias, backend="cpu")


# ------------------------------------------------------------------------------------------------- layers and choice


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(10, 48), nn.LeakyReLU(0.2), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 1), nn.Sigmoid()
    )


def test_swapped_fused_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels()
    original, fast = network(), network()
    report = gan_fast.accelerate(fast)
    assert [swap.activation for swap in report.swapped] == ["LeakyReLU", "Tanh", "Sigmoid"]
    assert all(type(layer) is gan_fast.nn.Linear for layer in fast[::2])
    assert list(fast.state_dict()) == list(original.state_dict())
    x = torch.randn(5, 10)
    for backend in ("auto", *REGISTERED):
        with recorded(monkeypatch) as ran, gan_fast.use_backend(backend):
            y = fast(x)
            y.sum().backward()
        close(y, original(x))
        # An activation of its own would show as act_grad, or as another node of PyTorch's.
        assert [op for op, _ in ran][:3] == ([] if backend == "auto" else ["conv"] * 3)
    assert torch.equal(copy.deepcopy(fast)(x), fast(x))
    assert "activation" not in repr(fast[0]) and repr(gan_fast.nn.Linear(2, 3, activation="relu")).endswith("'relu')")
    assert gan_fast.restore(fast) == 4  # the container too
    assert all(type(layer) is nn.Linear for layer in fast[::2])


def test_after_an_image_in_channels_last_the_result_lies_as_torch_s() -> None:
    """A linear layer over an image's last axis: the container must not hand it, or its follower, another format."""
    torch.manual_seed(0)
    original = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Linear(6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(240, 2))
    fast = copy.deepcopy(original)
    gan_fast.accelerate(fast)
    x = torch.randn(2, 3, 6, 6)
    for backend in ("auto", "reference"):
        with gan_fast.use_backend(backend):
            for part in (slice(None), slice(0, 2), slice(0, 3)):
                for image in (x, x.to(memory_format=torch.channels_last)):
                    ours, theirs = fast[part](image), original[part](image)
                    close(ours, theirs)
                    assert ours.stride() == theirs.stride()


def test_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels()
    net = network()
    assert [row.forward.reason for row in gan_fast.explain(net)] == [
        "torch.nn.Linear, not accelerated (see gan_fast.accelerate)"
    ] * 3
    gan_fast.accelerate(net)
    for shape in (None, (64, 10)):
        for row in gan_fast.explain(net, shape):
            assert row.layer == "Linear" and row.forward.backend == "torch" and "matrices" in row.forward.reason
    with gan_fast.use_backend("cpu"):
        assert {row.input_grad.backend for row in gan_fast.explain(net, (64, 10))} == {"cpu"}


def test_tune_measures_its_calls_against_the_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `tune` records are the layer's three passes; a cell that prefers the kernel is followed in each of them."""
    kernels()
    x, weight, bias = tensors(9, 20, 12)

    def step() -> object:
        return torch.autograd.grad(functional.linear(x, weight, bias).sum(), [x, weight, bias])

    with recorded(monkeypatch) as ran:
        step()
    assert ran == []
    calls = tuning.record(step)
    assert sorted(call.op for call in calls) == ["conv", "conv_transpose", "conv_weight_grad"]
    with choice_table.always(Choice("cpu", "a test")), recorded(monkeypatch) as ran:
        step()
    assert sorted(ran) == [("conv", "cpu"), ("conv_transpose", "cpu"), ("conv_weight_grad", "cpu")]
    made: list[str] = []
    convolution = torch.ops.aten.convolution
    monkeypatch.setattr(torch.ops.aten, "convolution", lambda *a: (made.append("convolution"), convolution(*a))[1])
    (cell,) = tuning.measure([call for call in calls if call.op == "conv"], rounds=1)
    assert made == [] and cell.seconds["torch"] > 0
