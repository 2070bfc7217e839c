"""The fixed list of layers that every operator is measured on. Changing it makes old and new figures incomparable:
add a family instead.

Each `LayerShape` is one convolution of a published network (sources beside each family below) with a batch size;
forward, input gradient and weight gradient are measured on each. A geometric mean is taken within a family first,
then over the families, so that a long family does not outvote a short one.
"""

from __future__ import annotations

import dataclasses
import math

__all__ = ["FAMILIES", "SHAPES", "LayerShape", "select"]

#: What a layer computes; "upsample_conv" is nearest upsampling by 2 followed by a convolution with stride 1.
OPS = ("conv", "conv_transpose", "upsample_conv")


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """One layer with its input.

    `kernel`, `size` and the output are spatial tuples of one rank (1: sound and text, 2: images); stride, padding,
    output_padding and dilation are the same along every axis, as in all of these networks. `size` is the input's
    (before upsampling).
    """

    family: str
    op: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: int
    padding: int
    output_padding: int
    size: tuple[int, ...]
    batch: int
    dilation: int = 1

    @property
    def rank(self) -> int:
        """Number of spatial dimensions."""
        return len(self.size)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(N, C, *size)."""
        return (self.batch, self.in_channels, *self.size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """In torch's layout: (out, in, *kernel), for conv_transpose (in, out, *kernel)."""
        if self.op == "conv_transpose":
            return (self.in_channels, self.out_channels, *self.kernel)
        return (self.out_channels, self.in_channels, *self.kernel)

    @property
    def output_size(self) -> tuple[int, ...]:
        """Spatial size of the result."""
        if self.op == "conv_transpose":
            return tuple(
                (size - 1) * self.stride - 2 * self.padding + self.dilation * (kernel - 1) + self.output_padding + 1
                for size, kernel in zip(self.size, self.kernel, strict=True)
            )
        factor = 2 if self.op == "upsample_conv" else 1
        return tuple(
            (factor * size + 2 * self.padding - self.dilation * (kernel - 1) - 1) // self.stride + 1
            for size, kernel in zip(self.size, self.kernel, strict=True)
        )

    @property
    def macs(self) -> int:
        """Multiply-adds of one pass as a direct algorithm counts them, products with padding included, per batch."""
        positions = math.prod(self.size if self.op == "conv_transpose" else self.output_size)
        return self.batch * positions * math.prod(self.kernel) * self.in_channels * self.out_channels

    @property
    def elements(self) -> int:
        """Of input, weight and output: what every pass reads or writes at least once."""
        output = self.batch * self.out_channels * math.prod(self.output_size)
        return math.prod(self.input_shape) + math.prod(self.weight_shape) + output

    @property
    def name(self) -> str:
        """Unique and stable: the key of this cell in result files."""
        form = f"k{'x'.join(map(str, self.kernel))}s{self.stride}p{self.padding}"
        form += f"op{self.output_padding}" if self.output_padding else ""
        form += f"d{self.dilation}" if self.dilation > 1 else ""
        size = "x".join(map(str, self.size))
        return f"{self.family}/{self.op}-{self.in_channels}to{self.out_channels}-{form}-{size}-b{self.batch}"


def _layer(
    family: str,
    op: str,
    channels: tuple[int, int],
    kernel: int,
    stride: int,
    padding: int,
    size: int,
    batch: int,
    *,
    output_padding: int = 0,
    dilation: int = 1,
    rank: int = 2,
) -> LayerShape:
    """A layer with a cubic kernel on a cubic input."""
    return LayerShape(
        family, op, *channels, (kernel,) * rank, stride, padding, output_padding, (size,) * rank, batch, dilation
    )


def _article() -> list[LayerShape]:
    """The article's generator and discriminator (28x28), in PyTorch's usual geometry."""
    shapes = []
    for batch in (1, 16, 64, 128):
        shapes += [
            _layer("article_g", "conv_transpose", (128, 128), 5, 2, 2, 7, batch, output_padding=1),
            _layer("article_g", "conv_transpose", (128, 128), 5, 2, 2, 14, batch, output_padding=1),
            _layer("article_g", "conv", (128, 1), 7, 1, 3, 28, batch),
            _layer("article_d", "conv", (1, 128), 3, 2, 1, 28, batch),
            _layer("article_d", "conv", (128, 128), 3, 2, 1, 14, batch),
        ]
    return shapes


