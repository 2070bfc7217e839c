"""Moments and the Fréchet distance against closed forms; the classifier, its cache, and evaluate."""

from __future__ import annotations

import logging
import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gan_fast import data, metrics
from gan_fast.metrics import classifier as classifier_module
from gan_fast.metrics.classifier import FEATURES, ClassifierNet

few = settings(derandomize=True, max_examples=25, deadline=None)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache folder for the module, so that the digits' classifier is trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv("GAN_FAST_CACHE", str(cache))


def random_moments(dim: int, seed: int, count: int = 1000, offset: float = 0.0) -> tuple[metrics.Moments, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    rows = torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mixing + offset
    return metrics.Moments(dim).update(rows), rows


# ---- moments and distance --------------------------------------------------------------------------------------------


@few
@given(st.integers(1, 6), st.lists(st.integers(0, 9), min_size=1, max_size=6), st.sampled_from([0.0, 1e6]))
def test_moments_in_batches_equal_those_of_the_whole(dim, sizes, offset):
    generator = torch.Generator().manual_seed(sum(sizes))
    rows = torch.randn(sum(sizes) + 2, dim, generator=generator, dtype=torch.float64) + offset
    gathered = metrics.Moments(dim)
    for part in rows.split([*sizes, 2]):
        gathered.update(part)
    assert gathered.count == len(rows)
    torch.testing.assert_close(gathered.mean, rows.mean(0))
    expected = torch.cov(rows.T).reshape(dim, dim)
    torch.testing.assert_close(gathered.covariance, expected, rtol=1e-6, atol=1e-8)


def test_merging_equals_updating_and_of_gives_the_same_back():
    first, rows = random_moments(3, 0)
    second, more = random_moments(3, 1)
    whole = metrics.Moments(3).update(torch.cat([rows, more]))
    merged = first.merge(second)
    torch.testing.assert_close(merged.covariance, whole.covariance)
    torch.testing.assert_close(
        metrics.Moments.of(whole.mean, whole.covariance, whole.count).covariance, whole.covariance
    )


@few
@given(st.integers(1, 8), st.integers(0, 9))
def test_distance_of_diagonal_gaussians_is_the_closed_form(dim, seed):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    spreads = torch.rand(2, dim, generator=generator, dtype=torch.float64)
    spreads[0, 0] = 0.0  # a feature that never changes makes the covariance singular
    sets = [metrics.Moments.of(m, torch.diag(s**2), 1000) for m, s in zip(means, spreads, strict=True)]
    expected = ((means[0] - means[1]) ** 2 + (spreads[0] - spreads[1]) ** 2).sum().item()
    assert metrics.frechet_distance(*sets) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@few
@given(st.integers(2, 8), st.integers(0, 9))
def test_distance_of_full_gaussians_agrees_with_the_product_form(dim, seed):
    first, _ = random_moments(dim, 2 * seed)
    second, _ = random_moments(dim, 2 * seed + 1, offset=1.0)
    # tr (C1 C2)^1/2 from the eigenvalues of the unsymmetric product: the textbook form, fine for such matrices.
    root = torch.linalg.eigvals(first.covariance @ second.covariance).real.clamp_min(0).sqrt().sum()
    shift = (first.mean - second.mean).square().sum()
    expected = float(shift + first.covariance.trace() + second.covariance.trace() - 2 * root)
    assert metrics.frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(second, first) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(first, first) == pytest.approx(0, abs=1e-6 * float(first.covariance.trace()))


def test_distance_of_rank_deficient_features_is_finite():
    rows = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = metrics.Moments(8).update(rows.repeat(1, 4))
    second = metrics.Moments(8).update(torch.cat([rows * 2, rows.new_zeros(200, 6)], 1))
    assert math.isfinite(metrics.frechet_distance(first, second))


def test_metric_errors():
    with pytest.raises(ValueError, match="dim=0"):
        metrics.Moments(0)
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \(N, 4\)"):
        metrics.Moments(4).update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="NaN"):
        metrics.Moments(1).update(torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match="at least 2"):
        _ = metrics.Moments(1).update(torch.zeros(1, 1)).covariance
    with pytest.raises(ValueError, match=r"4 samples for 4 feature dimensions.*give at least 5"):
        metrics.frechet_distance(
            metrics.Moments(4).update(torch.rand(4, 4)), metrics.Moments(4).update(torch.rand(9, 4))
        )
    with pytest.raises(ValueError, match="3 and 4"):
        metrics.frechet_distance(metrics.Moments(3), metrics.Moments(4))
    with pytest.raises(ValueError, match="cannot be merged"):
        metrics.Moments(3).merge(metrics.Moments(4))


# ---- classifier ------------------------------------------------------------------------------------------------------


