"""gan_fast.nn against torch.nn, and the Keras layers against Keras' definition of "same"."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from native import kernels
from torch import Tensor

import gan_fast
from gan_fast import nn

CONVS = ["Conv1d", "Conv2d", "Conv3d"]
TRANSPOSED = ["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
layers = pytest.mark.parametrize("name", CONVS + TRANSPOSED)


def make(name: str, module: Any, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return getattr(module, name)(6, 4, 3, stride=2, padding=1, **options)


def sample(name: str) -> Tensor:
    return torch.randn((2, 6, *[7] * int(name[-2])), generator=torch.Generator().manual_seed(1))


@layers
def test_same_parameters_keys_and_results(name: str) -> None:
    ours, theirs = make(name, nn, groups=2), make(name, torch.nn, groups=2)
    assert isinstance(ours, getattr(torch.nn, name))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)  # the same initialisation from the same seed
    x = sample(name)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))
    theirs.load_state_dict(ours.state_dict())
    assert repr(ours) == repr(theirs)


@layers
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid"])
def test_activation(name: str, activation: str) -> None:
    ours, theirs = make(name, nn, activation=activation, negative_slope=0.2), make(name, torch.nn)
    x = sample(name)
    then = {"leaky_relu": lambda y: torch.nn.functional.leaky_relu(y, 0.2)}.get(activation) or getattr(
        torch, activation
    )
    torch.testing.assert_close(ours(x), then(theirs(x)))
    assert f"activation='{activation}'" in repr(ours)
    assert ("negative_slope=0.2" in repr(ours)) == (activation == "leaky_relu")


@layers
def test_copies_pickles_and_class_swap(name: str) -> None:
    layer = make(name, nn, activation="tanh")
    x = sample(name)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    fresh = make(name, nn, activation="tanh")
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert repr(other) == repr(layer)
        assert torch.equal(other(x), layer(x))
    plain = make(name, torch.nn)
    expected = plain(x)
    plain.__class__ = getattr(nn, name)
    assert plain.activation is None and plain.negative_slope == 0.01
    torch.testing.assert_close(plain(x), expected)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("name", ["Conv1d", "Conv2d"])
def test_other_padding_modes(name: str, mode: str) -> None:
    x = sample(name)
    ours = make(name, nn, padding_mode=mode, activation="relu")
    torch.testing.assert_close(ours(x), torch.relu(make(name, torch.nn, padding_mode=mode)(x)))


@pytest.mark.parametrize("padding", ["same", "valid", 2, (1, 0)])
def test_padding_forms(padding: Any) -> None:
    torch.manual_seed(0)
    ours = nn.Conv2d(6, 4, (4, 3), padding=padding, bias=False)
    theirs = torch.nn.Conv2d(6, 4, (4, 3), padding=padding, bias=False)
    theirs.load_state_dict(ours.state_dict())
    x = sample("Conv2d")
    with gan_fast.use_backend("reference"):
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", TRANSPOSED)
def test_output_size(name: str) -> None:
    ours, theirs = make(name, nn), make(name, torch.nn)
    x = sample(name)
    size = [14] * int(name[-2])
    torch.testing.assert_close(ours(x, output_size=size), theirs(x, output_size=size))
    for wrong in ([20] * len(size), [14] * 7):
        with pytest.raises(ValueError, match=r"output.size"):
            ours(x, output_size=wrong)


@layers
def test_bad_input_raises_torch_s_error(name: str) -> None:
    ours, theirs = make(name, nn), make(name, torch.nn)
    for x in (sample(name)[:, :5], sample(name).double(), sample(name).flatten(), sample(name).long()):
        with pytest.raises(RuntimeError) as expected:
            theirs(x)
        with pytest.raises(RuntimeError) as got:
            ours(x)
        assert str(got.value) == str(expected.value)
    with pytest.raises(ValueError, match="activation: unknown 'selu'"):
        make(name, nn, activation="selu")


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
@pytest.mark.parametrize("size", [(1, 1), (5, 8), (6, 7), (28, 28)])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_keras_same(stride: int, kernel: int, size: tuple[int, int], backend: str) -> None:
    """Keras: out = ceil(n / s); padding is split with the odd one at the end. Its transpose is the exact adjoint."""
    if backend == "cpu":
        kernels()
    torch.manual_seed(0)
    conv = nn.KerasConv2d(3, 5, kernel, stride).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    total = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in size]
    pad = [p for t in reversed(total) for p in (t // 2, t - t // 2)]
    expected = torch.nn.functional.conv2d(torch.nn.functional.pad(x, pad), conv.weight, conv.bias, stride)
    transposed = nn.KerasConvTranspose2d(5, 3, kernel, stride, bias=False).double()
    with torch.no_grad():
        transposed.weight.copy_(conv.weight)
    y = torch.randn(2, 5, *size, dtype=torch.float64)
    with gan_fast.use_backend(backend):
        torch.testing.assert_close(conv(x), expected)
        out = transposed(y)
    assert out.shape == (2, 3, size[0] * stride, size[1] * stride)
    probe = torch.zeros_like(out, requires_grad=True)
    conv.bias = None
    (adjoint,) = torch.autograd.grad((conv(probe) * y).sum(), probe)
    torch.testing.assert_close(out, adjoint)


def test_keras_layers_are_ordinary_modules() -> None:
    layer = nn.KerasConvTranspose2d(4, 3, 5, 2, activation="tanh")
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert "same" in repr(layer) and "tanh" in repr(nn.KerasConv2d(1, 1, 3, activation="tanh"))
    other = pickle.loads(pickle.dumps(layer))
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(other(x), layer(x))
    with pytest.raises(ValueError, match="output_size"):
        layer(x, output_size=(6, 6))
    # The article's transposed convolution: PyTorch's padding=1 with the last row and column cut.
    with torch.no_grad():
        cropped = torch.nn.functional.conv_transpose2d(x, layer.weight, layer.bias, 2, 1)[..., :-1, :-1]
    torch.testing.assert_close(layer(x), torch.tanh(cropped))


def test_bce_with_logits_loss() -> None:
    x, target = torch.randn(4, 3), torch.rand(4, 3)
    for options in (
        {},
        {"reduction": "sum"},
        {"weight": torch.rand(3)},
        {"pos_weight": torch.rand(3), "reduction": "none"},
    ):
        ours, theirs = nn.BCEWithLogitsLoss(**options), torch.nn.BCEWithLogitsLoss(**options)
        torch.testing.assert_close(ours(x, target), theirs(x, target))
        torch.testing.assert_close(ours(x, 0.9), theirs(x, torch.full_like(x, 0.9)))
        assert list(ours.state_dict()) == list(theirs.state_dict())


def critic(module: Any, activation: str) -> torch.nn.Module:
    """Two convolutions, one transposed, with activations between: ours fused, PyTorch's as layers of their own."""
    torch.manual_seed(0)
    fused = module is nn
    options = {"activation": activation, "negative_slope": 0.2} if fused else {}
    act = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "sigmoid": torch.nn.Sigmoid}
    between = act.get(activation, lambda: torch.nn.LeakyReLU(0.2))
    layers: list[torch.nn.Module] = []
    for layer in (
        module.Conv2d(3, 16, 4, 2, 1, **options),
        module.ConvTranspose2d(16, 8, 4, 2, 1, **options),
        module.Conv2d(8, 12, 3, 2, bias=False, **options),
    ):
        layers += [layer] if fused else [layer, between()]
    return torch.nn.Sequential(*layers, module.Conv2d(12, 1, 3))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid"])
