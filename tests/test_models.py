"""gan_fast.models: names and options, shapes, initial weights, and the layout of PyTorch's own DCGAN example."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gan_fast
from gan_fast import models

NARROW: dict[str, dict[str, Any]] = {
    "dcgan28": {"ngf": 4, "ndf": 4},
    "dcgan64": {"ngf": 4, "ndf": 4},
    "keras_mnist": {"ngf": 8, "ndf": 8},
}


def test_names() -> None:
    assert models.names() == sorted(NARROW)


@pytest.mark.parametrize("name", sorted(NARROW))
def test_shapes_and_ranges(name: str) -> None:
    generator, discriminator = models.build(name, latent_dim=10, **NARROW[name])
    assert generator.latent_shape[0] == 10
    images = generator(torch.randn(3, *generator.latent_shape))
    assert images.shape == (3, *generator.sample_shape)
    assert images.abs().max() <= 1
    logits = discriminator(images)
    assert logits.shape == (3, 1)
    logits.sum().backward()
    for network in (generator, discriminator):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", sorted(NARROW))
def test_latents_may_be_flat_or_have_trailing_ones(name: str) -> None:
    generator, _ = models.build(name, latent_dim=6, **NARROW[name])
    generator.eval()
    z = torch.randn(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(generator(z), generator(z[:, :, None, None]))
    for wrong in (torch.randn(2, 7), torch.randn(6), torch.randn(2, 6, 2, 1)):
        with pytest.raises(ValueError, match=r"z: got shape .*expected \(N, 6\)"):
            generator(wrong)


@pytest.mark.parametrize("name", sorted(NARROW))
def test_discriminator_names_what_it_expects(name: str) -> None:
    _, discriminator = models.build(name, channels=2, **NARROW[name])
    with pytest.raises(ValueError, match=r"images: got shape \(2, 1, 9, 9\), expected \(N, 2, "):
        discriminator(torch.zeros(2, 1, 9, 9))


@pytest.mark.parametrize("name", sorted(NARROW))
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    def made(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [p for network in models.build(name, **NARROW[name]) for p in network.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(made(1), made(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(made(1), made(2), strict=True))


@pytest.mark.parametrize("alias", ["nz", "z_dim", "latent_dim"])
def test_other_programs_words(alias: str) -> None:
    generator, _ = models.build("dcgan64", **{alias: 12}, nc=1, ngf=2, ndf=2)
    assert generator.latent_shape == (12, 1, 1) and generator.sample_shape == (1, 64, 64)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("dcgan", "'dcgan28' or 'dcgan64'|'dcgan64' or 'dcgan28'"),
        ("keras-mnist", "'keras_mnist'"),
        ("x", "known: dcgan28"),
    ],
)
def test_unknown_name_lists_near_ones(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=near):
        models.build(name)
    with pytest.raises(ValueError, match="unknown model"):
        models.options(name)


def test_unknown_option_lists_the_valid_ones() -> None:
    with pytest.raises(
        TypeError, match=r"ngff: not an option of model 'dcgan28'; did you mean 'ngf'\? its options: latent_dim, "
    ):
        models.build("dcgan28", ngff=3)
    with pytest.raises(TypeError, match="activation: not an option of model 'dcgan64'"):
        models.build("dcgan64", activation="leaky_relu")
    with pytest.raises(TypeError, match="latent_dim was given twice"):
        models.build("dcgan64", nz=3, latent_dim=3)


@pytest.mark.parametrize("name", sorted(NARROW))
@pytest.mark.parametrize("value", [0, -1, 2.5, "8", True])
def test_sizes_are_positive_integers(name: str, value: object) -> None:
    for option in ("latent_dim", "channels", "ngf", "ndf"):
        with pytest.raises(ValueError, match=f"{option}: got {value!r}, expected a positive integer"):
            models.build(name, **{option: value})


def test_options_tells_the_defaults() -> None:
    assert models.options("dcgan64") == {"latent_dim": 100, "channels": 3, "ngf": 64, "ndf": 64, "accelerate": True}


@pytest.mark.parametrize("name", sorted(NARROW))
def test_networks_know_how_to_be_built_again(name: str) -> None:
    for network in models.build(name, z_dim=9, **NARROW[name]):
        origin = network.built_from
        assert origin == {"model": name, "options": {**models.options(name), "latent_dim": 9, **NARROW[name]}}
        again = models.build(origin["model"], **origin["options"])
        assert type(network) in [type(other) for other in again]


def test_networks_from_keras_know_it_too() -> None:
    pair = models.build("keras_mnist", latent_dim=9, **NARROW["keras_mnist"], activation="leaky_relu")
    again = models.keras_mnist.from_keras(*models.keras_mnist.to_keras(*pair), activation="leaky_relu")
    assert again[0].built_from == again[1].built_from == pair[0].built_from


# ------------------------------------------------------------------------------------------------ the article's
# networks


def test_keras_mnist_has_the_article_s_sizes() -> None:
    generator, discriminator = models.build("keras_mnist")
    shapes = [tuple(p.shape) for p in generator.parameters()]
    assert shapes == [(6272, 100), (6272,), *[(128, 128, 5, 5), (128,)] * 2, (1, 128, 7, 7), (1,)]
    shapes = [tuple(p.shape) for p in discriminator.parameters()]
    assert shapes == [(128, 1, 3, 3), (128,), (128, 128, 3, 3), (128,), (1, 6272), (1,)]
    # 4,608 more than the sum of the article's figures for separate layers would be a sign of a doubled kernel.
    assert sum(p.numel() for p in generator.parameters()) == 633_472 + 2 * 409_728 + 6_273
    assert sum(p.numel() for p in discriminator.parameters()) == 1_280 + 147_584 + 6_273


def test_keras_mnist_starts_as_keras_does() -> None:
    """Glorot uniform: bounded by sqrt(6 / (fan_in + fan_out)), standard deviation bound / sqrt(3); biases zero."""
    generator, discriminator = models.build("keras_mnist")
    fans = {
        generator.dense.weight: 100 + 6272,
        generator.deconv1.weight: 2 * 25 * 128,
        generator.conv.weight: 49 * (128 + 1),
        discriminator.conv1.weight: 9 * (1 + 128),
        discriminator.dense.weight: 6272 + 1,
    }
    for weight, fan in fans.items():
        bound = (6 / fan) ** 0.5
        assert weight.abs().max().item() <= bound * (1 + 1e-6)
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.06)
    for network in (generator, discriminator):
        assert all(p.eq(0).all() for p in network.parameters() if p.dim() == 1)


def test_the_article_has_no_activation_between_its_layers() -> None:
    """Up to the tanh everything is affine: differences of inputs map to differences of outputs."""
    generator, discriminator = (network.double() for network in models.build("keras_mnist", ngf=6, ndf=6))
    a, b, c = (torch.randn(1, 100, dtype=torch.float64) for _ in range(3))
    raw = [torch.atanh(generator(z)) for z in (a, b, c, a + b - c)]
    torch.testing.assert_close(raw[3], raw[0] + raw[1] - raw[2])
    x, y = (torch.randn(1, 1, 28, 28, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(
        discriminator(x + y), discriminator(x) + discriminator(y) - discriminator(torch.zeros_like(x))
    )


def test_leaky_relu_variant_equals_plain_layers() -> None:
    """activation="leaky_relu" against the same arithmetic written out with torch.nn.functional."""
    F = torch.nn.functional
    generator, discriminator = models.build("keras_mnist", ngf=5, ndf=6, activation="leaky_relu")
    torch.manual_seed(0)
    for network in (generator, discriminator):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, 0, 0.2)

    def act(x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(x, 0.2)

    z = torch.randn(3, 100)
    x = act(F.linear(z, generator.dense.weight, generator.dense.bias)).view(3, 7, 7, 5).permute(0, 3, 1, 2)
    for layer in (generator.deconv1, generator.deconv2):
        x = act(F.conv_transpose2d(x, layer.weight, layer.bias, stride=2, padding=1)[:, :, :-1, :-1])
    x = torch.tanh(F.conv2d(x, generator.conv.weight, generator.conv.bias, padding=3))
    torch.testing.assert_close(generator(z), x, rtol=1e-4, atol=1e-5)

    y = x.detach()
    for layer in (discriminator.conv1, discriminator.conv2):
        y = act(F.conv2d(F.pad(y, (0, 1, 0, 1)), layer.weight, layer.bias, stride=2))
    y = F.linear(y.permute(0, 2, 3, 1).flatten(1), discriminator.dense.weight, discriminator.dense.bias)
    torch.testing.assert_close(discriminator(x.detach()), y, rtol=1e-4, atol=1e-4)


def test_keras_mnist_refuses_other_activations() -> None:
    with pytest.raises(
        ValueError, match=r"activation: got 'relu', expected None \(the article's networks\) or 'leaky_relu'"
    ):
        models.build("keras_mnist", activation="relu")


# --------------------------------------------------------------------------------------------------------------- DCGAN


def pytorch_example(
    nz: int, nc: int, ngf: int, ndf: int
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Keys and shapes of the state_dicts of PyTorch's DCGAN example, from the list of its layers."""

    def keys(layers: list[tuple[int, str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for index, kind, shape in layers:
            shapes[f"main.{index}.weight"] = shape
            if kind == "norm":
                shapes |= {f"main.{index}.{key}": shape for key in ("bias", "running_mean", "running_var")}
                shapes[f"main.{index}.num_batches_tracked"] = ()
        return shapes

    g = [
        (0, "conv", (nz, ngf * 8, 4, 4)),
        (1, "norm", (ngf * 8,)),
        (3, "conv", (ngf * 8, ngf * 4, 4, 4)),
        (4, "norm", (ngf * 4,)),
        (6, "conv", (ngf * 4, ngf * 2, 4, 4)),
        (7, "norm", (ngf * 2,)),
        (9, "conv", (ngf * 2, ngf, 4, 4)),
        (10, "norm", (ngf,)),
        (12, "conv", (ngf, nc, 4, 4)),
    ]
    d = [
        (0, "conv", (ndf, nc, 4, 4)),
        (2, "conv", (ndf * 2, ndf, 4, 4)),
        (3, "norm", (ndf * 2,)),
        (5, "conv", (ndf * 4, ndf * 2, 4, 4)),
        (6, "norm", (ndf * 4,)),
        (8, "conv", (ndf * 8, ndf * 4, 4, 4)),
        (9, "norm", (ndf * 8,)),
        (11, "conv", (1, ndf * 8, 4, 4)),
    ]
    return keys(g), keys(d)


def test_dcgan64_checkpoints_are_those_of_pytorch_s_example() -> None:
    for network, expected in zip(models.build("dcgan64"), pytorch_example(100, 3, 64, 64), strict=True):
        assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == expected
    generator, discriminator = models.build("dcgan64")
    # The published parameter counts of that example.
    assert sum(p.numel() for p in generator.parameters()) == 3_576_704
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_568


@pytest.mark.parametrize("name", ["dcgan28", "dcgan64"])
def test_dcgan_initial_weights(name: str) -> None:
    generator, discriminator = models.build(name, ngf=32, ndf=32)
    for network in (generator, discriminator):
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.weight.mean().item() == pytest.approx(1, abs=0.02)
                assert module.bias.eq(0).all()
            elif isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear)):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("name", ["dcgan28", "dcgan64"])
def test_accelerated_and_plain_models_agree(name: str) -> None:
    def made(accelerate: bool) -> tuple[torch.nn.Module, torch.nn.Module]:
        torch.manual_seed(3)
        return models.build(name, accelerate=accelerate, **NARROW[name])

    fast, plain = made(True), made(False)
    assert not any(type(m).__module__.startswith("gan_fast.nn") for network in plain for m in network.modules())
    assert any(type(m).__module__.startswith("gan_fast.nn") for network in fast for m in network.modules())
    z = torch.randn(4, 100)
    fakes = [network[0](z) for network in (fast, plain)]
    torch.testing.assert_close(*fakes, rtol=1e-4, atol=1e-5)
    for network, fake in zip((fast, plain), fakes, strict=True):
        network[1](fake).mean().backward()
    for ours, theirs in zip(fast, plain, strict=True):
        for (key, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5 + 1e-3 * b.grad.abs().max().item(), msg=key)
    assert gan_fast.restore(*fast) > 0
    assert [type(m) for n in fast for m in n.modules()] == [type(m) for n in plain for m in n.modules()]
