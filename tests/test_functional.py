"""gan_fast.functional against torch.nn.functional: values, gradients, dtypes, transforms, compilation, export."""

from __future__ import annotations

import gc
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import recorded
from conv_checks import ACTIVATIONS
from native import kernels
from tolerance import assert_as_good
from torch import Tensor

from gan_fast import backends as backend_module
from gan_fast import functional, use_backend

NAMES = [f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3)]
#: Their overload is called "input", unlike that of conv_transpose1d.
TRANSPOSED_ND = ("conv_transpose2d", "conv_transpose3d")
TWO_D = ("conv2d", "conv_transpose2d")
BACKENDS = ("auto", "reference", "cpu")
#: What each backend serves by name; that there is no 3-D kernel is for test_backends.
SERVED = [(name, backend) for name in NAMES for backend in BACKENDS if not (name.endswith("3d") and backend == "cpu")]
backends = pytest.mark.parametrize("backend", BACKENDS)


def tensors(name: str, dtype: torch.dtype = torch.float32, large: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(input, weight, bias); ``large`` enough that the automatic choice takes a kernel."""
    rank = int(name[-2])
    generator = torch.Generator().manual_seed(rank)
    channels, size, side, scale = (72, 56, 6, 16) if large else (6, 7, 4, 8)
    x = torch.randn((4, channels, *[size] * rank), generator=generator, dtype=torch.float64)
    weight = torch.randn((channels, channels, *[side] * rank), generator=generator, dtype=torch.float64) / scale
    bias = torch.randn(channels, generator=generator, dtype=torch.float64)
    return tuple(t.to(dtype).requires_grad_() for t in (x, weight, bias))  # type: ignore[return-value]  # three of them


def need(backend: str) -> None:
    if backend == "cpu":
        kernels()


@pytest.mark.parametrize("name", [*NAMES, "binary_cross_entropy_with_logits"])
def test_signature_is_torch_s(name: str) -> None:
    """Names, order and defaults, read off PyTorch's own schemas; ours adds keyword-only arguments."""
    parameters = list(inspect.signature(getattr(functional, name)).parameters.values())
    positional = [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    extra = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if name.startswith("conv"):
        schema = getattr(getattr(torch.ops.aten, name), "input" if name in TRANSPOSED_ND else "default")._schema
        theirs = [
            (a.name, a.default_value if a.has_default_value() else inspect.Parameter.empty) for a in schema.arguments
        ]
        assert [n for n, _ in positional] == [n for n, _ in theirs]
        for (argument, mine), (_, default) in zip(positional, theirs, strict=True):
            assert mine == default or default == [mine] * len(default), argument
        assert extra == ["activation", "negative_slope", "backend"]
    else:
        theirs = [(p.name, p.default) for p in inspect.signature(getattr(F, name)).parameters.values()]
        assert positional == theirs and extra == ["backend"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("name", "backend"), SERVED)
def test_value_and_gradients(name: str, activation: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need(backend)
    inputs = tensors(name)
    options: dict[str, Any] = {"stride": 2, "padding": 1}
    plain = getattr(F, name)(*inputs, **options)
    act = {"none": lambda x: x, "leaky_relu": lambda x: F.leaky_relu(x, 0.2)}.get(activation) or getattr(
        torch, activation
    )
    theirs = act(plain)
    with recorded(monkeypatch) as ran:
        ours = getattr(functional, name)(
            *inputs,
            **options,
            activation=None if activation == "none" else activation,
            negative_slope=0.2,
            backend=backend,
        )
        mine = torch.autograd.grad(ours.square().sum(), inputs)
    assert ran.backends() == (set() if backend == "auto" else {backend}), "small shapes go straight to PyTorch"
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(mine, torch.autograd.grad(theirs.square().sum(), inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", TWO_D)
def test_large_shapes_take_the_kernel_and_torch_s_strides(
    name: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels()
    x, weight, bias = tensors(name, large=True)
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    with recorded(monkeypatch) as ran:
        ours = getattr(functional, name)(x, weight, bias, 2, 1, activation="relu")
        ours.sum().backward()
    assert ran[0] == (name[:-2], "cpu")
    if layout == torch.channels_last:  # elsewhere the conversions can make PyTorch's weight gradient the faster one
        assert ran.backends() == {"cpu"}
    theirs = getattr(F, name)(x, weight, bias, 2, 1)
    assert ours.stride() == theirs.stride()
    truth = getattr(F, name)(x.double(), weight.double(), bias.double(), 2, 1)
    assert_as_good(ours, torch.relu(truth), torch.relu(theirs), name)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("name", TWO_D)
def test_strides_are_torch_s(name: str, kernel: int, backend: str) -> None:
    """Also for the ambiguous layouts: one sample, one channel, one pixel."""
    need(backend)
    last = torch.channels_last
    for n, c, oc, h, w in itertools.product((1, 2), (1, 3), (1, 4), (1, 5), (1, 6)):
        x = torch.randn(n, c, h, w)
        weight = torch.randn((c, oc, kernel, kernel) if "transpose" in name else (oc, c, kernel, kernel))
        padding = kernel // 2 if min(h, w) > 1 or "transpose" not in name else 0
        for a, b in itertools.product(
            (x, x.contiguous(memory_format=last)), (weight, weight.contiguous(memory_format=last))
        ):
            ours = getattr(functional, name)(a, b, padding=padding, backend=backend)
            theirs = getattr(F, name)(a, b, padding=padding)
            assert ours.stride() == theirs.stride(), (a.shape, a.stride(), b.shape, b.stride())


@backends
@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"])
def test_unbatched_strings_and_odd_forms(name: str, backend: str) -> None:
    need(backend)
    x, weight, bias = tensors(name)
    ours, theirs = getattr(functional, name), getattr(F, name)
    torch.testing.assert_close(ours(x[0], weight, bias, backend=backend), theirs(x[0], weight, bias))
    torch.testing.assert_close(ours(x, weight, stride=[2], backend=backend), theirs(x, weight, stride=[2]))
    assert ours(x[:0], weight, bias, backend=backend).shape == theirs(x[:0], weight, bias).shape
    if "transpose" not in name:
        for padding in ("same", "valid"):
            for dilation in (1, 2):
                args = (x, weight, bias, 1, padding, dilation)
                torch.testing.assert_close(ours(*args, backend=backend), theirs(*args))
    else:
        args = (x, weight, bias, 3, 2, 1, 1, 2)
        torch.testing.assert_close(ours(*args, backend=backend), theirs(*args))


def assert_torch_s(ours: Tensor, name: str, inputs: list[Tensor], *how: int) -> None:
    """PyTorch's result; in bfloat16, which some machines are better off without PyTorch's kernels for, one as good."""
    theirs = getattr(F, name)(*inputs, *how)
    if ours.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            truth = getattr(F, name)(*(t.bfloat16().double() for t in inputs), *how)
        assert_as_good(ours, truth, theirs, name)
    else:
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("name", TWO_D)
def test_other_dtypes_are_torch_s(name: str, dtype: torch.dtype, backend: str) -> None:
    inputs = [t.detach() for t in tensors(name, dtype)]
    ours = getattr(functional, name)(*inputs, 2, 1, backend=backend)
    assert ours.dtype == dtype
    assert_torch_s(ours, name, inputs, 2, 1)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_autocast_gives_torch_s_dtypes(dtype: torch.dtype, backend: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        for name in TWO_D:
            inputs = tensors(name, dtype)
            ours, theirs = getattr(functional, name)(*inputs, backend=backend), getattr(F, name)(*inputs)
            assert ours.dtype == theirs.dtype
            assert_torch_s(ours, name, list(inputs))
            gradients = torch.autograd.grad(ours.float().sum(), inputs)
            assert [g.dtype for g in gradients] == [dtype] * 3
        logits = tensors("conv1d", dtype)[0]
        ours = functional.binary_cross_entropy_with_logits(logits, 0.9, backend=backend)
        assert ours.dtype == F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 0.9)).dtype


def test_leaky_relu_without_a_positive_slope_runs_unfused() -> None:
    kernels()
    x, weight, bias = tensors("conv2d")
    for slope in (0.0, -0.5):
        ours = functional.conv2d(x, weight, bias, activation="leaky_relu", negative_slope=slope, backend="cpu")
        theirs = F.leaky_relu(F.conv2d(x, weight, bias), slope)
        torch.testing.assert_close(ours, theirs)
        mine = torch.autograd.grad(ours.square().sum(), (x, weight, bias))
        torch.testing.assert_close(
            mine, torch.autograd.grad(theirs.square().sum(), (x, weight, bias)), rtol=1e-4, atol=1e-4
        )


def test_geometry_form_is_pad_or_crop_and_torch() -> None:
    x, weight, bias = tensors("conv2d")
    ours = functional.conv_geometry(x, weight, bias, stride=2, pad_begin=(0, -1), out_size=(3, 2), activation="relu")
    # Axis 0: (3 - 1) * 2 + 4 - 7 = 1 at the end; axis 1: one cut at the beginning, none at the end.
    theirs = torch.relu(F.conv2d(F.pad(x, (-1, 0, 0, 1)), weight, bias, 2))
    torch.testing.assert_close(ours, theirs)
    ours = functional.conv_transpose_geometry(x, weight, bias, stride=2, pad_begin=1, out_size=14)
    torch.testing.assert_close(ours, F.conv_transpose2d(x, weight, bias, 2, 1)[..., :14, :14])
    with pytest.raises(ValueError, match=r"conv: out_size must be an int or 2 ints, got \(1, 2, 3\)"):
        functional.conv_geometry(x, weight, stride=1, pad_begin=0, out_size=(1, 2, 3))
    with pytest.raises(ValueError, match="conv_transpose: input must have 6 channels"):
        functional.conv_transpose_geometry(x[:, :5], weight, stride=1, pad_begin=0, out_size=3)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", TWO_D)
def test_torch_func(name: str, backend: str) -> None:
    """grad, grad of grad, vmap over each argument, per-sample gradients; PyTorch's own functions are the truth."""
    need(backend)
    x, weight, bias = (t.detach() for t in tensors(name))

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return getattr(functional, name)(x, weight, bias, 2, 1, activation="tanh", backend=backend)

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.tanh(getattr(F, name)(x, weight, bias, 2, 1))

    def loss(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args: f(*args).square().mean()

    def penalty(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args: torch.func.grad(loss(f), argnums=0)(*args).square().sum()

    everything = (0, 1, 2)
    close = {"rtol": 1e-4, "atol": 1e-5}
    for make in (loss, penalty):
        mine = torch.func.grad(make(ours), argnums=everything)(x, weight, bias)
        torch.testing.assert_close(mine, torch.func.grad(make(theirs), argnums=everything)(x, weight, bias), **close)
    stacked = [torch.stack([t, t * 0.5, t - 0.1]) for t in (x, weight, bias)]
    for in_dims in ((0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0), (1, None, None)):
        args = [s if d is not None else t for s, t, d in zip(stacked, (x, weight, bias), in_dims, strict=True)]
        for make in (lambda f: f, lambda f: torch.func.grad(loss(f), argnums=everything)):
            mine = torch.func.vmap(make(ours), in_dims)(*args)
            torch.testing.assert_close(mine, torch.func.vmap(make(theirs), in_dims)(*args), **close)
    per_sample = torch.func.vmap(torch.func.grad(loss(lambda x, w, b: ours(x[None], w, b)), argnums=1), (0, None, None))
    expected = torch.func.vmap(torch.func.grad(loss(lambda x, w, b: theirs(x[None], w, b)), argnums=1), (0, None, None))
    torch.testing.assert_close(per_sample(x, weight, bias), expected(x, weight, bias), **close)


def test_forward_mode_is_right_or_raises() -> None:
    x, weight, _ = (t.detach() for t in tensors("conv2d"))

    def f(weight: Tensor, backend: str) -> Tensor:
        return functional.conv2d(x, weight, backend=backend, activation="tanh")

    _, ours = torch.func.jvp(lambda w: f(w, "auto"), (weight,), (weight,))
    _, theirs = torch.func.jvp(lambda w: torch.tanh(F.conv2d(x, w)), (weight,), (weight,))
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lambda w: f(w, "reference"), (weight,), (weight,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        dual = torch.autograd.forward_ad.make_dual(weight, weight)
        torch.ops.gan_fast.conv(x, dual, None, [1, 1], [0, 0], [1, 1], 1, [4, 4])


@pytest.mark.parametrize("name", TWO_D)
def test_no_memory_is_kept_after_the_last_reference(name: str) -> None:
    """Saved outputs and prologues form no cycles: without the garbage collector's help every block comes back."""
    module = kernels()
    x, weight, bias = tensors(name, large=True)
    gc.disable()
    try:
        before = module.pool_stats()["live_blocks"]
        for _ in range(3):
            y = getattr(functional, name)(x, weight, bias, 2, 1, activation="tanh", backend="cpu")
            (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            penalties = torch.autograd.grad(g.square().sum(), (x, weight, bias))
            assert module.pool_stats()["live_blocks"] > before
            del y, g, penalties
            assert module.pool_stats()["live_blocks"] == before
    finally:
        gc.enable()


@backends
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", TWO_D)
def test_without_gradients(name: str, mode: Callable[[], Any], backend: str) -> None:
    need(backend)
    with mode():
        inputs = tensors(name, large=True)
        ours = getattr(functional, name)(*inputs, 2, 1, activation="relu", backend=backend)
        assert not ours.requires_grad
        truth, theirs = (torch.relu(getattr(F, name)(*given, 2, 1)) for given in ([t.double() for t in inputs], inputs))
        assert_as_good(ours, truth, theirs, name)


@backends
@pytest.mark.parametrize("name", TWO_D)
def test_compile_without_graph_breaks(name: str, backend: str) -> None:
    need(backend)
    torch._dynamo.reset()
    x, weight, bias = tensors(name, large=True)

    def step(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # Smooth: at a kink two ways of rounding may take different sides.
        y = getattr(functional, name)(x, weight, bias, 2, 1, activation="tanh", backend=backend)
        return functional.binary_cross_entropy_with_logits(y, 0.9, backend=backend)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), step(x, weight, bias))
    mine = torch.autograd.grad(compiled(x, weight, bias), (x, weight, bias))
    torch.testing.assert_close(
        mine, torch.autograd.grad(step(x, weight, bias), (x, weight, bias)), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_compile_any_size_before_the_binary_is_loaded(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Symbolic sizes; and as in a fresh process, where loading the binary is still to be done (it cannot be traced)."""
    need(backend)
    torch._dynamo.reset()

    def step(x: Tensor, weight: Tensor) -> Tensor:
        y = functional.conv2d(x, weight, None, 2, 1, activation="relu", backend=backend)
        size = [2 * n for n in y.shape[2:]]
        y = functional.conv_transpose_geometry(y, weight, stride=2, pad_begin=1, out_size=size, backend=backend)
        y = functional.bias_act(y, None, "tanh", backend=backend)
        return functional.binary_cross_entropy_with_logits(y, 1.0, backend=backend)

    monkeypatch.setattr(backend_module, "_extension", backend_module._Extension())
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    weight = tensors("conv2d")[1]
    for batch, size in ((2, 8), (3, 9), (5, 12)):
        x = torch.randn(batch, 6, size, size, requires_grad=True)
        ours, theirs = compiled(x, weight), step(x, weight)
        torch.testing.assert_close(ours, theirs)
        mine = torch.autograd.grad(ours, (x, weight))
        torch.testing.assert_close(mine, torch.autograd.grad(theirs, (x, weight)), rtol=1e-4, atol=1e-6)


def test_compiled_code_follows_use_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    x, weight, bias = tensors("conv2d")
    compiled = torch.compile(lambda: functional.conv2d(x, weight, bias), fullgraph=True, backend="aot_eager")
    with recorded(monkeypatch) as ran:
        compiled()
        assert ran == []
        with use_backend("reference"):
            compiled()
        assert ran == [("conv", "reference")]


@pytest.mark.slow
@backends
def test_inductor(backend: str) -> None:
    need(backend)
    torch._dynamo.reset()
    x, weight, bias = tensors("conv_transpose2d", large=True)

    def step(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.conv_transpose2d(x, weight, bias, 2, 1, activation="tanh", backend=backend).square().mean()

    compiled = torch.compile(step, fullgraph=True)
    mine = torch.autograd.grad(compiled(x, weight, bias), (x, weight, bias))
    torch.testing.assert_close(
        mine, torch.autograd.grad(step(x, weight, bias), (x, weight, bias)), rtol=1e-4, atol=1e-6
    )


@backends
def test_export_holds_only_aten(backend: str) -> None:
    need(backend)

    class Net(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            y = functional.conv2d(x, weight, None, 2, 1, activation="relu", backend=backend)
            y = functional.conv_transpose_geometry(y, weight, stride=2, pad_begin=1, out_size=7, backend=backend)
            y = functional.bias_act(y, None, "tanh", backend=backend)
            return functional.binary_cross_entropy_with_logits(y, 1.0, backend=backend)

    x, weight, _ = tensors("conv2d")
    program = torch.export.export(Net(), (x, weight))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets and all(target.startswith("aten.") for target in targets), targets
    torch.testing.assert_close(program.module()(x, weight), Net()(x, weight))


def test_unknown_activation() -> None:
    x, weight, _ = tensors("conv2d")
    with pytest.raises(
        ValueError, match=r"activation: unknown 'leakyrelu', expected None or .*did you mean 'leaky_relu'"
    ):
        functional.conv2d(x, weight, activation="leakyrelu")
