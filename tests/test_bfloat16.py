"""bfloat16 in the operators other than the convolutions: rounding to the bit, every order, mixed dtypes; float32 stays
float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from batch_norm_cases import CASES, EPS, EVALUATION, SLOPE, NormCase, name
from cases import LAYOUTS, lay
from checks import BACKENDS, assert_same_layout, level_of, recorded
from conv_checks import ACTIVATIONS
from native import kernels
from tolerance import assert_as_good
from torch import Tensor

from gan_fast import backends, functional
from gan_fast.ops import OPERATORS
from gan_fast.ops import activation as activations

B16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
KERNELS = BACKENDS[1:]
#: Far from 0, and in evaluation one of each.
NORMS = [*CASES, *EVALUATION[:5]]


def any_bits(*shape: int) -> Tensor:
    """bfloat16 of every kind: denormal, huge, infinite, not a number."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-(2**15), 2**15, shape, generator=generator, dtype=torch.int16).view(B16)


def assert_same_bits(ours: Tensor, theirs: Tensor) -> None:
    """Equal to the bit, but for the payload of what is not a number."""
    missing = theirs.isnan()
    assert torch.equal(ours.isnan(), missing)
    assert torch.equal(ours.view(torch.int16)[~missing], theirs.view(torch.int16)[~missing])


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = B16) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=F64).to(B16).to(dtype)


