"""gan_fast.sequential: fused activations, memory formats between layers, hooks; results as torch.nn.Sequential's."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from swap_networks import NETWORKS, agree, close, pair
from torch import Tensor, nn

import gan_fast
from gan_fast import accelerate, backends, choice_table
from gan_fast.choice_table import Choice
from gan_fast.sequential import Sequential, fused_activation

CL = torch.channels_last
WITH_KERNELS = pytest.mark.skipif(
    backends.extension() is None, reason="without the compiled module images stay as they come"
)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("what", ["input", "weights", "both"])
@pytest.mark.parametrize("name", ["down", "nested", "reflect"])
def test_output_format_is_the_one_that_pytorch_gives(name: str, what: str, backend: str) -> None:
    """NCHW networks hand NCHW on, channels_last ones channels_last: results can be viewed as before."""
    make, shape = NETWORKS[name]
    plain, fast = pair(make)
    x = torch.randn(shape)
    if what in ("input", "both"):
        x = x.to(memory_format=CL)
    if what in ("weights", "both"):
        plain, fast = plain.to(memory_format=CL), fast.to(memory_format=CL)
    accelerate(fast)
    with gan_fast.use_backend(backend):
        agree(plain, fast, x)


def accelerated(network: nn.Sequential) -> nn.Sequential:
    accelerate(network)
    return network


def test_images_stay_in_channels_last_between_known_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    if backends.extension() is None:
        pytest.skip("without the compiled module images stay as they come")
    network = NETWORKS["nested"][0]()
    accelerate(network)
    seen: dict[int, tuple[int, ...]] = {}

    def watch(name: str) -> None:
        plain = getattr(gan_fast.nn.Conv2d, name)

        def spy(x: torch.Tensor, weight: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
            seen[id(weight)] = x.stride()
            return plain(x, weight, *args, **options)

        monkeypatch.setattr(gan_fast.nn.Conv2d, name, staticmethod(spy))

    watch("_function")
    watch("_after_upsampling")
    small = accelerated(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.ConvTranspose2d(8, 4, 3), nn.Conv2d(4, 4, 3)))
    small(torch.randn(2, 3, 8, 8))  # PyTorch serves every pass: nobody gains by a copy
    assert seen[id(small[0].weight)][1] == 64 and seen[id(small[3].weight)][1] == 64
    x = torch.randn(2, 3, 24, 24)
    with choice_table.always(Choice("cpu", "a test")):
        network(x)
    # A convolution in two nested containers, and the last one, which takes the image before its upsampling.
    for key, stride in (("1.2.0", (32 * 144, 1, 12 * 32, 32)), ("3", (16 * 144, 1, 12 * 16, 16))):
        assert seen[id(network.get_submodule(key).weight)] == stride


def test_a_hook_on_a_convolution_sees_plain_strides() -> None:
    """Feature-matching losses flatten what a hook sees with view()."""
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1), nn.Tanh())
    accelerate(network)
    features: list[torch.Tensor] = []
    network[2].register_forward_hook(lambda module, args, output: features.append(output.view(len(output), -1)))
    network(torch.randn(2, 3, 12, 12))
    assert [feature.shape for feature in features] == [(2, 8 * 144)]


def test_a_replaced_forward_is_obeyed() -> None:
    for key in ("0", "1"):
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh())
        accelerate(network)
        network.get_submodule(key).forward = lambda x: 3 * x
        x = torch.randn(2, 3, 8, 8)
        expected = torch.tanh(3 * x) if key == "0" else 3 * torch.nn.functional.conv2d(x, *network[0].parameters())
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_one_channel_and_one_pixel_keep_plain_strides() -> None:
    """Both formats are contiguous for such sizes; a later layer goes by the strides and would answer in
    channels_last."""
    generator = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1))
    squeeze = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 32))
    for network in (generator, squeeze):
        plain = copy.deepcopy(network)
        accelerate(network)
        x = torch.randn(8, 16, 32, 32)
        assert network(x).stride() == plain(x).stride()
    follower = nn.Conv2d(1, 4, 3)
    follower(generator(torch.randn(8, 16, 32, 32))).view(8, -1)


def test_users_view_of_the_output_goes_on_working() -> None:
    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 32, 4, 2, 1))
            self.score = nn.Linear(32 * 64, 1)

        def forward(self, x: Tensor) -> Tensor:
            features = self.features(x)
            return self.score(features.view(features.shape[0], -1))

    plain, fast = pair(Critic)
    accelerate(fast)
    agree(plain, fast, torch.randn(8, 3, 32, 32))


def test_dropout_draws_the_same_mask() -> None:
    """Dropout fills its mask in memory order, so it must not see another format than it would have."""
    plain, fast = pair(
        lambda: nn.Sequential(nn.Conv2d(3, 32, 3), nn.Dropout(0.5), nn.Conv2d(32, 32, 3), nn.Dropout2d(0.5))
    )
    accelerate(fast)
    x = torch.randn(4, 3, 24, 24)
    torch.manual_seed(1)
    expected = plain(x)
    torch.manual_seed(1)
    close(fast(x), expected)


def test_one_activation_after_several_layers() -> None:
    act = nn.Tanh()
    plain, fast = pair(
        lambda: nn.Sequential(nn.Conv2d(3, 32, 3), act, nn.Conv2d(32, 32, 3, bias=False), nn.BatchNorm2d(32), act)
    )
    accelerate(fast)
    assert fast[1] is fast[4]
    agree(plain, fast, torch.randn(4, 3, 20, 20))
    close(fast[1](torch.ones(2)), torch.ones(2).tanh())


def test_children_called_one_by_one_give_every_intermediate_result() -> None:
    """Feature matching walks over the layers; each must still do its own part and no more."""
    plain, fast = pair(NETWORKS["down"][0])
    accelerate(fast)
    x = y = torch.randn(4, 3, 32, 32)
    for ours, theirs in zip(fast, plain, strict=True):
        x, y = ours(x), theirs(y)
        close(x, y)
        assert x.stride() == y.stride()
    part = fast[:3]
    close(part(torch.ones(1, 3, 32, 32)), plain[:3](torch.ones(1, 3, 32, 32)))


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.LeakyReLU(0.3), nn.LeakyReLU(0.2, inplace=True), nn.Tanh(), nn.Sigmoid()], ids=repr
)
@pytest.mark.parametrize("layer", ["conv", "conv_transpose"])
def test_activation_is_computed_by_the_layer(
    layer: str, activation: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    convolution = nn.Conv2d(16, 32, 5, 2, 2) if layer == "conv" else nn.ConvTranspose2d(16, 32, 5, 2, 2)
    plain, fast = pair(lambda: nn.Sequential(copy.deepcopy(convolution), copy.deepcopy(activation)))
    report = accelerate(fast)
    assert report.swapped[0].activation == type(activation).__name__
    calls = []
    monkeypatch.setattr(type(fast[1]), "forward", lambda self, x: calls.append(x))
    fast(torch.randn(2, 16, 16, 16))
    assert not calls
    monkeypatch.undo()
    agree(plain, fast, torch.randn(4, 16, 16, 16))


@pytest.mark.parametrize(
    "follower",
    [nn.LeakyReLU(0.0), nn.LeakyReLU(-0.5), nn.ELU(), nn.PReLU(), nn.Softplus(), nn.Identity(), nn.Hardtanh()],
    ids=repr,
)
def test_other_activations_run_by_themselves(follower: nn.Module) -> None:
    plain, fast = pair(lambda: nn.Sequential(nn.Conv2d(16, 32, 5), copy.deepcopy(follower)))
    assert accelerate(fast).swapped[0].activation is None
    agree(plain, fast, torch.randn(4, 16, 12, 12))


HOOKS: dict[str, Callable[[nn.Module, Callable[..., None]], Any]] = {
    "forward": lambda module, see: module.register_forward_hook(see),
    "forward_pre": lambda module, see: module.register_forward_pre_hook(see),
    "full_backward": lambda module, see: module.register_full_backward_hook(see),
    "full_backward_pre": lambda module, see: module.register_full_backward_pre_hook(see),
}


@pytest.mark.parametrize("target", [0, 1, 3, 4], ids=["convolution", "activation", "batch_norm", "its_activation"])
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_see_what_they_saw(kind: str, target: int, when: str) -> None:
    """Also hooks that are registered after the swap: the container looks at them on every call."""
    plain, fast = pair(
        lambda: nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.Tanh(), nn.Conv2d(32, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Sigmoid()
        )
    )
    seen: dict[str, list[Tensor]] = {"plain": [], "fast": []}

    def watch(network: nn.Module, name: str) -> None:
        def see(module: nn.Module, *values: Any) -> None:
            seen[name] += [
                v for value in values for v in (value if isinstance(value, tuple) else (value,)) if v is not None
            ]

        HOOKS[kind](network[target], see)

    watch(plain, "plain")
    if when == "before":
        watch(fast, "fast")
    accelerate(fast)
    if when == "after":
        watch(fast, "fast")
    agree(plain, fast, torch.randn(4, 3, 16, 16))
    assert len(seen["plain"]) == len(seen["fast"]) > 0
    for ours, theirs in zip(seen["fast"], seen["plain"], strict=True):
        close(ours, theirs)


def test_global_hooks_see_every_module() -> None:
    plain, fast = pair(lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh()), nn.Conv2d(8, 8, 3)))
    accelerate(fast)
    seen: list[Tensor] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(output))
    try:
        x = torch.randn(2, 3, 8, 8)
        plain(x)
        fast(x)
    finally:
        handle.remove()
    assert len(seen) == 10
    for theirs, ours in zip(seen[:5], seen[5:], strict=True):
        close(ours, theirs)


def test_layers_with_an_activation_of_their_own_keep_it() -> None:
    layer = gan_fast.nn.Conv2d(4, 4, 3, activation="tanh")
    assert fused_activation(layer, nn.ReLU()) is None
    network = Sequential(layer, nn.ReLU())
    x = torch.randn(1, 4, 6, 6)
    expected = torch.relu(torch.tanh(nn.functional.conv2d(x, layer.weight, layer.bias)))
    close(network(x), expected)


def test_tuples_and_non_tensors_pass_through_the_container() -> None:
    class Split(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, -x

    class Join(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return torch.cat(pair, 1)

    plain, fast = pair(lambda: nn.Sequential(nn.Conv2d(3, 32, 3), Split(), Join(), nn.Conv2d(64, 4, 3)))
    accelerate(fast)
    agree(plain, fast, torch.randn(4, 3, 16, 16))


def test_changed_children_are_honoured() -> None:
    """Users replace layers after the fact; the container plans nothing ahead."""
    plain, fast = pair(lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU()))
    accelerate(fast)
    for network in (plain, fast):
        network[1] = nn.Tanh()
        torch.manual_seed(1)
        network.append(nn.Conv2d(16, 4, 3))
    agree(plain, fast, torch.randn(4, 3, 16, 16))


def test_every_combination_of_neighbours() -> None:
    """Short random chains of format-minding and format-free layers, all orders: strides and values as PyTorch's."""
    pool: list[Callable[[], nn.Module]] = [
        lambda: nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU,
        lambda: nn.BatchNorm2d(8),
        lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.Tanh()),
        lambda: nn.AvgPool2d(3, 1, 1),
        lambda: nn.InstanceNorm2d(8),
    ]
    for choice in itertools.product(range(len(pool)), repeat=3):
        plain, fast = pair(lambda choice=choice: nn.Sequential(*(pool[index]() for index in choice)))
        accelerate(fast)
        x = torch.randn(2, 8, 6, 6)
        with torch.no_grad():
            theirs, ours = plain(x), fast(x)
        close(ours, theirs, str(choice))
        assert ours.stride() == theirs.stride(), choice


