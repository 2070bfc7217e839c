"""Networks for the tests of accelerate and Sequential, and the comparison of a swapped network with its plain twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


def networks() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    """Name, constructor and input shape; wide enough that the compiled kernels serve most of the convolutions.

    No bias before a batch norm: its gradient is zero, and rounding is all that two programs could compare.
    """
    yield (
        "up",
        lambda: nn.Sequential(
            nn.Linear(20, 32 * 7 * 7),
            nn.Unflatten(1, (32, 7, 7)),
            nn.BatchNorm2d(32),
            nn.ReLU(True),
            nn.ConvTranspose2d(32, 32, 5, 2, 2, output_padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.ConvTranspose2d(32, 24, 4, 2, 1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(True),
            nn.Conv2d(24, 1, 7, padding=3),
            nn.Tanh(),
        ),
        (4, 20),
    )
    yield (
        "down",
        lambda: nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 48, 3, 2, 1, bias=False),
            nn.BatchNorm2d(48),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(48 * 64, 1),
        ),
        (4, 3, 32, 32),
    )
    yield (
        "nested",
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            nn.Sequential(nn.Conv2d(32, 32, 3, 2, 1), nn.Tanh(), nn.Sequential(nn.Conv2d(32, 16, 3, padding=1))),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(16, 3, 3, padding=1),
        ),
        (3, 3, 24, 24),
    )
    yield (
        "sound",
        lambda: nn.Sequential(
            nn.Conv1d(4, 32, 25, 4, 11),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose1d(32, 16, 25, 4, 11, output_padding=1),
            nn.ReLU(),
            nn.Conv1d(16, 1, 7, padding=3),
            nn.Tanh(),
        ),
        (4, 4, 1024),
    )
    yield "volume", lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.ConvTranspose3d(4, 2, 3)), (2, 2, 6, 6, 6)
    yield (
        "reflect",
        lambda: nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, 32, 7),
            nn.ReLU(),
            nn.Conv2d(32, 3, 3, padding=1, padding_mode="reflect"),
            nn.Tanh(),
        ),
        (2, 3, 20, 20),
    )


NETWORKS = {name: (make, shape) for name, make, shape in networks()}


def pair(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    made = []
    for _ in range(2):  # not by deepcopy, which hooked weight norms refuse
        torch.manual_seed(0)
        made.append(make())
    return made[0], made[1]


def close(ours: Tensor, theirs: Tensor, what: str = "") -> None:
    scale = theirs.abs().max().item() if theirs.numel() else 0.0
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6 + 1e-4 * scale, msg=lambda text: f"{what}: {text}")


def agree(plain: nn.Module, fast: nn.Module, x: Tensor) -> Tensor:
    """Output with its strides, input gradient, parameter gradients and buffers of both; returns the fast output."""
    results = []
    for network in (plain, fast):
        source = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = network(source)
        weights = torch.linspace(-0.5, 1.5, y.numel()).view(y.shape)  # not of mean 0: sums must not cancel
        network.zero_grad()
        (y * weights).sum().backward()
        results.append((y, source.grad, dict(network.named_parameters()), dict(network.named_buffers())))
    (y0, x0, p0, b0), (y1, x1, p1, b1) = results
    close(y1, y0, "output")
    assert y1.stride() == y0.stride(), f"strides: {y1.stride()}, PyTorch gives {y0.stride()}"
    close(x1, x0, "input gradient")
    assert p0.keys() == p1.keys() and b0.keys() == b1.keys()
    for key in p0:
        close(p1[key].grad, p0[key].grad, f"gradient of {key}")
    for key in b0:
        close(b1[key].double(), b0[key].double(), key)
    return y1
