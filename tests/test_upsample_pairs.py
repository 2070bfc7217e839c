"""Upsample and a convolution in accelerated networks: computed as one in a Sequential, hooks obeyed, all reported."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from native import kernels
from stand_in_device import StandIn
from swap_networks import agree, close, pair
from tiny_gan import assert_same_state
from torch import Tensor, nn

import gan_fast
from gan_fast import accelerate, explain, restore, use_backend
from gan_fast.ops import upsample_conv
from gan_fast.sequential import Sequential
from gan_fast.suite import peers
from gan_fast.training import Trainer, cuda, step_graph


def blocks() -> nn.Sequential:
    """Large enough to be collapsed; the second pair has no activation after it, as PyTorch-GAN's."""
    return nn.Sequential(
        nn.BatchNorm2d(32), nn.Upsample(scale_factor=2), nn.Conv2d(32, 64, 3, padding=1), nn.LeakyReLU(0.2),
        nn.UpsamplingNearest2d(scale_factor=2), nn.Conv2d(64, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32, 0.8),
        nn.Conv2d(32, 3, 3, padding=1), nn.Tanh(),
    )  # fmt: skip


X = (16, 32, 8, 8)


@pytest.fixture
def upsampled(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The upsampling modules that have run."""
    ran: list[nn.Module] = []
    plain = nn.Upsample.forward

    def forward(self: nn.Upsample, x: Tensor) -> Tensor:
        ran.append(self)
        return plain(self, x)

    monkeypatch.setattr(nn.Upsample, "forward", forward)
    return ran


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
def test_the_pair_is_computed_as_one(
    backend: str, layout: torch.memory_format, training: bool, upsampled: list[nn.Module]
) -> None:
    if backend == "cpu":
        kernels()
    plain, fast = (network.train(training) for network in pair(blocks))
    report = accelerate(fast)
    assert [(s.name, s.upsampling, s.activation) for s in report.swapped if "Conv" in s.new] == [
        ("2", "Upsample", "LeakyReLU"),
        ("5", "UpsamplingNearest2d", None),
        ("7", None, "Tanh"),
    ]
    assert "torch.nn.Conv2d -> Upsample + gan_fast.nn.Conv2d + LeakyReLU" in str(report) and not report.left
    with gan_fast.use_backend(backend):
        agree(plain, fast, torch.randn(X).contiguous(memory_format=layout))
    assert upsampled == [plain[1], plain[4]]  # PyTorch's own; none of the swapped network's


def test_state_dict_and_restore() -> None:
    plain, fast = pair(blocks)
    accelerate(fast)
    assert list(fast.state_dict()) == list(plain.state_dict())
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    fast.load_state_dict(plain.state_dict())
    agree(plain, fast, torch.randn(X))
    restore(fast)
    assert [type(module) for module in fast.modules()] == [type(module) for module in plain.modules()]


def test_children_called_one_by_one_do_their_own_part() -> None:
    plain, fast = pair(blocks)
    accelerate(fast)
    x = y = torch.randn(X)
    for ours, theirs in zip(fast, plain, strict=True):
        x, y = ours(x), theirs(y)
        close(x, y)
    close(fast[:2](torch.ones(X)), plain[:2](torch.ones(X)))


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("target", [1, 2], ids=["upsampling", "convolution"])
def test_hooks_see_what_they_saw(kind: str, target: int, upsampled: list[nn.Module]) -> None:
    plain, fast = pair(blocks)
    assert not accelerate(fast).left
    seen: dict[str, list[Tensor]] = {"plain": [], "fast": []}
    for name, network in (("plain", plain), ("fast", fast)):

        def see(module: nn.Module, *values: Any, seen: list[Tensor] = seen[name]) -> None:
            flat = itertools.chain.from_iterable(v if isinstance(v, tuple) else (v,) for v in values)
            seen.extend(v for v in flat if v is not None)

        getattr(network[target], f"register_{kind}_hook")(see)
    agree(plain, fast, torch.randn(X))
    assert fast[1] in upsampled and fast[4] not in upsampled
    assert len(seen["plain"]) == len(seen["fast"]) > 0
    for ours, theirs in zip(seen["fast"], seen["plain"], strict=True):
        close(ours, theirs)


def test_normalised_convolutions() -> None:
    """Spectral norm computes its weight in a hook of the call, which therefore has to take place."""
    for norm in (
        nn.utils.spectral_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.weight_norm,
    ):
        plain, fast = pair(
            lambda norm=norm: nn.Sequential(nn.Upsample(scale_factor=2), norm(nn.Conv2d(32, 64, 3, padding=1)))
        )
        assert accelerate(fast).swapped[0].upsampling == "Upsample"
        agree(plain, fast, torch.randn(X))
        agree(plain, fast, torch.randn(X))


def left_alone() -> list[tuple[str, nn.Module]]:
    """What is not left to the convolution, and a word of the reason."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Upsample(scale_factor=2)
            self.conv = nn.Conv2d(32, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.up(x))

    up = nn.Upsample(scale_factor=2)
    hooked = nn.Upsample(scale_factor=2)
    hooked.register_forward_hook(lambda module, args, output: None)
    return [
        ("Block is no Sequential", Block()),
        ("a stride", nn.Sequential(up, nn.Conv2d(32, 8, 3, stride=2))),
        ("a padding_mode", nn.Sequential(up, nn.Conv2d(32, 8, 3, padding=1, padding_mode="reflect"))),
        ("groups", nn.Sequential(up, nn.Conv2d(32, 8, 3, groups=2))),
        ("a dilation", nn.Sequential(up, nn.Conv2d(32, 8, 3, dilation=2))),
        ("its factor is not whole", nn.Sequential(nn.Upsample(scale_factor=1.5), nn.Conv2d(32, 8, 3))),
        ("its factor is not whole", nn.Sequential(nn.Upsample(scale_factor=(2.0, 2.5)), nn.Conv2d(32, 8, 3))),
        ("size=16", nn.Sequential(nn.Upsample(size=16), nn.Conv2d(32, 8, 3))),
        ("hook", nn.Sequential(hooked, nn.Conv2d(32, 8, 3))),
    ]


@pytest.mark.parametrize("index", range(len(left_alone())), ids=[why for why, _ in left_alone()])
def test_what_is_left_is_reported(index: int, upsampled: list[nn.Module]) -> None:
    plain, fast = pair(lambda: left_alone()[index][1])
    report = accelerate(fast)
    (entry,) = report.left
    assert entry.kind == "Upsample" and left_alone()[index][0] in entry.reason
    assert report.swapped[0].upsampling is None and entry.reason in str(report)
    agree(plain, fast, torch.randn(X))
    assert any(module in upsampled for module in fast.modules())


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(32, 8, 3)),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(32, 8, 3)),
        nn.Sequential(nn.Upsample(scale_factor=2), gan_fast.nn.KerasConv2d(32, 8, 3)),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.ConvTranspose2d(32, 8, 3)),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(32, 8, 3), nn.Upsample(scale_factor=2)),
    ],
    ids=["bilinear", "pad between", "Keras", "transposed", "upsampling last"],
)
def test_other_neighbours_run_as_ever(network: nn.Module) -> None:
    x = torch.randn(X)
    expected = network(x)
    accelerate(network)
    close(network(x), expected)
    restore(network)


