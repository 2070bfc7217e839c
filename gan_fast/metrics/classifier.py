"""The small convolutional classifier in whose features samples are judged: trained once on a set's labels, then cached.

It is trained with plain PyTorch from a fixed seed, so one machine with one number of threads always gives the same
network; other machines may differ in the last bits, which is why every result states the network's hash.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from gan_fast.cache import atomic_write
from gan_fast.data import DataError, ImageData, cache_dir, load
from gan_fast.data.feed import permutation

from .frechet import Moments, frechet_distance

__all__ = ["FEATURES", "Classifier", "ClassifierNet", "classifier_for"]

logger = logging.getLogger(__name__)

#: Length of a feature vector.
FEATURES = 64
# Part of the cache key: raise it with every change of the network or its training.
_VERSION = 1
_PEAK_LR = 4e-3
# Three passes suffice for a large set; a small one needs this many steps to converge.
_EPOCHS, _MIN_STEPS = 3, 250
_SMALLEST_MAP = 8
_BATCH = 500


class ClassifierNet(nn.Module):
    """Stages of 3x3 convolution, batch norm, ReLU and 2x2 max pooling, then Linear, ReLU (the features) and Linear.

    There are as many stages as bring the shorter side to at most 8: two for 28x28.

    Args:
        channels, height, width: of the images.
        classes: number of labels.
    """

    def __init__(self, channels: int, height: int, width: int, classes: int) -> None:
        super().__init__()
        self.image_shape = (channels, height, width)
        stages: list[nn.Module] = []
        wide = 32
        while not stages or (min(height, width) > _SMALLEST_MAP):
            stages += [
                nn.Conv2d(channels, wide, 3, padding=1, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
            channels, wide = wide, 64
            height, width = -(-height // 2), -(-width // 2)
        self.stages = nn.Sequential(*stages, nn.Flatten())
        self.embed = nn.Linear(channels * height * width, FEATURES)
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] to (N, FEATURES), after the ReLU."""
        return F.relu(self.embed(self.stages(images)))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] to logits (N, classes)."""
        return self.head(self.features(images))


@dataclass(frozen=True)
class Classifier:
    """A trained classifier with what is known of it and of the real images.

    Attributes:
        net: the network, in evaluation mode, on the CPU.
        data: name of the set.
        accuracy: share of the held-out images that it labels rightly.
        sha256: hash over its parameters.
        real: feature moments of the training images.
        floor: Fréchet distance between the held-out and the training images: what a perfect generator would reach with
            as many samples. None if there are too few held-out images.
        classes: number of labels.
        cached: whether it came from the cache.
    """

    net: ClassifierNet
    data: str
    accuracy: float
    sha256: str
    real: Moments
    floor: float | None
    classes: int
    cached: bool

    @torch.no_grad()
    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) float in [-1, 1] to features (N, FEATURES) and logits (N, classes), both float32."""
        features = self.net.features(images.to(torch.float32).contiguous(memory_format=torch.channels_last))
        return features, self.net.head(features)


def classifier_for(
    data: str | Path | ImageData,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    download: bool = True,
    seed: int = 0,
    retrain: bool = False,
) -> Classifier:
    """The classifier of a labelled set, from the cache folder if it is there, else trained and put there.

    Named sets are trained on their training part and checked on their test part; of other sources every sixth image of
    a seeded order is held out.

    Args:
        data: a name, a folder or zip with class subfolders, or `ImageData` with labels.
        data_dir, image_size, channels, download: as in `gan_fast.data.load`.
        seed: of the initial parameters and the order.
        retrain: ignore what is in the cache.

    Raises:
        DataError: no labels, fewer than two classes, or see `gan_fast.data.load`.
    """
    train, held = _parts(data, seed, data_dir=data_dir, image_size=image_size, channels=channels, download=download)
    key = f"{_VERSION} {train.fingerprint} {held.fingerprint} {seed}"
    safe = re.sub(r"[^\w.-]", "_", train.name)
    path = cache_dir() / "classifiers" / f"{safe}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if path.is_file() and not retrain:
        found = _read(path, train)
        if found is not None:
            return found
    made = _train(train, held, seed)
    try:
        atomic_write(path, lambda temporary: _write(made, temporary))
        logger.info("classifier of %s kept in %s", train.name, path)
    except OSError as error:
        logger.warning("the classifier cannot be kept in %s (%s): it will be trained again", path, error)
    return made