def test_gradient_penalties_reach_the_parameters(activation: str, backend: str) -> None:
    """R1 and WGAN-GP: the gradient of a gradient's norm, through a chain of fused layers, is PyTorch's."""
    if backend == "cpu":
        kernels()
    ours, theirs = critic(nn, activation), critic(torch.nn, activation)
    x = torch.randn(3, 3, 11, 10)

    def penalties(net: torch.nn.Module) -> list[Tensor]:
        real = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(net(real).sum(), real, create_graph=True)
        r1 = g.square().sum((1, 2, 3)).mean()
        gp = (g.flatten(1).norm(dim=1) - 1).square().mean()
        return [*torch.autograd.grad(r1 + 10 * gp, [p for p in net.parameters() if p.dim() > 1])]

    with gan_fast.use_backend(backend):
        mine = penalties(ours)
    torch.testing.assert_close(mine, penalties(theirs), rtol=1e-3, atol=1e-6)
    assert all(bool(g.abs().max() > 0) for g in mine)


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d", "KerasConv2d", "KerasConvTranspose2d"])
def test_compiles_whole(name: str) -> None:
    torch._dynamo.reset()
    layer = getattr(nn, name)(6, 4, 3, 2, activation="relu")
    x = sample("Conv2d")
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    n, h = torch.export.Dim("n", min=2, max=9), torch.export.Dim("h", min=6, max=64)
    # KerasConv2d pads by the parity of the size: an exported program keeps the one that it was traced with.
    dims = {0: n} if name == "KerasConv2d" else {0: n, 2: h}
    program = torch.export.export(layer, (x,), dynamic_shapes=(dims,))
    other = torch.randn(5, 6, 7 if name == "KerasConv2d" else 13, 7)
    torch.testing.assert_close(program.module()(other), layer(other))
    assert all(str(n.target).startswith("aten.") for n in program.graph.nodes if n.op == "call_function")


# --------------------------------------------------------------------------------------------- batch normalisation

NORMS = [("BatchNorm1d", (6, 12)), ("BatchNorm1d", (4, 12, 9)), ("BatchNorm2d", (4, 12, 5, 6))]


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"momentum": 0.7, "eps": 1e-2}],
    ids=repr,
)
@pytest.mark.parametrize(("name", "shape"), NORMS)
def test_batch_norm_is_torch_s(name: str, shape: tuple[int, ...], options: dict[str, Any], backend: str) -> None:
    """Results, gradients and buffers over several steps of training, then in evaluation."""
    if backend == "cpu":
        kernels()
    ours, theirs = getattr(nn, name)(12, **options), getattr(torch.nn, name)(12, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict()) and repr(ours) == repr(theirs)
    for step in range(5):
        if step == 3:
            ours, theirs = ours.eval(), theirs.eval()
        x = torch.randn(shape) * (step + 1) + step
        pair = [x.clone().requires_grad_() for _ in range(2)]
        with gan_fast.use_backend(backend):
            mine = ours(pair[0])
            mine.pow(3).sum().backward()
        other = theirs(pair[1])
        other.pow(3).sum().backward()
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pair[0].grad, pair[1].grad, rtol=1e-3, atol=1e-3)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-5, atol=1e-6)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-3)


def test_batch_norm_refuses_what_torch_refuses() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        nn.BatchNorm2d(3)(torch.randn(2, 3, 4))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        nn.BatchNorm1d(3)(torch.randn(1, 3))
    assert nn.BatchNorm1d(3).eval()(torch.randn(1, 3)).shape == (1, 3)


def test_batch_norm_activation() -> None:
    ours = nn.BatchNorm2d(12, activation="leaky_relu", negative_slope=0.2)
    x = torch.randn(4, 12, 5, 6)
    expected = torch.nn.functional.leaky_relu(torch.nn.BatchNorm2d(12)(x), 0.2)
    torch.testing.assert_close(ours(x), expected)
    assert "activation='leaky_relu', negative_slope=0.2" in repr(ours)