def scorer(features: int = 1, start: int = 1) -> nn.Sequential:
    last = nn.Linear(60 if start == 2 else 32 * 60, features)
    return nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(start), last, nn.Sigmoid())


def rows_seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    seen: list[Tensor] = []
    plain = gan_fast.functional.linear
    monkeypatch.setattr(
        gan_fast.functional, "linear", lambda x, *args, **options: seen.append(x) or plain(x, *args, **options)
    )
    return seen


@WITH_KERNELS
@pytest.mark.parametrize("name", ["few features", "as many as rows", "hooked", "hooked flatten", "flatten of a part"])
def test_flattened_images_are_rows_as_they_lie(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the weights are the smaller of the two and nothing looks on."""
    features = 8 if name == "as many as rows" else 3
    plain, fast = pair(lambda: scorer(features, 2 if name == "flatten of a part" else 1))
    accelerate(fast)
    looked: list[Tensor] = []
    if name.startswith("hooked"):
        at = 3 if name == "hooked" else 2
        for network in (plain, fast):
            network[at].register_forward_hook(lambda module, args, output: looked.append(args[0]))
    seen = rows_seen(monkeypatch)
    x = torch.randn(8, 3, 12, 20)
    with choice_table.always(Choice("cpu", "a test")):
        agree(plain, fast, x)
    if looked:
        close(looked[1], looked[0])
    if name == "few features":
        image = fast[0](x, then=("leaky_relu", 0.2)).permute(0, 2, 3, 1).flatten(1)
        close(seen[0], image)  # (H, W, C)
    elif name in ("as many as rows", "hooked flatten"):
        close(seen[0], plain[:3](x))


@pytest.mark.parametrize("ends", ["flat", "nested", "alone"])
def test_a_flatten_may_come_last(ends: str) -> None:
    def make() -> nn.Module:
        down = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Flatten())
        return {
            "flat": down,
            "nested": nn.Sequential(down, nn.Linear(32 * 60, 1)),
            "alone": nn.Sequential(nn.Flatten()),
        }[ends]

    plain, fast = pair(make)
    accelerate(fast)
    with choice_table.always(Choice("cpu", "a test")):
        agree(plain, fast, torch.randn(8, 3, 12, 20))


def test_the_caller_s_own_image_may_change_after_it_was_flattened() -> None:
    """PyTorch's Flatten copies what lies in channels_last: a view would be found changed by the backward pass."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 40, 1))
    accelerate(network)
    x = torch.randn(8, 3, 5, 8).to(memory_format=CL)
    expected = x.flatten(1).sum(0)
    score = network(x).sum()
    x.zero_()
    score.backward()
    close(network[1].weight.grad[0], expected)


@WITH_KERNELS
@pytest.mark.parametrize(
    "norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm]
)
def test_flattened_images_meet_weights_that_are_computed(norm: Callable[[nn.Module], nn.Module]) -> None:
    def make() -> nn.Module:
        network = scorer(2)
        norm(network[3])
        return network

    plain, fast = pair(make)
    accelerate(fast)
    with choice_table.always(Choice("cpu", "a test")):
        agree(plain, fast, torch.randn(8, 3, 12, 20))


@WITH_KERNELS
def test_flattened_images_in_bfloat16_and_none_at_all() -> None:
    plain, fast = pair(scorer)
    accelerate(fast)
    x = torch.randn(8, 3, 12, 20)
    results = []
    for network in (plain, fast):
        with torch.autocast("cpu", torch.bfloat16), choice_table.always(Choice("cpu", "a test")):
            score = network(x)
        score.float().sum().backward()
        results.append([score.float(), *(parameter.grad for parameter in network.parameters())])
    for theirs, ours in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 0.02 * theirs.norm() + 1e-6
    assert fast(x[:0]).shape == (0, 1)


@WITH_KERNELS
def test_flattened_images_have_gradients_of_second_order() -> None:
    plain, fast = pair(scorer)
    accelerate(fast)
    x = torch.randn(8, 3, 12, 20)
    penalties = []
    for network in (plain, fast):
        leaf = x.clone().requires_grad_()
        with choice_table.always(Choice("cpu", "a test")):
            (slope,) = torch.autograd.grad(network(leaf).sum(), leaf, create_graph=True)
            slope.square().sum().backward()
        penalties.append([parameter.grad for parameter in network.parameters()])
    for theirs, ours in zip(*penalties, strict=True):
        assert (theirs is None) == (ours is None)
        if theirs is not None:
            close(ours, theirs)