def test_a_single_sample_is_no_batch() -> None:
    """To Upsample a (C, H, W) is a batch of lines, to Conv2d it is one image."""
    plain, fast = pair(lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(32, 16, 3)))
    accelerate(fast)
    agree(plain, fast, torch.randn(32, 64, 64))


def test_sounds() -> None:
    plain, fast = pair(lambda: nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv1d(32, 32, 25, padding=12), nn.ReLU()))
    assert accelerate(fast).swapped[0].upsampling == "Upsample"
    agree(plain, fast, torch.randn(8, 32, 200))


def test_compiles_without_graph_break() -> None:
    plain, fast = pair(blocks)
    accelerate(fast)
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="eager")
    close(compiled(torch.ones(X)), plain(torch.ones(X)))


def test_global_hooks_see_every_module(upsampled: list[nn.Module]) -> None:
    fast = blocks()
    accelerate(fast)
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        fast(torch.randn(X))
    finally:
        handle.remove()
    assert set(fast.modules()) == set(seen) and len(upsampled) == 2


def test_explain_knows_the_pair() -> None:
    kernels()
    network = blocks()
    accelerate(network)
    assert type(network) is Sequential
    rows = {row.name: row for row in explain(network, (64, *X[1:]))}
    assert rows["2"].layer == "Upsample + Conv2d" and rows["5"].layer == "UpsamplingNearest2d + Conv2d"
    assert rows["7"].layer == "Conv2d"
    assert "collapsed into one transposed convolution: the fused CPU kernel" in rows["5"].forward.reason
    assert rows["5"].forward.backend == "cpu"

    def convolutions(*shape: int) -> list[str]:
        return [row.layer for row in explain(network, shape or None) if "Conv" in row.layer]

    assert convolutions(1, *X[1:])[0] == "Conv2d"  # too small to be worth it
    assert convolutions()[:2] == ["Upsample + Conv2d", "UpsamplingNearest2d + Conv2d"]
    restore(network)
    assert convolutions() == ["Conv2d"] * 3


def test_a_recorded_step_collapses_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch-GAN's DCGAN as one graph: what the pairs' weights are multiplied by is there before the recording."""
    kernels()
    device = StandIn()
    monkeypatch.setattr(cuda, "device_for", lambda _: device)
    monkeypatch.setattr(upsample_conv, "_matrices", {})
    collapsed = []
    collapse = upsample_conv.collapse

    def noting(weight: Tensor, factors: tuple[int, ...]) -> Tensor:
        collapsed.append(factors)
        return collapse(weight, factors)

    monkeypatch.setattr(upsample_conv, "collapse", noting)
    batches = [torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(n)) * 2 - 1 for n in range(4)]
    found = []
    with use_backend("cpu"):
        for cuda_graph in (True, False):
            torch.manual_seed(0)
            networks = peers.pytorch_gan_dcgan(5, size=16, width=8)
            accelerate(*networks)
            trainer = Trainer(
                *networks, latent_dim=5, batch_size=4, outdir=None, device="cpu", progress=False, cuda_graph=cuda_graph
            )
            torch.manual_seed(5)  # dropout
            collapsed.clear()
            told = [trainer.train_step(batch) for batch in batches]
            times = step_graph._REHEARSALS + 1 if cuda_graph else len(batches)
            assert collapsed == [(2, 2), (2, 2)] * times
            found.append([dict(network.state_dict()) for network in networks])
            found[-1].append({"losses": torch.stack([value for m in told for value in (m.d_loss, m.g_loss)])})
    assert (device.recordings, device.replays) == (1, 4)
    assert_same_state(*found)
