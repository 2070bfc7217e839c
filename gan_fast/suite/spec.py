"""One layer as a word: ``convt:128,128,k5,s2,7x7`` and the like.

    OP:IN,OUT,kK[,sS][,pP][,oO][,dD],SIZE[,bN]

OP is ``conv``, ``convt`` (transposed) or ``upconv`` (nearest upsampling by 2, then a convolution); IN and OUT are
channels; k, s, p, o, d are kernel, stride, padding, output padding and dilation, the same along every axis; SIZE is
the input's, ``28x28`` for images and ``4096`` for sound; b is the batch. Left out: stride 1, dilation 1, batch 16, and
the padding with which a layer keeps the size, or divides or multiplies it by its stride.
"""

from __future__ import annotations

import re

from gan_fast.suite.shapes import LayerShape

__all__ = ["EXAMPLE", "parse"]

EXAMPLE = "convt:128,128,k5,s2,7x7"
BATCH = 16
_OPS = {"conv": "conv", "convt": "conv_transpose", "upconv": "upsample_conv"}
_LETTERS = {"k": "kernel", "s": "stride", "p": "padding", "o": "output padding", "d": "dilation", "b": "batch"}


def parse(text: str) -> LayerShape:
    """The layer that ``text`` says.

    Raises:
        ValueError: the text does not parse, or no such layer exists (an output without pixels).
    """

    def wrong(why: str) -> ValueError:
        return ValueError(f"layer {text!r}: {why}; expected OP:IN,OUT,kK[,sS][,pP][,oO][,dD],SIZE[,bN], as {EXAMPLE}")

    name, colon, rest = text.strip().partition(":")
    if not colon or name not in _OPS:
        raise wrong(f"{name!r} is no operator ({', '.join(_OPS)})")
    words = [word.strip() for word in rest.split(",")]
    if len(words) < 2 or not all(word.isdecimal() for word in words[:2]):
        raise wrong("it begins with the channels in and out")
    size: tuple[int, ...] | None = None
    numbers: dict[str, int] = {}
    for word in words[2:]:
        letter, number = word[:1], word[1:]
        if re.fullmatch(r"\d+(x\d+)?", word) and size is None:
            size = tuple(int(side) for side in word.split("x"))
        elif letter in _LETTERS and number.isdecimal() and letter not in numbers:
            numbers[letter] = int(number)
        else:
            raise wrong(f"{word!r} is not understood")
    if size is None or "k" not in numbers:
        raise wrong("the size is missing" if size is None else "the kernel is missing")
    kernel, stride, dilation = numbers["k"], numbers.get("s", 1), numbers.get("d", 1)
    counts = [int(words[0]), int(words[1]), kernel, stride, dilation, numbers.get("b", BATCH), *size]
    if min(counts) < 1:
        raise wrong("every number but the paddings is at least 1")
    op = _OPS[name]
    if op != "conv_transpose" and "o" in numbers:
        raise wrong("output padding is for convt only")
    span = dilation * (kernel - 1) + 1
    if op == "conv_transpose":
        padding = numbers.get("p", max(0, span - stride + 1) // 2)
        # With the padding chosen here, the output is the input's size times the stride.
        extra = numbers.get("o", 0 if "p" in numbers else min(max(0, stride + 2 * padding - span), stride - 1))
        if extra >= max(stride, dilation):
            raise wrong("output padding is smaller than the stride or the dilation")
    else:
        padding, extra = numbers.get("p", (span - 1) // 2), 0
    shape = LayerShape(
        "own", op, int(words[0]), int(words[1]), (kernel,) * len(size), stride, padding, extra, size,
        numbers.get("b", BATCH), dilation,
    )  # fmt: skip
    if min(shape.output_size) < 1:
        raise wrong(f"its output would have the size {shape.output_size}")
    return shape