@pytest.mark.parametrize("backend", KERNELS)
def test_all_values_pass_unchanged(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(B16)
    with level_of(backend, monkeypatch) as ran_by:
        for part in (x.view(1, -1), x[:-15].view(1, -1), x[1:].view(1, -1)):
            assert_same_bits(OPERATORS["bias_act"](part, None, "none", SLOPE, ran_by), part)
            assert_same_bits(OPERATORS["act_grad"](part, torch.ones_like(part), "relu", SLOPE, ran_by), part)


@pytest.mark.parametrize("backend", KERNELS)
def test_sums_are_rounded_to_the_nearest_even(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with level_of(backend, monkeypatch) as ran_by:
        for shape in ((211, 77), (40, 7, 93), (9, 20, 5, 11)):
            x, bias = any_bits(*shape), any_bits(shape[1])
            exact = x.float() + bias.float().view(-1, *[1] * (len(shape) - 2))
            assert_same_bits(OPERATORS["bias_act"](x, bias, "none", SLOPE, ran_by), exact.to(B16))
            assert_same_bits(OPERATORS["bias_act"](x, bias, "relu", SLOPE, ran_by), torch.relu(exact).to(B16))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("channels", "features"), [(3, 64), (3, 16), (3, 41), (32, 64), (32, 16), (32, 41), (32, 2)])
def test_sums_of_a_convolution_are_rounded_to_the_nearest_even(
    channels: int, features: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = numbers(2, channels, 6, 9), numbers(features, channels, 1, 1)
    x[:, 1:] = 0  # one product for each sum, which float32 holds
    products = x[:, :1].float() * weight[:, 0].float().view(1, -1, 1, 1)
    with level_of(backend, monkeypatch):
        for operand, bias in ((x, numbers(features, seed=1)), (torch.zeros_like(x), any_bits(features))):
            bias[1] = torch.finfo(B16).tiny / 3  # a denormal
            exact = bias.float().view(1, -1, 1, 1) + (products if operand is x else 0 * products)
            out = functional.conv2d(operand.to(memory_format=torch.channels_last), weight, bias, backend="cpu")
            assert_same_bits(out, exact.to(B16))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(("channels", "kernel"), [(1, 3), (1, 7), (3, 1), (3, 3), (5, 2), (2, 3)])
@pytest.mark.parametrize("act", ["none", "relu"])
def test_few_channels_keep_infinity(
    act: str, channels: int, kernel: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is the only one that a pixel sees, the sum is infinite, whichever word of pairs holds it."""
    weight = numbers(20, channels, kernel, kernel)
    with level_of(backend, monkeypatch):
        for place in range(4 * channels):
            x = numbers(1, channels, 9, 9)
            x[0, place % channels, 4, 3 + place // channels] = torch.inf if place % 2 else -torch.inf
            truth = F.conv2d(x.double(), weight.double(), padding=kernel // 2)
            truth = truth.relu() if act == "relu" else truth
            out = functional.conv2d(x, weight, padding=kernel // 2, activation=act, backend="cpu").double()
            assert torch.equal(out.isnan(), truth.isnan()) and torch.equal(out.isinf(), truth.isinf())
            assert torch.equal(out[out.isinf()], truth[truth.isinf()])


@pytest.mark.parametrize("backend", KERNELS)
def test_large_outputs_pass_the_cache_with_their_denormals(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So large that they are stored around the cache, a line at a time or half of one."""
    x, weight, bias = numbers(1, 3, 256, 260), numbers(128, 3, 3, 3), numbers(128, seed=1)
    x[:, :, :100], bias[40] = 0, torch.finfo(B16).tiny / 3
    with level_of(backend, monkeypatch):
        out = functional.conv2d(x.to(memory_format=torch.channels_last), weight, bias, padding=1, backend="cpu")
    assert out.nbytes >= 16 << 20
    assert_same_bits(out[:, :, :98], bias.view(1, -1, 1, 1).expand_as(out)[:, :, :98])
    theirs = F.conv2d(x, weight, bias, padding=1)
    assert_as_good(out, F.conv2d(x.double(), weight.double(), bias.double(), padding=1), theirs, "a large output")


@pytest.mark.parametrize("backend", KERNELS)
def test_few_channels_of_a_large_kernel(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More words than one chain of sums takes."""
    x, weight = numbers(1, 11, 14, 15), numbers(20, 11, 11, 11)
    for dtype in (F32, B16):
        given = x.to(dtype), weight.to(dtype)
        with level_of(backend, monkeypatch):
            out = functional.conv2d(*given, padding=5, backend="cpu")
        truth = F.conv2d(x.double(), weight.double(), padding=5)
        assert_as_good(out, truth, F.conv2d(*given, padding=5), f"{dtype}")


# ------------------------------------------------------------------------------------------------- every order


def orders(f: Callable[..., Tensor], tensors: Sequence[Tensor], g: Tensor | None = None) -> list[tuple[str, Tensor]]:
    """Value, gradients, and the gradients' gradients, with fixed weights (equal for all dtypes)."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = f(*leaves)
    g = numbers(*out.shape, seed=1) if g is None else g
    first = torch.autograd.grad(out, leaves, g.to(out.dtype), create_graph=True)
    weights = [numbers(*t.shape, seed=2).to(t.dtype) for t in first]
    reached = [(t, w) for t, w in zip(first, weights, strict=True) if t.requires_grad]
    results = [("value", out), *((f"d/d{i}", t) for i, t in enumerate(first))]
    if reached:
        heads, weights = zip(*reached, strict=True)
        second = torch.autograd.grad(heads, leaves, weights, allow_unused=True)
        results += [(f"d2/d{i}", t) for i, t in enumerate(second) if t is not None]
    return [(what, t.detach()) for what, t in results]


def check_orders(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], tensors: Sequence[Tensor], what: str,
    g: Tensor | None = None,
) -> None:  # fmt: skip
    """``ours`` is as near to ``theirs`` in float64 as twice ``theirs`` in bfloat16, in every order, in its dtypes."""
    truths = dict(orders(theirs, [t.double() for t in tensors], g))
    yardsticks = dict(orders(theirs, tensors, g))
    results = dict(orders(ours, tensors, g))
    for order, mine in results.items():
        if order not in truths:  # a derivative that is 0 everywhere, which PyTorch leaves out
            assert not mine.any(), f"{order} of {what}"
            continue
        assert mine.dtype == yardsticks[order].dtype, f"{order} of {what}"
        assert_as_good(mine, truths[order], yardsticks[order], f"{order} of {what}")
    missing = truths.keys() - results.keys()
    assert not any(truths[order].any() for order in missing), f"{missing} of {what}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act(act: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with level_of(backend, monkeypatch) as ran_by:
        for shape, layout in itertools.product(((3, 17), (2, 33, 5), (2, 5, 7, 9)), LAYOUTS):
            tensors = [lay(numbers(*shape), layout), numbers(shape[1])]

            def plain(x: Tensor, bias: Tensor) -> Tensor:
                return activations.apply(x + bias.view(-1, *[1] * (x.dim() - 2)), act, SLOPE)

            def ours(x: Tensor, bias: Tensor) -> Tensor:
                return OPERATORS["bias_act"](x, bias, act, SLOPE, ran_by)

            check_orders(ours, plain, tensors, f"{shape} {layout}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_bce_with_logits(reduction: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with level_of(backend, monkeypatch) as ran_by:
        for shape, layout in itertools.product(((7,), (37, 3), (2, 5, 7, 9)), LAYOUTS):
            x, target = lay(3 * numbers(*shape), layout), numbers(*shape).abs().clamp(max=1)
            weight, positive = numbers(*shape, seed=3).abs(), numbers(shape[-1], seed=4).abs()

            def plain(x: Tensor, given: tuple[Tensor, ...] = (weight, positive, target)) -> Tensor:
                w, p, t = (v.to(x.dtype) for v in given)
                return F.binary_cross_entropy_with_logits(x, t, w, pos_weight=p, reduction=reduction)

            def ours(x: Tensor, given: tuple[Tensor, ...] = (weight, positive, target)) -> Tensor:
                w, p, t = given
                return OPERATORS["bce_with_logits"](x, t, 0.0, w, p, reduction, ran_by)[0]

            check_orders(ours, plain, [x], f"{shape} {layout} {reduction}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("parameters", [F32, B16], ids=["float32 weights", "bfloat16 weights"])
@pytest.mark.parametrize("case", NORMS, ids=name)
def test_batch_norm(case: NormCase, parameters: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, *affine = (t.detach() for t in case.tensors())
    x = lay(x.to(B16), case.layout)
    affine = [t.to(B16).to(parameters) for t in affine]
    running = [t.to(B16).to(parameters) for t in case.running()]

    def plain(x: Tensor, *affine: Tensor) -> Tensor:
        weight, bias = affine or (None, None)
        # In float64, or as PyTorch has it beside bfloat16 images.
        mean, var = (t.to(F64 if x.dtype == F64 else parameters) for t in running)
        z = F.batch_norm(x, mean.clone(), var.clone(), weight, bias, case.training, 0.1, EPS)
        return activations.apply(z, case.activation, SLOPE)

    def ours(x: Tensor, *affine: Tensor) -> Tensor:
        weight, bias = affine or (None, None)
        given = (None, None) if case.training else running
        return OPERATORS["batch_norm_act"](x, weight, bias, *given, EPS, case.activation, SLOPE, ran_by)[0]

    g = numbers(*case.shape, seed=1)
    if case.activation in ("relu", "leaky_relu"):  # nobody knows on which side of 0 a value next to it lies
        g = torch.where(plain(x.double(), *(t.double() for t in affine)).abs() < 1e-3, 0, g)
    with level_of(backend, monkeypatch) as ran_by, recorded(monkeypatch) as ran:
        check_orders(ours, plain, [x, *affine], name(case), g)
    assert ran.backends() == {ran_by}
    if case.activation == "none":
        assert_same_layout([ours(x, *affine), plain(x, *affine)], name(case))


@pytest.mark.parametrize("backend", KERNELS)
def test_the_mask_of_the_gradient_is_that_of_the_output(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with level_of(backend, monkeypatch) as ran_by:
        for channels in (3, 19, 64):
            x = torch.randn(400, channels, generator=torch.Generator().manual_seed(1)).to(B16)
            bias = torch.full((channels,), 1e-3, requires_grad=True)
            y = functional.batch_norm(x, None, None, None, bias, True, activation="relu", backend=ran_by)
            (grad,) = torch.autograd.grad(y.sum(), bias)
            assert torch.equal(grad, (y > 0).sum(0).float())


def test_no_number_depends_on_the_threads() -> None:
    kernels()
    x = lay(numbers(50, 70, 13, 13), "channels_last")
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            bias = numbers(70).requires_grad_()
            y = OPERATORS["bias_act"](x, bias, "tanh", SLOPE, "cpu")
            z, *_ = OPERATORS["batch_norm_act"](y, bias, None, None, None, EPS, "sigmoid", SLOPE, "cpu")
            loss, _ = OPERATORS["bce_with_logits"](z, None, 0.9, None, None, "mean", "cpu")
            results.append([y, z, loss, *torch.autograd.grad(loss, bias)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# -------------------------------------------------------------------------------------------- which dtypes go together


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
def test_batch_norm_takes_what_torch_takes(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image, weight, running statistics: bfloat16 images may have either dtype beside them, float32 ones their own."""
    kernels()
    for image, weights, running, training in itertools.product((F32, B16), (F32, B16), (F32, B16), (True, False)):
        x = lay(torch.randn(32, 16, 16, 16).to(image), "channels_last")
        tensors = [x, *(t.to(running) for t in torch.rand(2, 16) + 0.5), *(t.to(weights) for t in torch.rand(2, 16))]
        others, leaves = [t.clone() for t in tensors], [t.clone() for t in tensors]
        try:
            theirs = F.batch_norm(*others, training)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                functional.batch_norm(*leaves, training, backend=backend)
            continue
        with recorded(monkeypatch) as ran:
            ours = functional.batch_norm(*leaves, training, backend=backend)
        assert ran == [("batch_norm_act", "reference" if backend == "reference" else "cpu")]
        assert ours.dtype == theirs.dtype and [t.dtype for t in leaves] == [t.dtype for t in tensors]
        assert_same_layout([ours, theirs], f"{image} {weights} {running}")
        close = {} if image == F32 else {"rtol": 0.016, "atol": 0.016}
        torch.testing.assert_close([ours, *leaves[1:3]], [theirs, *others[1:3]], **close)


def test_operators_refuse_other_mixtures() -> None:
    x, one = torch.randn(2, 3, 4), torch.ones(3)
    with pytest.raises(ValueError, match="weight must have the dtype and device of input"):
        torch.ops.gan_fast.batch_norm_act(x, one.to(B16), None, None, None, EPS)
    with pytest.raises(ValueError, match="bias must have the dtype and device of weight"):
        torch.ops.gan_fast.batch_norm_act(x.to(B16), one, one.to(B16), None, None, EPS)
    with pytest.raises(ValueError, match="bias must have the dtype and device of input"):
        torch.ops.gan_fast.bias_act(x.to(B16), one, "relu", SLOPE)
    module = kernels()
    with pytest.raises(ValueError, match=r"parameter_dtype=2: expected that of x, or 0 \(float32\) beside 2"):
        module.batch_norm_act(0, 2, 1, 1, 1, 0, 0, True, 1, 1, EPS, 0, SLOPE, 1, 1)


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_autocast_is_torch_s(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch normalisation and activations keep their input's dtype, the loss is computed in float32."""
    kernels()
    weight, logits = torch.ones(16), numbers(40_000)
    for image in (F32, B16):
        x = lay(torch.randn(32, 16, 16, 16).to(image), "channels_last")
        with torch.autocast("cpu", B16), recorded(monkeypatch) as ran:
            theirs = F.batch_norm(x, None, None, weight, weight, True)
            ours = functional.batch_norm(x, None, None, weight, weight, True, backend=backend)
            loss = functional.binary_cross_entropy_with_logits(logits.to(image), 0.9, backend=backend)
            biased = functional.bias_act(x, None, "tanh", backend=backend)
        assert ran.backends() == {"cpu"} and len(ran) == 3
        assert ours.dtype == theirs.dtype == biased.dtype == image and loss.dtype == F32
        torch.testing.assert_close(ours, theirs)


# --------------------------------------------------------------------------------------- no silent change of precision


@pytest.mark.parametrize("allowed", ["highest", "medium"])
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_float32_is_never_rounded(backend: str, allowed: str) -> None:
    """Not even where PyTorch was allowed to: its setting is about matrix products of its own.

    Were one operand rounded to bfloat16 on the way, the error would be near 1e-3 of the result.
    """
    kernels()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 48, 24, 24, generator=generator).to(memory_format=torch.channels_last)
    up, down = (0.05 * torch.randn(48, 48, k, k, generator=generator) for k in (4, 3))

    def network(x: Tensor, up: Tensor, down: Tensor, bias: Tensor) -> Tensor:
        choice = {"backend": backend if x.dtype == F32 else "reference"}
        x = functional.conv_transpose2d(x, up, None, 2, 1, **choice)
        x = functional.batch_norm(x, None, None, bias.exp(), bias, True, activation="tanh", **choice)
        x = functional.conv2d(x, down, bias, 2, 1, activation="sigmoid", **choice)
        return functional.binary_cross_entropy_with_logits(
            functional.bias_act(x, bias, "tanh", **choice), 0.9, **choice
        )

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        results = []
        for dtype in (F32, F64):
            leaves = [t.to(dtype).requires_grad_() for t in (x, up, down, torch.linspace(-1, 1, 48))]
            out = network(*leaves)
            results.append([out, *torch.autograd.grad(out, leaves)])
    finally:
        torch.set_float32_matmul_precision(before)
    for ours, truth in zip(*results, strict=True):
        assert ours.dtype == F32
        assert (ours - truth).norm() <= 2e-5 * truth.norm()


def test_the_table_of_dtypes_is_the_choice_s() -> None:
    kernels()
    assert set(OPERATORS) >= backends.BFLOAT16_OPERATORS
    for op in OPERATORS:
        taken = op in backends.BFLOAT16_OPERATORS
        facts = {"elements": 10**7, "channels": 64, "channels_last": True, "mflop": 1e4, "groups": 1, "narrow": 64}
        choice = backends.choose(op, dtype=B16, **facts)
        assert (choice.backend == "cpu") == taken, (op, choice)
        assert (backends.refusal(op, "cpu", device="cpu", dtype=B16) is None) == taken
        if not taken:
            assert "bfloat16 is served by PyTorch" in choice.reason
