"""gan_fast.suite.peers and gan_fast.suite.shapes: what gan_fast is measured on is what it says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gan_fast
from gan_fast.suite import peers, shapes


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, 1, 28, 28, generator=generator) * 2 - 1, torch.randn(count, 100, generator=generator)


def made(network: str, step: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    generator, discriminator = peers.NETWORKS[network](width=8)
    return peers.STEPS[step](generator, discriminator, **settings)


@pytest.mark.parametrize("network", ["article", "article_act"])
def test_textbook_and_frozen_are_the_same_mathematics(network: str) -> None:
    textbook, frozen = made(network, "textbook"), made(network, "frozen")
    real, z = batch()
    for _ in range(3):
        expected, got = textbook.step(real, z), frozen.step(real, z)
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
            assert ours.shape == () and not ours.requires_grad
    for ours, theirs in ((frozen.generator, textbook.generator), (frozen.discriminator, textbook.discriminator)):
        for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert a.requires_grad
            torch.testing.assert_close(a, b, rtol=1e-2, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}")


def test_frozen_apart_is_the_textbook_for_batch_statistics() -> None:
    """A discriminator with batch normalisation sees real and fake as two batches, as in the textbook's loop."""
    torch.manual_seed(0)
    networks = peers.dcgan64(latent_dim=5, width=4)
    real, z = torch.rand(3, 3, 64, 64) * 2 - 1, torch.randn(3, 5, 1, 1)
    textbook = peers.Textbook(*copy.deepcopy(networks))
    apart = peers.Frozen(*copy.deepcopy(networks), apart=True)
    together = peers.Frozen(*networks)
    for _ in range(2):
        expected = textbook.step(real, z)
        torch.testing.assert_close(apart.step(real, z), expected, rtol=1e-3, atol=1e-4)
    assert abs(together.step(real, z)[0] - peers.Textbook(*peers.dcgan64(5, 3, 4)).step(real, z)[0]) > 1e-3
    for ours, theirs in zip(apart.discriminator.buffers(), textbook.discriminator.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_dcgan64_is_the_one_of_the_examples() -> None:
    packaged = gan_fast.models.build("dcgan64", latent_dim=7, ngf=4, ndf=4)
    for plain, ours in zip(peers.dcgan64(7, 3, 4), packaged, strict=True):
        assert [p.shape for p in plain.parameters()] == [p.shape for p in ours.parameters()]
        ours.main.load_state_dict(plain.state_dict())
        z = torch.randn(2, 7, 1, 1) if plain[0].weight.shape[0] == 7 else torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(plain(z).flatten(), ours(z).flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", ["textbook", "frozen"])
def test_channels_last_and_autocast_change_no_more_than_rounding(step: str) -> None:
    real, z = batch()
    plain = made("article_act", step).step(real, z)
    last = made("article_act", step, memory_format=torch.channels_last)
    assert last.generator[3].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.step(real, z), plain, rtol=1e-4, atol=1e-5)
    half = made("article_act", step, autocast=torch.bfloat16).step(real, z)
    torch.testing.assert_close(half, plain, rtol=0.03, atol=0.03)
    assert half[0].dtype == torch.float32


def test_a_step_trains_both_networks() -> None:
    program = made("article", "frozen", lr=1e-3)
    before = [copy.deepcopy(network.state_dict()) for network in (program.generator, program.discriminator)]
    real, z = batch()
    first = program.step(real, z)
    for _ in range(8):
        last = program.step(real, z)
    assert last[0] < first[0]
    for old, network in zip(before, (program.generator, program.discriminator), strict=True):
        assert all(not torch.equal(old[key], value) for key, value in network.state_dict().items())


def test_article_is_the_article() -> None:
    """Same parameter shapes as the exact preset; with geometry "keras" the same function, too."""
    generator, discriminator = peers.article(geometry="keras")
    exact_g, exact_d = gan_fast.models.build("keras_mnist")
    for plain, exact in ((generator, exact_g), (discriminator, exact_d)):
        assert [p.shape for p in plain.parameters()] == [p.shape for p in exact.parameters()]
    side, width = 7, 128
    # Dense layers count in H, W, C order there and in C, H, W order here.
    order = torch.arange(side * side * width).view(side, side, width).permute(2, 0, 1).flatten()
    with torch.no_grad():
        for plain, exact in zip(generator.parameters(), exact_g.parameters(), strict=True):
            plain.copy_(exact)
        generator[0].weight.copy_(exact_g.dense.weight[order])
        for plain, exact in zip(discriminator.parameters(), exact_d.parameters(), strict=True):
            plain.copy_(exact)
        discriminator[-1].weight.copy_(exact_d.dense.weight[:, order])
        real, z = batch(2)
        torch.testing.assert_close(generator(z), exact_g(z), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(discriminator(real), exact_d(real), rtol=1e-4, atol=1e-5)


def test_article_act_has_leaky_relu_after_every_hidden_layer() -> None:
    for geometry in peers.GEOMETRIES:
        for network, hidden in zip(peers.article_act(width=4, geometry=geometry), (3, 2), strict=True):
            slopes = [module.negative_slope for module in network if isinstance(module, nn.LeakyReLU)]
            assert slopes == [0.2] * hidden
    with pytest.raises(ValueError, match="geometry: got 'same', expected one of torch, keras"):
        peers.article(geometry="same")


def test_peers_use_nothing_of_ours() -> None:
    source = Path(peers.__file__).read_text(encoding="utf-8")
    assert "import gan_fast" not in source and "from gan_fast" not in source


# ------------------------------------------------------------------------------------------------------------ shapes


def test_shapes_are_unique_and_cover_what_is_promised() -> None:
    names = [shape.name for shape in shapes.SHAPES]
    assert len(set(names)) == len(names) > 100
    promised = "article_g article_d dcgan64 dcgan64_quarter pytorch_gan pix2pix cyclegan sngan progan"
    promised += " wavegan hifigan text ends3 odd"
    assert " ".join(shapes.FAMILIES) == promised
    channels = {count for shape in shapes.select("odd") for count in (shape.in_channels, shape.out_channels)}
    assert channels == {17, 33, 100}
    assert {shape.batch for shape in shapes.SHAPES} >= {1, 16, 64, 128}
    assert {shape.op for shape in shapes.SHAPES} == set(shapes.OPS) and {shape.rank for shape in shapes.SHAPES} == {
        1,
        2,
    }


@pytest.mark.parametrize("shape", shapes.SHAPES, ids=lambda shape: shape.name)
def test_shapes_are_what_pytorch_makes_of_them(shape: Any) -> None:
    """Built as a layer on the meta device: weight shape and output size."""
    rank = "1d" if shape.rank == 1 else "2d"
    kind = getattr(nn, ("ConvTranspose" if shape.op == "conv_transpose" else "Conv") + rank)
    extra = {"output_padding": shape.output_padding} if shape.op == "conv_transpose" else {}
    layer = kind(
        shape.in_channels, shape.out_channels, shape.kernel, shape.stride, shape.padding, dilation=shape.dilation,
        device="meta", **extra,
    )  # fmt: skip
    x = torch.empty(shape.input_shape, device="meta")
    if shape.op == "upsample_conv":
        x = nn.functional.interpolate(x, scale_factor=2)
    assert tuple(layer.weight.shape) == shape.weight_shape
    assert tuple(layer(x).shape) == (shape.batch, shape.out_channels, *shape.output_size)


def test_multiply_adds_are_the_published_ones() -> None:
    """20.1 M and 80.3 M per sample for the article's transposed convolutions, 33.6 M for DCGAN's inner ones."""
    article = [shape.macs for shape in shapes.select("article_g", "conv_transpose", batch=1)]
    assert article == [20_070_400, 80_281_600]
    assert shapes.select("article_g", "conv", batch=1)[0].macs == 4_917_248
    assert {shape.macs for shape in shapes.select("dcgan64", "conv_transpose", batch=1)} >= {33_554_432, 3_145_728}


def test_select_names_what_it_knows() -> None:
    with pytest.raises(ValueError, match="family: got 'gan', expected one of article_g"):
        shapes.select("gan")
    with pytest.raises(ValueError, match="op: got 'deconv', expected one of conv, conv_transpose"):
        shapes.select(op="deconv")
