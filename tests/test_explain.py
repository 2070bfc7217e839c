"""gan_fast.explain says what serves the calls that a training really makes."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from native import kernels
from torch import nn

import gan_fast
from gan_fast import models
from gan_fast.choice_table import Choice
from gan_fast.ops.registry import Operator, recording
from gan_fast.sequential import Sequential

fast = gan_fast.nn


def model(name: str, part: int, **options: Any) -> nn.Module:
    return models.build(name, **options)[part]


def few_channels(activation: nn.Module, channels_last: bool = False) -> nn.Module:
    """Where an activation, or the weight's format, decides."""
    net = Sequential(fast.Conv2d(48, 48, 3, padding=1), activation, fast.Conv2d(48, 3, 3, padding=1), activation)
    return net.to(memory_format=torch.channels_last) if channels_last else net  # type: ignore[no-any-return, call-overload]  # torch types 4-D only


def from_images(activation: nn.Module) -> nn.Module:
    return Sequential(fast.Conv2d(3, 48, 4, 2, 1), activation, fast.Conv2d(48, 64, 4, 2, 1), activation)


def upsampling(size: int) -> nn.Module:
    layers = (nn.Upsample(scale_factor=2), nn.Conv2d(32, 24, 3, padding=1), nn.BatchNorm2d(24), nn.LeakyReLU(0.2))
    last = (nn.Upsample(scale_factor=2), nn.Conv2d(24, 3, 3, padding=1), nn.Tanh())
    net = nn.Sequential(nn.Linear(size, size), nn.Unflatten(1, (32, 4, size // 128)), *layers, *last)
    gan_fast.accelerate(net)
    return net


def on_lines() -> nn.Module:
    net = nn.Sequential(nn.ConvTranspose1d(32, 16, 25, 4, 11), nn.ReLU(), nn.Conv1d(16, 8, 9), nn.BatchNorm1d(8))
    gan_fast.accelerate(net)
    return net


#: What builds a network, and the shape of its input.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dcgan28 G": (lambda: model("dcgan28", 0), (32, 100)),
    "dcgan28 D": (lambda: model("dcgan28", 1), (32, 1, 28, 28)),
    "dcgan28 D, few": (lambda: model("dcgan28", 1), (3, 1, 28, 28)),
    "dcgan64 G": (lambda: model("dcgan64", 0, ngf=16), (16, 100, 1, 1)),
    "dcgan64 D": (lambda: model("dcgan64", 1, ndf=16), (16, 3, 64, 64)),
    "dcgan64 D, one": (lambda: model("dcgan64", 1, ndf=16), (1, 3, 64, 64)),
    "keras_mnist G": (lambda: model("keras_mnist", 0, ngf=32), (16, 100)),
    "keras_mnist D": (lambda: model("keras_mnist", 1, ndf=32), (16, 1, 28, 28)),
    "tanh": (lambda: few_channels(nn.Tanh()), (8, 48, 24, 24)),
    "gelu": (lambda: few_channels(nn.GELU()), (8, 48, 24, 24)),
    "relu, channels_last": (lambda: few_channels(nn.ReLU(), True), (8, 48, 24, 24)),
    "images, relu": (lambda: from_images(nn.ReLU()), (32, 3, 32, 32)),
    "images, silu": (lambda: from_images(nn.SiLU()), (32, 3, 32, 32)),
    "plain container": (lambda: nn.Sequential(*few_channels(nn.ReLU())), (8, 48, 24, 24)),
    "upsampling": (lambda: upsampling(512), (16, 512)),
    "upsampling, small": (lambda: upsampling(128), (1, 128)),
    "lines": (on_lines, (16, 32, 256)),
}
_CONV = ("conv", "conv_transpose", "conv_weight_grad")
_CONV_TRANSPOSE = ("conv_transpose", "conv", "conv_weight_grad")


def told(rows: list[Any]) -> Counter[str]:
    """The operators that our kernels serve in a training step on images that need no gradient."""
    found: list[str] = []
    for index, row in enumerate(rows):
        if row.layer.startswith("BatchNorm"):
            passes = [("batch_norm_act", row.forward), ("batch_norm_act_backward", row.input_grad)]
        else:
            ops = _CONV_TRANSPOSE if "Transpose" in row.layer or "+" in row.layer else _CONV
            passes = list(zip(ops, (row.forward, row.input_grad, row.weight_grad), strict=True))
            passes = passes if index else [passes[0], passes[2]]
        found += [op for op, choice in passes if choice.backend not in ("torch", "reference")]
    return Counter(found)


def served(net: nn.Module, shape: tuple[int, ...]) -> Counter[str]:
    """Those that they really serve."""
    found: list[str] = []

    def note(operator: Operator, _: list[Any], choice: Choice) -> None:
        if choice.backend not in ("torch", "reference") and operator.name.startswith(("conv", "batch_norm")):
            found.append(operator.name)

    with recording(note):
        net(torch.randn(shape)).float().square().mean().backward()
    return Counter(found)


@pytest.mark.parametrize("word", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_answer_is_what_serves(name: str, word: str) -> None:
    kernels()
    make, shape = NETWORKS[name]
    net = make()
    with gan_fast.precision(word):
        assert told(gan_fast.explain(net, shape)) == served(net, shape)


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_by_name(name: str) -> None:
    kernels()
    make, shape = NETWORKS["upsampling, small"]
    net = make()
    with gan_fast.use_backend(name):
        rows = gan_fast.explain(net, shape)
        assert told(rows) == served(net, shape)
    assert {row.forward.backend for row in rows} == {name}


def test_a_network_is_neither_changed_nor_run() -> None:
    """Not its statistics, not its random numbers; 2 TB of images take no time."""
    kernels()
    net = model("dcgan64", 1)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    begun = time.perf_counter()
    rows = gan_fast.explain(net, (1 << 25, 3, 64, 64))
    assert time.perf_counter() - begun < 60
    assert any(row.forward.backend == "cpu" for row in rows)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(torch.get_rng_state(), state)
    assert not any("_call_impl" in vars(layer) for layer in net.modules())
    assert type(net(torch.zeros(1, 3, 64, 64))) is torch.Tensor


def test_without_a_shape_activations_and_formats_count_too() -> None:
    """What the table asks is what the layers would carry."""
    kernels()
    asked: list[dict[str, Any]] = []
    choose = gan_fast.backends.choose

    def noting(op: str, **facts: Any) -> Choice:
        asked.append({"op": op, **facts})
        return choose(op, **facts)

    net = Sequential(fast.Conv2d(8, 8, 3), nn.ReLU(), fast.Conv2d(8, 8, 3, activation="tanh"), fast.Conv2d(8, 8, 3))
    net[3].to(memory_format=torch.channels_last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan_fast.backends, "choose", noting)
        gan_fast.explain(net)
    forward = [facts for facts in asked if facts["op"] == "conv"]
    assert [facts["fused"] for facts in forward] == [True, True, False]
    assert [facts["weight_last"] for facts in forward] == [False, False, True]
    assert all(facts["mflop"] > 1e6 and facts["channels_last"] for facts in forward)