def _parts(data: str | Path | ImageData, seed: int, **options: object) -> tuple[ImageData, ImageData]:
    """Training and held-out images, both labelled."""
    train = load(data, split="train", **options)  # type: ignore[arg-type]  # the caller's keywords, checked there
    if train.labels is None:
        raise DataError(f"{train.name} has no labels: a classifier needs a named set or a folder with class subfolders")
    if train.images.ndim != 4:
        raise DataError(f"{train.name} has samples of shape {train.shape}, expected images (C, H, W)")
    if train.split == "train":
        held = load(data, split="test", **options)  # type: ignore[arg-type]  # as above
    else:
        order = permutation(len(train), seed, 0)
        cut = len(train) // 6
        if cut == 0:
            raise DataError(
                f"{train.name} has {len(train)} images, expected at least 6 to train and check a classifier"
            )
        train, held = (
            ImageData(train.images[part], train.labels[part], train.name, train.split, train.classes)
            for part in (order[cut:].sort().values, order[:cut].sort().values)
        )
    if len(train) <= FEATURES:
        raise DataError(
            f"{train.name} has {len(train)} images to train a classifier on, expected more than the {FEATURES} "
            "dimensions of its features: without them no distance can be measured"
        )
    labels = train.labels
    if labels is None or held.labels is None or len(labels.unique()) < 2:
        raise DataError(f"{train.name}: expected labels of at least two classes in both parts")
    if int(labels.min()) < 0:
        raise DataError(f"{train.name}: labels start at {int(labels.min())}, expected 0 or more")
    return train, held


def _network(data: ImageData, classes: int) -> ClassifierNet:
    channels, height, width = data.shape
    return ClassifierNet(channels, height, width, classes)


def _train(train: ImageData, held: ImageData, seed: int) -> Classifier:
    labels, truth = train.labels, held.labels
    assert labels is not None and truth is not None  # _parts refused the others
    count = len(train)
    batch = 128 if count >= 5000 else 32
    epochs = max(_EPOCHS, math.ceil(_MIN_STEPS * batch / count))
    steps = epochs * -(-count // batch)
    classes = int(labels.max()) + 1
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it is
        torch.manual_seed(seed)
        net = _network(train, classes)
    optimiser = torch.optim.Adam(net.parameters(), lr=_PEAK_LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _PEAK_LR, total_steps=steps)
    net.train()
    with torch.enable_grad(), tqdm(total=steps, desc=f"classifier of {train.name}", disable=None, leave=False) as bar:
        for epoch in range(epochs):
            for index in permutation(count, seed, epoch).split(batch):
                if len(index) < 2:  # batch norm needs two
                    schedule.step()
                    continue
                images = ImageData(train.images[index]).floats().contiguous(memory_format=torch.channels_last)
                loss = F.cross_entropy(net(images), labels[index])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
                bar.update()
    net.eval().requires_grad_(False)
    draft = Classifier(net, train.name, 0.0, _hash(net), Moments(FEATURES), None, classes, cached=False)
    real, _ = _measure(draft, train)
    other, hits = _measure(draft, held)
    floor = frechet_distance(other, real) if min(other.count, real.count) > FEATURES else None
    accuracy = hits / len(held)
    if accuracy < 0.9:
        logger.warning(
            "the classifier of %s is right on only %.1f %% of the held-out images: figures in its features say little",
            train.name,
            100 * accuracy,
        )
    return Classifier(net, train.name, accuracy, draft.sha256, real, floor, classes, cached=False)


def _measure(classifier: Classifier, data: ImageData) -> tuple[Moments, int]:
    """Feature moments of a set, and how many labels are right."""
    moments, hits = Moments(FEATURES), 0
    for start in range(0, len(data), _BATCH):
        features, logits = classifier.features_and_logits(data.floats(start, start + _BATCH))
        moments.update(features)
        if data.labels is not None:
            hits += int((logits.argmax(1) == data.labels[start : start + _BATCH]).sum())
    return moments, hits


def _hash(net: nn.Module) -> str:
    """sha256 over names, types, shapes and values of the parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(classifier: Classifier, path: Path) -> None:
    tensors = {f"net.{name}": tensor.contiguous() for name, tensor in classifier.net.state_dict().items()}
    tensors["real.mean"] = classifier.real.mean
    tensors["real.covariance"] = classifier.real.covariance
    facts = {
        "accuracy": repr(classifier.accuracy),
        "sha256": classifier.sha256,
        "floor": "" if classifier.floor is None else repr(classifier.floor),
        "classes": str(classifier.classes),
        "count": str(classifier.real.count),
        "torch": torch.__version__,
    }
    save_file(tensors, path, metadata=facts)


def _read(path: Path, train: ImageData) -> Classifier | None:
    """The cached classifier; None, with a warning, if the file is of no use."""
    try:
        tensors = load_file(path)
        with safetensors.safe_open(path, framework="pt") as content:
            facts = content.metadata() or {}
        classes = int(facts["classes"])
        with torch.random.fork_rng(devices=[]):
            net = _network(train, classes)
        net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
        net.eval().requires_grad_(False)
        if _hash(net) != facts["sha256"]:
            raise ValueError("its hash is not the stated one")
        real = Moments.of(tensors["real.mean"], tensors["real.covariance"], int(facts["count"]))
        floor = float(facts["floor"]) if facts["floor"] else None
        accuracy = float(facts["accuracy"])
    except (OSError, KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        logger.warning("the cached classifier %s cannot be used (%s): training anew", path, error)
        return None
    return Classifier(net, train.name, accuracy, facts["sha256"], real, floor, classes, cached=True)
