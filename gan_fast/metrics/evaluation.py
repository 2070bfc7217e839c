"""`evaluate`: how near generated images are to a labelled real set, in the features of a classifier of that set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gan_fast.data import DataError, ImageData, mix_seed
from gan_fast.data.images import check_range

from .classifier import FEATURES, Classifier, classifier_for
from .frechet import Moments, frechet_distance

__all__ = ["evaluate"]


def evaluate(
    source: Any,
    data: str | Path | ImageData = "mnist",
    *,
    n: int = 10_000,
    seed: int = 0,
    batch_size: int = 500,
    data_dir: str | Path | None = None,
    download: bool = True,
    classifier: Classifier | None = None,
) -> dict[str, Any]:
    """Judge generated images against a labelled set.

    Args:
        source: a tensor of samples (N, C, H, W) in [-1, 1]; or a trainer (anything with ``sample(n, seed=...)``); or a
            generator module with ``latent_shape``, run in evaluation mode; or a callable of n that gives n samples.
        data: the real set, see `gan_fast.data.load`; it is brought to the samples' size and channels.
        n: how many samples to draw; a tensor is taken whole.
        seed: of the samples. Chunk i is drawn with a seed mixed from (seed, i).
        batch_size: samples in a chunk.
        data_dir, download: see `gan_fast.data.load`.
        classifier: use this one instead of the set's own.

    Returns:
        data, n, seed; frechet_distance (to the real training images; lower is better) and frechet_floor (what real
        held-out images get, or None); class_entropy in nats of the histogram of predicted classes and max_class_entropy
        = log K; confidence, the mean of the largest softmax; class_counts; classifier_accuracy, classifier_sha256,
        feature_dim, n_real.

    Raises:
        ValueError: n too small for the features, samples of a wrong shape, not finite or out of range.
        DataError: see `classifier_for`.
        TypeError: a source of no known kind.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}, expected at least 1")
    if isinstance(source, Tensor):
        n = len(source)
    if n <= FEATURES:
        raise ValueError(f"n={n} samples, expected more than the {FEATURES} dimensions of the features")
    moments: Moments | None = None
    counts = torch.zeros(0, dtype=torch.int64)
    confidence = 0.0
    for chunk in _chunks(source, n, seed, batch_size):
        if classifier is None:
            classifier = _classifier(chunk, data, data_dir, download)
        if tuple(chunk.shape[1:]) != classifier.net.image_shape:
            raise ValueError(
                f"samples have shape {tuple(chunk.shape[1:])}, "
                f"the images of {classifier.data} {classifier.net.image_shape}"
            )
        if moments is None:
            moments, counts = Moments(FEATURES), torch.zeros(classifier.classes, dtype=torch.int64)
        features, logits = classifier.features_and_logits(chunk)
        moments.update(features)
        top, labels = torch.softmax(logits.double(), 1).max(1)
        confidence += float(top.sum())
        counts += torch.bincount(labels, minlength=classifier.classes)
    assert classifier is not None and moments is not None  # n > 0, so there was a chunk
    shares = counts[counts > 0].double() / n
    return {
        "data": classifier.data,
        "n": n,
        "seed": seed,
        "frechet_distance": frechet_distance(moments, classifier.real),
        "frechet_floor": classifier.floor,
        "class_entropy": max(0.0, float(-(shares * shares.log()).sum())),
        "max_class_entropy": math.log(classifier.classes),
        "confidence": confidence / n,
        "class_counts": counts.tolist(),
        "classifier_accuracy": classifier.accuracy,
        "classifier_sha256": classifier.sha256,
        "feature_dim": FEATURES,
        "n_real": classifier.real.count,
    }


def _classifier(
    sample: Tensor, data: str | Path | ImageData, data_dir: str | Path | None, download: bool
) -> Classifier:
    """The classifier of `data` at the size and channels of the samples."""
    channels, height, width = sample.shape[1:]
    found = classifier_for(
        data,
        data_dir=data_dir,
        download=download,
        image_size=height if height == width else None,
        channels=channels if channels in (1, 3) else None,
    )
    if found.real.count <= FEATURES:
        raise DataError(
            f"{found.data} has {found.real.count} training images, expected more than the {FEATURES} dimensions of the "
            "features: no distance to fewer can be measured"
        )
    return found


def _chunks(source: Any, n: int, seed: int, batch_size: int) -> Iterator[Tensor]:
    """Checked float32 chunks on the CPU, n samples in all."""
    draw = _drawer(source, seed)
    start = 0
    while start < n:
        wanted = min(batch_size, n - start)
        chunk = draw(start, wanted, start // batch_size)
        if not isinstance(chunk, Tensor) or chunk.ndim != 4 or len(chunk) != wanted or not chunk.is_floating_point():
            got = f"{tuple(chunk.shape)} {chunk.dtype}" if isinstance(chunk, Tensor) else type(chunk).__name__
            raise ValueError(f"samples are {got}, expected floating point ({wanted}, C, H, W) in [-1, 1]")
        chunk = chunk.detach().to("cpu", torch.float32)
        check_range(chunk, "samples")
        yield chunk
        start += wanted


def _drawer(source: Any, seed: int) -> Callable[[int, int, int], Any]:
    """A function (start, count, chunk number) -> samples."""
    if isinstance(source, Tensor):
        return lambda start, count, _: source[start : start + count]
    if callable(getattr(source, "sample", None)):
        return lambda _, count, number: source.sample(count, seed=mix_seed(seed, number))
    if isinstance(source, nn.Module) and hasattr(source, "latent_shape"):
        shape = tuple(int(size) for size in source.latent_shape)  # type: ignore[union-attr]  # a plain tuple, not a submodule
        return lambda _, count, number: _generate(source, (count, *shape), mix_seed(seed, number))
    if callable(source) and not isinstance(source, nn.Module):
        return lambda _, count, __: source(count)
    raise TypeError(
        f"source is a {type(source).__name__}, expected samples (N, C, H, W), a trainer, a generator with "
        "latent_shape, or a callable that gives n samples"
    )


@torch.no_grad()
def _generate(generator: nn.Module, latent_shape: tuple[int, ...], seed: int) -> Tensor:
    """Samples of a generator in evaluation mode, which is left as it was found."""
    like = next(generator.parameters(), torch.empty(0))
    latent = torch.randn(latent_shape, generator=torch.Generator().manual_seed(seed))
    modes = [(module, module.training) for module in generator.modules()]
    generator.eval()
    try:
        made: Tensor = generator(latent.to(like.device, like.dtype))
    finally:
        for module, mode in modes:
            module.training = mode
    return made
