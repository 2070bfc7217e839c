"""Grids of samples (Pillow) and the picture of the loss curves (matplotlib, if it is installed)."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import files

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["grid", "is_picture", "save_grid", "save_loss_curves"]

logger = logging.getLogger(__name__)

_GAP = 2


def is_picture(shape: Sequence[int]) -> bool:
    """Whether samples of this shape (without the batch) can be drawn: (1 or 3 channels, height, width)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """Lay images out in rows.

    Args:
        images: (N, C, H, W) in [-1, 1], C = 1 (grey) or 3 (RGB).
        columns: images in a row; by default the smallest square that holds them all.
    """
    from PIL import Image  # here, so that training alone does without it

    if images.dim() != 4 or not is_picture(images.shape[1:]):
        raise ValueError(f"a grid needs images of shape (N, 1 or 3, H, W), got {tuple(images.shape)}")
    count, channels, height, width = images.shape
    if count == 0:
        raise ValueError("a grid needs at least one image, got 0")
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    pixels = ((images.detach().float().cpu().nan_to_num(0.0).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    canvas = np.zeros((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels), dtype=np.uint8)
    for index, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        top = _GAP + (index // columns) * (height + _GAP)
        left = _GAP + (index % columns) * (width + _GAP)
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write a grid as a PNG file, as a whole."""
    buffer = io.BytesIO()
    grid(images, columns).save(buffer, format="PNG")
    files.replace_file(path, buffer.getvalue())


def save_loss_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw d_loss, g_loss, D(x) and D(G(z)) over the steps; returns False, after one log line, without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("no loss curves were drawn: matplotlib is not installed (pip install 'gan-fast[plots]')")
        return False
    # The figure is made without pyplot, which would pick a window system and keep global state.
    figure = Figure(figsize=(8, 6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    losses, probabilities = figure.subplots(2, 1, sharex=True)
    steps = [row["step"] for row in rows]
    for axes, names in (
        (losses, {"d_loss": "D loss", "g_loss": "G loss"}),
        (probabilities, {"d_real": "D(x)", "d_fake": "D(G(z))"}),
    ):
        for key, label in names.items():
            axes.plot(steps, [row[key] for row in rows], label=label, linewidth=1)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right")
    losses.set_ylabel("loss")
    probabilities.set_ylabel("probability")
    probabilities.set_ylim(0, 1)
    probabilities.set_xlabel("step")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    files.replace_file(path, buffer.getvalue())
    return True