def test_digits_classifier_is_good_cached_and_leaves_the_random_state(cache, monkeypatch):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = metrics.classifier_for("digits")
    assert torch.equal(torch.get_rng_state(), before)
    assert first.accuracy >= 0.97 and first.real.count == 1498 and first.classes == 10 and len(first.sha256) == 64
    assert [path.suffix for path in (cache / "classifiers").iterdir()] == [".safetensors"]

    def no_training(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(classifier_module, "_train", no_training)
    again = metrics.classifier_for("digits")
    assert again.cached and (again.sha256, again.accuracy, again.floor) == (first.sha256, first.accuracy, first.floor)
    images = data.load("digits", split="test").floats()
    for mine, theirs in zip(first.features_and_logits(images), again.features_and_logits(images), strict=True):
        assert torch.equal(mine, theirs)
    torch.testing.assert_close(again.real.covariance, first.real.covariance)


@pytest.fixture
def quick(monkeypatch):
    """Few steps: what is tested is not how good the classifier is, and `tiny` needs no more."""
    monkeypatch.setattr(classifier_module, "_MIN_STEPS", 30)


def tiny(count: int = 60, seed: int = 0, labels: bool = True) -> data.ImageData:
    """Two classes that a classifier learns at once: dark and bright noise."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, 1, 8, 8), generator=generator) + 150 * kinds.view(-1, 1, 1, 1)
    return data.ImageData(images.to(torch.uint8), kinds if labels else None, "tiny")


def test_training_is_a_function_of_the_seed(quick):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = metrics.classifier_for(tiny(), retrain=True)
        torch.rand(3)
        assert metrics.classifier_for(tiny(), retrain=True).sha256 == first.sha256
        assert metrics.classifier_for(tiny(), retrain=True, seed=1).sha256 != first.sha256
    finally:
        torch.set_num_threads(threads)
    assert first.accuracy == 1.0 and first.floor is None and first.real.count == 50 and not first.cached


def test_a_set_smaller_than_the_features_is_named(quick):
    samples = torch.rand(100, *tiny().shape) * 2 - 1
    with pytest.raises(data.DataError, match="tiny has 50 training images, expected more than the 64 dimensions"):
        metrics.evaluate(samples, tiny())


def test_a_damaged_cache_file_is_replaced(quick, cache, caplog):
    source = tiny(seed=3)
    before = set((cache / "classifiers").glob("tiny-*"))
    made = metrics.classifier_for(source)
    (path,) = set((cache / "classifiers").glob("tiny-*")) - before
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    middle = header + (len(content) - header) // 2  # inside the largest parameter
    for bad in (b"", content[:100], content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]):
        path.write_bytes(bad)
        with caplog.at_level(logging.WARNING):
            again = metrics.classifier_for(source)
        assert not again.cached and "cannot be used" in caplog.text
        caplog.clear()
        assert metrics.classifier_for(source).cached
    assert made.accuracy == 1.0


def test_an_unwritable_cache_costs_only_a_warning(quick, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GAN_FAST_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert metrics.classifier_for(tiny()).accuracy == 1.0
    assert "cannot be kept" in caplog.text


def test_classifier_needs_labels_and_classes():
    with pytest.raises(data.DataError, match="tiny has no labels"):
        metrics.classifier_for(tiny(labels=False))
    with pytest.raises(data.DataError, match="at least two classes"):
        metrics.classifier_for(data.ImageData(tiny().images, torch.zeros(60, dtype=torch.int64)))
    with pytest.raises(data.DataError, match="at least 6"):
        metrics.classifier_for(tiny(5))
    with pytest.raises(data.DataError, match="labels start at -1"):
        metrics.classifier_for(data.ImageData(tiny().images, tiny().labels - 1))
    with pytest.raises(data.DataError, match="expected images"):
        metrics.classifier_for(data.ImageData(torch.rand(20, 1, 8), tiny(20).labels))


@few
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70), st.integers(2, 5))
def test_the_network_takes_any_size(channels, height, width, classes):
    net = ClassifierNet(channels, height, width, classes).eval()
    images = torch.zeros(2, channels, height, width)
    assert net.features(images).shape == (2, FEATURES) and net(images).shape == (2, classes)


# ---- evaluate --------------------------------------------------------------------------------------------------------


class Sampler:
    """A trainer as far as evaluate is concerned: real digits, or noise."""

    def __init__(self, noise: bool = False):
        self.noise, self.real, self.asked = noise, data.load("digits").floats(), []

    def sample(self, n, seed):
        self.asked.append((n, seed))
        generator = torch.Generator().manual_seed(seed)
        if self.noise:
            return torch.rand(n, 1, 28, 28, generator=generator) * 2 - 1
        return self.real[torch.randint(0, len(self.real), (n,), generator=generator)]


def test_real_images_get_a_small_distance_and_noise_a_large_one():
    real, noise = Sampler(), Sampler(noise=True)
    good, bad = (metrics.evaluate(s, "digits", n=1200, batch_size=500) for s in (real, noise))
    assert [n for n, _ in real.asked] == [500, 500, 200] and len({seed for _, seed in real.asked}) == 3
    assert good["frechet_distance"] < good["frechet_floor"] < bad["frechet_distance"] / 10
    assert good["confidence"] > 0.98 and 2.2 < good["class_entropy"] <= good["max_class_entropy"] == math.log(10)
    assert sum(good["class_counts"]) == good["n"] == 1200 and good["n_real"] == 1498
    assert good["classifier_accuracy"] >= 0.97 and good["classifier_sha256"] == bad["classifier_sha256"]
    again = metrics.evaluate(Sampler(), "digits", n=1200, batch_size=500)
    assert again == good
    assert metrics.evaluate(Sampler(), "digits", n=1200, seed=1)["frechet_distance"] != good["frechet_distance"]


def test_the_training_set_itself_has_distance_zero():
    result = metrics.evaluate(data.load("digits").floats(), "digits")
    assert result["frechet_distance"] == pytest.approx(0, abs=1e-3) and result["n"] == 1498


class Generator(nn.Module):
    latent_shape = (3,)

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 784), nn.BatchNorm1d(784), nn.Tanh(), nn.Unflatten(1, (1, 28, 28)))

    def forward(self, z):
        return self.body(z)


def test_a_generator_is_run_in_evaluation_mode_and_left_as_it_was():
    generator = Generator()
    generator.body[2].eval()
    state = {k: v.clone() for k, v in generator.state_dict().items()}
    result = metrics.evaluate(generator, "digits", n=100)
    assert result["n"] == 100 and generator.training and not generator.body[2].training
    assert all(torch.equal(v, state[k]) for k, v in generator.state_dict().items())
    assert metrics.evaluate(lambda n: torch.zeros(n, 1, 28, 28), "digits", n=100)["class_entropy"] == 0.0


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        (torch.zeros(64, 1, 28, 28), {}, ValueError, "n=64 samples, expected more than the 64"),
        (torch.zeros(80, 28, 28), {}, ValueError, r"samples are \(80, 28, 28\)"),
        (torch.zeros(80, 1, 28, 28, dtype=torch.uint8), {}, ValueError, "torch.uint8, expected floating point"),
        (torch.full((80, 1, 28, 28), float("nan")), {}, ValueError, "samples: 62720 of 62720 values are NaN"),
        (torch.full((80, 1, 28, 28), 1.5), {}, ValueError, "outside"),
        (
            torch.zeros(80, 2, 28, 28),
            {},
            ValueError,
            r"samples have shape \(2, 28, 28\), the images of digits \(1, 28, 28\)",
        ),
        (lambda n: torch.zeros(n + 1, 1, 28, 28), {"n": 100}, ValueError, r"expected floating point \(100, C, H, W\)"),
        (
            lambda n: torch.zeros(n, 1, 28, 28 - (n < 50)),
            {"n": 100, "batch_size": 67},
            ValueError,
            r"shape \(1, 28, 27\)",
        ),
        (torch.zeros(80, 1, 28, 27), {}, ValueError, r"shape \(1, 28, 27\), the images of digits \(1, 28, 28\)"),
        (lambda n: None, {"n": 100}, ValueError, "NoneType"),
        (nn.Linear(1, 1), {"n": 100}, TypeError, "latent_shape"),
        (7, {"n": 100}, TypeError, "source is a int"),
        (torch.zeros(80, 1, 28, 28), {"batch_size": 0}, ValueError, "batch_size=0"),
    ],
)
def test_evaluate_refuses_what_it_cannot_judge(source, options, error, words):
    with pytest.raises(error, match=words):
        metrics.evaluate(source, "digits", **options)


def test_samples_of_another_size_get_a_set_of_that_size(quick):
    source = tiny(80)
    samples = torch.zeros(80, 1, 12, 12)
    result = metrics.evaluate(samples, source)
    assert result["data"] == "tiny" and result["n_real"] == 67
    mnist_like = metrics.evaluate(torch.zeros(80, 3, 8, 8), source)
    assert mnist_like["classifier_sha256"] != result["classifier_sha256"]


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("GAN_FAST_DATA"), reason="needs GAN_FAST_DATA, a folder with MNIST's files")
def test_mnist_classifier_reaches_99_percent():
    made = metrics.classifier_for("mnist", download=False)
    assert made.accuracy >= 0.99 and made.real.count == 60000
    assert 0 < made.floor < 20
