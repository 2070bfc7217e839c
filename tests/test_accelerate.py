"""accelerate and restore: what is swapped, what is left and why, same results, and everything goes back."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from swap_networks import NETWORKS, agree, close, pair
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import gan_fast
from gan_fast import accelerate, restore
from gan_fast.accelerate import Report
from gan_fast.sequential import Sequential


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", NETWORKS)
def test_results_stay_the_same(name: str, training: bool) -> None:
    make, shape = NETWORKS[name]
    plain, fast = (network.train(training) for network in pair(make))
    report = accelerate(fast)
    assert report.swapped and not report.left
    agree(plain, fast, torch.randn(shape))


def test_modules_and_parameters_stay_the_same_objects() -> None:
    network = NETWORKS["up"][0]()
    before = {name: id(module) for name, module in network.named_modules()}
    parameters = {name: id(parameter) for name, parameter in network.named_parameters()}
    keys = list(network.state_dict())
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    accelerate(network)
    assert {name: id(module) for name, module in network.named_modules()} == before
    assert {name: id(parameter) for name, parameter in network.named_parameters()} == parameters
    assert list(network.state_dict()) == keys
    assert isinstance(network[4], nn.ConvTranspose2d) and isinstance(network[4], gan_fast.nn.ConvTranspose2d)
    old = network[4].weight.detach().clone()
    network(torch.randn(2, 20)).square().mean().backward()
    optimiser.step()
    assert not torch.equal(old, network[4].weight)


def test_report_tells_everything() -> None:
    class Mine(nn.Conv2d):
        """A subclass whose forward may be anything."""

    generator = nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Tanh())
    discriminator = nn.ModuleDict({"first": Mine(3, 4, 3), "late": nn.LazyConv2d(4, 3), "loss": nn.BCEWithLogitsLoss()})
    report = accelerate(generator, discriminator)
    assert isinstance(report, Report)
    assert [(s.name, s.old, s.new, s.activation) for s in report.swapped] == [
        ("0.0", "torch.nn.ConvTranspose2d", "gan_fast.nn.ConvTranspose2d", "ReLU"),
        ("0.2", "torch.nn.Conv2d", "gan_fast.nn.Conv2d", None),
        ("0.3", "torch.nn.BatchNorm2d", "gan_fast.nn.BatchNorm2d", "Tanh"),
        ("1.loss", "torch.nn.BCEWithLogitsLoss", "gan_fast.nn.BCEWithLogitsLoss", None),
    ]
    assert report.sequentials == ["0"]
    assert report.reasons.keys() == {"1.first", "1.late"}
    assert "subclass of torch.nn.Conv2d" in report.reasons["1.first"] and "lazy" in report.reasons["1.late"]
    text = str(report)
    assert text.splitlines()[0].startswith("accelerate: 4 swapped (2 with a fused activation), 2 left, 0 already")
    assert "torch.nn.ConvTranspose2d -> gan_fast.nn.ConvTranspose2d + ReLU" in text
    assert "1.first" in text and "Mine: a subclass" in text


def test_names_of_a_single_module_have_no_position() -> None:
    layer = nn.Conv2d(2, 2, 3)
    assert [swap.name for swap in accelerate(layer).swapped] == ["(itself)"]
    network = nn.ModuleDict({"body": nn.Sequential(nn.Conv1d(1, 1, 3), nn.Tanh())})
    report = accelerate(network)
    assert [(swap.name, swap.activation) for swap in report.swapped] == [("body.0", "Tanh")]


def test_second_call_does_nothing() -> None:
    network = NETWORKS["up"][0]()
    first = accelerate(network)
    kinds = [type(module) for module in network.modules()]
    second = accelerate(network)
    assert [type(module) for module in network.modules()] == kinds
    assert second.swapped == [] and second.sequentials == []
    assert second.already == [swap.name for swap in first.swapped]


def test_a_module_in_two_places_is_swapped_once() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    one, two = nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.Identity())
    plain = copy.deepcopy(nn.ModuleList([one, two]))
    report = accelerate(one, two)
    assert [swap.name for swap in report.swapped] == ["0.0"]
    x = torch.randn(2, 4, 8, 8)
    close(one(x), plain[0](x))
    close(two(x), plain[1](x))  # not activated here: the convolution itself knows nothing of the ReLU


NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "parametrized weight_norm": parametrizations.weight_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
    "hooked weight_norm": nn.utils.weight_norm,
    "hooked spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_normalised_layers_are_swapped_too(norm: str, training: bool) -> None:
    def make() -> nn.Module:
        return nn.Sequential(
            NORMS[norm](nn.Conv2d(3, 32, 4, 2, 1)), nn.LeakyReLU(0.2), NORMS[norm](nn.ConvTranspose2d(32, 8, 4, 2, 1))
        )

    plain, fast = pair(make)
    kinds = [type(module) for module in fast.modules()]
    keys = list(fast.state_dict())
    report = accelerate(fast)
    assert [swap.new for swap in report.swapped] == ["gan_fast.nn.Conv2d", "gan_fast.nn.ConvTranspose2d"]
    assert report.swapped[0].activation == "LeakyReLU"
    assert isinstance(fast[0], gan_fast.nn.Conv2d) and list(fast.state_dict()) == keys
    plain.train(training)
    fast.train(training)
    x = torch.randn(4, 3, 24, 24)
    agree(plain, fast, x)
    agree(plain, fast, x)  # power iterations must have advanced equally often
    twin = copy.deepcopy(fast) if norm.startswith("parametrized") else None  # PyTorch copies no hooked ones
    assert restore(fast) == 3
    assert twin is None or isinstance(twin[0], gan_fast.nn.Conv2d)  # the copy was not restored along
    for module, kind in zip(fast.modules(), kinds, strict=True):
        assert type(module).__name__ == kind.__name__ and type(module).__bases__ == kind.__bases__
    agree(plain, fast, x)


def test_parametrization_can_be_removed_while_swapped() -> None:
    layer = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    accelerate(layer)
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is gan_fast.nn.Conv2d
    restore(layer)
    assert type(layer) is nn.Conv2d


def test_parametrization_can_be_added_while_swapped() -> None:
    layer = nn.Conv2d(3, 4, 3)
    accelerate(layer)
    parametrizations.weight_norm(layer)
    assert isinstance(layer, gan_fast.nn.Conv2d) and accelerate(layer).already == ["(itself)"]
    restore(layer)
    assert not isinstance(layer, gan_fast.nn.Conv2d) and isinstance(layer, nn.Conv2d)
    layer(torch.randn(1, 3, 5, 5))


@pytest.mark.parametrize("name", NETWORKS)
def test_restore_gives_back_classes_and_attributes(name: str) -> None:
    network = NETWORKS[name][0]()
    before = [(type(module), dict(module.__dict__)) for module in network.modules()]
    accelerate(network)
    changed = restore(network)
    after = [(type(module), dict(module.__dict__)) for module in network.modules()]
    assert changed == sum(
        isinstance(m, (nn.modules.conv._ConvNd, nn.Linear, nn.BatchNorm2d, nn.Sequential)) for m in network.modules()
    )
    for (old_type, old), (new_type, new) in zip(before, after, strict=True):
        assert old_type is new_type and old.keys() == new.keys()
        assert all(old[key] is new[key] for key in old)
    assert restore(network) == 0


def test_restore_leaves_layers_that_were_built_as_ours() -> None:
    network = nn.Sequential(gan_fast.nn.Conv2d(2, 2, 3, activation="tanh"), nn.Conv2d(2, 2, 3))
    report = accelerate(network)
    assert report.already == ["0"]
    restore(network)
    assert type(network[0]) is gan_fast.nn.Conv2d and type(network[1]) is nn.Conv2d and type(network) is nn.Sequential


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "torch.save"])
def test_swapped_networks_can_be_copied(way: str) -> None:
    network = NETWORKS["up"][0]()
    accelerate(network)
    if way == "pickle":
        twin = pickle.loads(pickle.dumps(network))
    elif way == "deepcopy":
        twin = copy.deepcopy(network)
    else:
        buffer = io.BytesIO()
        torch.save(network, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert [type(module) for module in twin.modules()] == [type(module) for module in network.modules()]
    agree(network, twin, torch.randn(2, 20))
    assert restore(twin) > 0
    assert type(twin) is nn.Sequential and type(network) is Sequential


def test_state_dict_goes_both_ways() -> None:
    plain, fast = pair(NETWORKS["up"][0])
    accelerate(fast)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    fast.load_state_dict(plain.state_dict())
    plain.load_state_dict(fast.state_dict())
    agree(plain, fast, torch.randn(2, 20))


def test_batch_norms_are_swapped_with_their_activation() -> None:
    plain, fast = pair(
        lambda: nn.Sequential(
            nn.Conv2d(3, 48, 4, 2, 1, bias=False),
            nn.BatchNorm2d(48),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Flatten(),
            nn.Linear(48 * 144, 64, bias=False),
            nn.BatchNorm1d(64),
            nn.Tanh(),
        )
    )
    report = accelerate(fast)
    swapped = [(swap.name, swap.activation) for swap in report.swapped]
    assert swapped == [("0", None), ("1", "LeakyReLU"), ("4", None), ("5", "Tanh")]
    for module in (plain, fast):
        for index in (0, 1):  # two steps: running statistics are part of it
            x = torch.randn(16, 3, 24, 24, generator=torch.Generator().manual_seed(index))
            module(x)
    agree(plain, fast, x)
    agree(plain.eval(), fast.eval(), x)
    restore(fast)
    assert type(fast[1]) is nn.BatchNorm2d and type(fast[5]) is nn.BatchNorm1d


def test_other_normalisations_stay() -> None:
    network = nn.Sequential(nn.SyncBatchNorm(4), nn.BatchNorm3d(4), nn.InstanceNorm2d(4), nn.LazyBatchNorm2d())
    report = accelerate(network)
    assert not report.swapped


def test_the_loss_module_is_swapped() -> None:
    weight = torch.tensor([2.0])
    criterion = nn.BCEWithLogitsLoss(pos_weight=weight, reduction="sum")
    logits, target = torch.randn(5, 1), torch.rand(5, 1)
    expected = criterion(logits, target)
    assert accelerate(criterion).swapped[0].new == "gan_fast.nn.BCEWithLogitsLoss"
    close(criterion(logits, target), expected)
    restore(criterion)
    assert type(criterion) is nn.BCEWithLogitsLoss


def test_compiles_without_graph_break() -> None:
    plain, fast = pair(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.2), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    )
    accelerate(fast)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 12, 12)
    close(compiled(x), plain(x))


def test_functional_transforms() -> None:
    plain, fast = pair(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3)))
    accelerate(fast)
    x = torch.randn(5, 2, 3, 12, 12)

    def gradients(network: nn.Module) -> dict[str, Tensor]:
        parameters = {key: value.detach() for key, value in network.named_parameters()}

        def loss(values: dict[str, Tensor], images: Tensor) -> Tensor:
            return torch.func.functional_call(network, values, (images,)).square().mean()

        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)

    expected, got = gradients(plain), gradients(fast)
    for key in expected:
        close(got[key], expected[key], key)


def test_gradient_penalty() -> None:
    """Second order through the swapped network, as WGAN-GP and R1 need it."""
    plain, fast = pair(
        lambda: nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), nn.Tanh(), nn.Conv2d(32, 32, 4, 2, 1), nn.Sigmoid())
    )
    accelerate(fast)
    grads = []
    for network in (plain, fast):
        torch.manual_seed(2)
        x = torch.randn(4, 3, 32, 32, requires_grad=True)
        (slope,) = torch.autograd.grad(network(x).square().sum(), x, create_graph=True)
        ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean().backward()
        grads.append([parameter.grad for parameter in network.parameters()])
    for theirs, ours in zip(*grads, strict=True):
        close(ours, theirs)


def test_autocast() -> None:
    plain, fast = pair(NETWORKS["up"][0])
    accelerate(fast)
    z = torch.randn(4, 20)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = fast(z), plain(z)
    assert ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_go_to_pytorch(dtype: torch.dtype) -> None:
    plain, fast = (network.to(dtype).eval() for network in pair(NETWORKS["down"][0]))
    accelerate(fast)
    x = torch.randn(2, 3, 32, 32, dtype=dtype)
    ours, theirs = fast(x), plain(x)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs)


def test_replaced_forward_is_left() -> None:
    layer = nn.Conv2d(2, 2, 3)
    layer.forward = lambda x: x  # type: ignore[method-assign]  # what some libraries do to modules
    report = accelerate(layer)
    assert not report.swapped and "forward was replaced" in report.reasons["(itself)"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_scripted_modules_are_left() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(2, 2, 3)))
    report = accelerate(scripted)
    assert not report.swapped and "torch.jit" in report.reasons["0"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_scripting_after_accelerate_says_what_to_do() -> None:
    for make in (lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.ReLU()), nn.BCEWithLogitsLoss):
        network = make()
        accelerate(network)
        with pytest.raises(RuntimeError, match=r"cannot compile gan_fast\.nn\.\w+\. Call gan_fast\.restore\(model\)"):
            torch.jit.script(network)
        assert gan_fast.restore(network), "the failed attempt has left the swapped layers in place"
        torch.jit.script(network)


@pytest.mark.parametrize("call", [accelerate, restore])
def test_only_modules_are_taken(call: Callable[..., object]) -> None:
    good = nn.Conv2d(1, 1, 1)
    with pytest.raises(TypeError, match=r"modules\[1\]: got Parameter, expected a torch\.nn\.Module"):
        call(good, good.weight)
    assert type(good) is nn.Conv2d  # nothing was touched