def _dcgan(family: str, width: int, batches: tuple[int, ...]) -> list[LayerShape]:
    """PyTorch's DCGAN example at 64x64: G up from 1x1, D down to 1x1."""
    shapes = []
    for batch in batches:
        shapes.append(_layer(family, "conv_transpose", (100, width * 8), 4, 1, 0, 1, batch))
        for index in range(3):
            inputs, size = width * 8 >> index, 4 << index
            shapes.append(_layer(family, "conv_transpose", (inputs, inputs // 2), 4, 2, 1, size, batch))
        shapes.append(_layer(family, "conv_transpose", (width, 3), 4, 2, 1, 32, batch))
        shapes.append(_layer(family, "conv", (3, width), 4, 2, 1, 64, batch))
        for index in range(3):
            inputs, size = width << index, 32 >> index
            shapes.append(_layer(family, "conv", (inputs, inputs * 2), 4, 2, 1, size, batch))
        shapes.append(_layer(family, "conv", (width * 8, 1), 4, 1, 0, 4, batch))
    return shapes


def _pytorch_gan() -> list[LayerShape]:
    """PyTorch-GAN's DCGAN at 32x32: Upsample + Conv in G, narrow strided convolutions in D."""
    family, batch = "pytorch_gan", 64
    shapes = [
        _layer(family, "upsample_conv", (128, 128), 3, 1, 1, 8, batch),
        _layer(family, "upsample_conv", (128, 64), 3, 1, 1, 16, batch),
        _layer(family, "conv", (64, 1), 3, 1, 1, 32, batch),
    ]
    for inputs, outputs, size in ((1, 16, 32), (16, 32, 16), (32, 64, 8), (64, 128, 4)):
        shapes.append(_layer(family, "conv", (inputs, outputs), 3, 2, 1, size, batch))
    return shapes


def _pix2pix() -> list[LayerShape]:
    """pix2pix's U-Net at 64x64 with 32 filters (the 256x256 network's shape at a CPU's size), and the widest stages
    of the full one."""
    family = "pix2pix"
    up = ((256, 256, 1), (512, 256, 2), (512, 128, 4), (256, 64, 8), (128, 32, 16), (64, 3, 32))
    down = ((3, 32, 64), (32, 64, 32), (64, 128, 16), (128, 256, 8), (256, 256, 4), (256, 256, 2))
    shapes = [_layer(family, "conv_transpose", (inputs, outputs), 4, 2, 1, size, 16) for inputs, outputs, size in up]
    shapes += [_layer(family, "conv", (inputs, outputs), 4, 2, 1, size, 16) for inputs, outputs, size in down]
    shapes += [
        _layer(family, "conv_transpose", (1024, 256), 4, 2, 1, 16, 1),
        _layer(family, "conv_transpose", (512, 128), 4, 2, 1, 32, 1),
        _layer(family, "conv_transpose", (256, 64), 4, 2, 1, 64, 1),
        _layer(family, "conv_transpose", (128, 3), 4, 2, 1, 128, 1),
        _layer(family, "conv", (256, 512), 4, 1, 1, 32, 1),  # PatchGAN-70
        _layer(family, "conv", (512, 1), 4, 1, 1, 31, 1),
    ]
    return shapes


def _cyclegan() -> list[LayerShape]:
    """CycleGAN's residual generator at 128x128; its 7x7 ends come after a reflection pad of 3, hence padding 0 and
    size + 6."""
    family = "cyclegan"
    return [
        _layer(family, "conv", (3, 64), 7, 1, 0, 134, 1),
        _layer(family, "conv", (64, 128), 3, 2, 1, 128, 1),
        _layer(family, "conv", (128, 256), 3, 2, 1, 64, 1),
        _layer(family, "conv", (256, 256), 3, 1, 0, 34, 1),
        _layer(family, "conv_transpose", (256, 128), 3, 2, 1, 32, 1, output_padding=1),
        _layer(family, "conv_transpose", (128, 64), 3, 2, 1, 64, 1, output_padding=1),
        _layer(family, "conv", (64, 3), 7, 1, 0, 134, 1),
    ]


def _sngan() -> list[LayerShape]:
    """The 3x3 convolutions of SNGAN's residual networks for 32x32 (arXiv 1802.05957): 256 channels in G, 128 in D."""
    family = "sngan"
    return [
        _layer(family, "conv", (256, 256), 3, 1, 1, 8, 64),
        _layer(family, "conv", (256, 256), 3, 1, 1, 16, 16),
        _layer(family, "conv", (256, 256), 3, 1, 1, 32, 16),
        _layer(family, "conv", (128, 128), 3, 1, 1, 8, 64),
        _layer(family, "conv", (128, 128), 3, 1, 1, 16, 64),
    ]


def _progan() -> list[LayerShape]:
    """ProGAN's stages of 3x3 convolutions, 4x4 to 128x128 (arXiv 1710.10196), in batches that shrink as images grow."""
    family = "progan"
    return [
        _layer(family, "conv", (512, 512), 3, 1, 1, 4, 16),
        _layer(family, "conv", (512, 512), 3, 1, 1, 8, 16),
        _layer(family, "conv", (512, 512), 3, 1, 1, 16, 8),
        _layer(family, "conv", (512, 512), 3, 1, 1, 32, 2),
        _layer(family, "conv", (512, 256), 3, 1, 1, 64, 1),
        _layer(family, "conv", (256, 128), 3, 1, 1, 128, 1),
    ]


def _wavegan() -> list[LayerShape]:
    """WaveGAN (kernel 25, stride 4): 4096 samples with 16 filters, and two stages of the full 16384-sample network."""
    family = "wavegan"
    up = ((128, 64, 16), (64, 32, 64), (32, 16, 256), (16, 1, 1024))
    down = ((1, 16, 4096), (16, 32, 1024), (32, 64, 256), (64, 128, 64))
    shapes = [
        _layer(family, "conv_transpose", (inputs, outputs), 25, 4, 11, size, 64, output_padding=1, rank=1)
        for inputs, outputs, size in up
    ]
    shapes += [_layer(family, "conv", (inputs, outputs), 25, 4, 11, size, 64, rank=1) for inputs, outputs, size in down]
    shapes += [
        _layer(family, "conv_transpose", (1024, 512), 25, 4, 11, 16, 8, output_padding=1, rank=1),
        _layer(family, "conv_transpose", (128, 64), 25, 4, 11, 1024, 8, output_padding=1, rank=1),
    ]
    return shapes


def _hifigan() -> list[LayerShape]:
    """HiFi-GAN V1's upsampling of 32 mel frames, residual convolutions of its middle stage, and V3's upsampling."""
    family = "hifigan"
    shapes = [
        _layer(family, "conv_transpose", (512, 256), 16, 8, 4, 32, 1, rank=1),
        _layer(family, "conv_transpose", (256, 128), 16, 8, 4, 256, 1, rank=1),
        _layer(family, "conv_transpose", (128, 64), 4, 2, 1, 2048, 1, rank=1),
        _layer(family, "conv_transpose", (64, 32), 4, 2, 1, 4096, 1, rank=1),
        _layer(family, "conv_transpose", (256, 128), 16, 8, 4, 32, 1, rank=1),
        _layer(family, "conv_transpose", (64, 32), 8, 4, 2, 2048, 1, rank=1),
    ]
    for kernel, dilation in ((3, 1), (7, 3), (11, 5)):
        padding = dilation * (kernel - 1) // 2
        shapes.append(_layer(family, "conv", (128, 128), kernel, 1, padding, 2048, 1, dilation=dilation, rank=1))
    shapes.append(_layer(family, "conv", (32, 1), 7, 1, 3, 8192, 1, rank=1))
    return shapes


def _text() -> list[LayerShape]:
    """A character generator with transposed convolutions (4 to 32 characters, 96 symbols) and its discriminator."""
    family, batch = "text", 64
    shapes = [
        _layer(family, "conv_transpose", (512, 256), 4, 2, 1, 4, batch, rank=1),
        _layer(family, "conv_transpose", (256, 128), 4, 2, 1, 8, batch, rank=1),
        _layer(family, "conv_transpose", (128, 64), 4, 2, 1, 16, batch, rank=1),
        _layer(family, "conv", (64, 96), 1, 1, 0, 32, batch, rank=1),
    ]
    for inputs, outputs, size in ((96, 64, 32), (64, 128, 16), (128, 256, 8)):
        shapes.append(_layer(family, "conv", (inputs, outputs), 4, 2, 1, size, batch, rank=1))
    return shapes


def _ends() -> list[LayerShape]:
    """Layers with three image channels on one side, the ends of every colour network."""
    family = "ends3"
    return [
        _layer(family, "conv_transpose", (64, 3), 4, 2, 1, 32, 16),
        _layer(family, "conv", (64, 3), 3, 1, 1, 64, 16),
        _layer(family, "conv", (64, 3), 7, 1, 3, 64, 16),
        _layer(family, "conv", (3, 64), 4, 2, 1, 64, 16),
        _layer(family, "conv", (3, 64), 3, 1, 1, 64, 16),
        _layer(family, "conv", (3, 64), 7, 1, 3, 64, 16),
    ]


def _odd() -> list[LayerShape]:
    """Channel counts that fill no vector register: 17, 33, 100; and a size that is a multiple of nothing."""
    family = "odd"
    shapes = []
    for inputs, outputs in ((17, 33), (33, 17), (100, 33), (33, 100), (17, 100), (100, 17)):
        shapes.append(_layer(family, "conv_transpose", (inputs, outputs), 4, 2, 1, 13, 16))
        shapes.append(_layer(family, "conv", (inputs, outputs), 3, 2, 1, 27, 16))
    return shapes


SHAPES: tuple[LayerShape, ...] = (
    *_article(),
    *_dcgan("dcgan64", 64, (1, 64)),
    *_dcgan("dcgan64_quarter", 16, (16, 128)),
    *_pytorch_gan(),
    *_pix2pix(),
    *_cyclegan(),
    *_sngan(),
    *_progan(),
    *_wavegan(),
    *_hifigan(),
    *_text(),
    *_ends(),
    *_odd(),
)

#: The families in the list's order.
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(shape.family for shape in SHAPES))


def select(family: str | None = None, op: str | None = None, batch: int | None = None) -> list[LayerShape]:
    """The shapes of that family, operator and batch size; None takes all.

    Raises:
        ValueError: an unknown family or operator.
    """
    for argument, value, known in (("family", family, FAMILIES), ("op", op, OPS)):
        if value is not None and value not in known:
            raise ValueError(f"{argument}: got {value!r}, expected one of {', '.join(known)}")
    return [
        shape
        for shape in SHAPES
        if family in (None, shape.family) and op in (None, shape.op) and batch in (None, shape.batch)
    ]
