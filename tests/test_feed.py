"""Feeds: order, exact resume across epochs, items of data sets, loaders."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from gan_fast import data
from gan_fast.data.feed import home, permutation

few = settings(derandomize=True, max_examples=25, deadline=None)


class Items:
    """A map-style data set of whatever `make(i)` gives."""

    def __init__(self, count, make):
        self.count, self.make = count, make

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.make(index)


# ---- feeds that own the order ----------------------------------------------------------------------------------------


def numbered(count: int) -> torch.Tensor:
    """Images whose only pixel is their number."""
    return torch.arange(count, dtype=torch.uint8).view(count, 1, 1, 1)


def numbers(batch: torch.Tensor) -> list[int]:
    return ((batch.flatten() + 1) * 127.5).round().int().tolist()


@few
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**40), st.booleans(), st.data())
def test_resumed_feed_gives_the_same_batches_across_epochs(count, batch, seed, drop_last, draw):
    batch = min(batch, count)
    first = draw.draw(st.integers(0, 20))

    def make():
        return data.feed(numbered(count), batch, seed, drop_last=drop_last)

    whole = make()
    expected = [numbers(whole.next()) for _ in range(first + 12)]
    begun = make()
    for _ in range(first):
        begun.next()
    resumed = make()
    resumed.load_state_dict(begun.state_dict())
    assert [numbers(resumed.next()) for _ in range(12)] == expected[first:]
    assert (resumed.epoch, resumed.position) == (whole.epoch, whole.position)
    assert whole.exact and whole.steps_per_epoch == (count // batch if drop_last else -(-count // batch))
    epoch = list(itertools.chain.from_iterable(expected[: whole.steps_per_epoch]))
    if len(expected) >= whole.steps_per_epoch:
        assert len(set(epoch)) == len(epoch) == (count // batch * batch if drop_last else count)


def test_order_depends_on_seed_and_epoch_only():
    assert torch.equal(permutation(50, 3, 4), permutation(50, 3, 4))
    orders = {tuple(permutation(50, seed, epoch).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    # 2**32 apart: torch's generator itself would not tell these two apart.
    assert not torch.equal(permutation(50, 3, 0), permutation(50, 3 + 2**32, 0))


def test_feed_state_is_plain_and_safe_to_load(tmp_path):
    feed = data.feed(numbered(9), 2)
    feed.next()
    torch.save(feed.state_dict(), tmp_path / "s.pt")
    assert torch.load(tmp_path / "s.pt", weights_only=True) == feed.state_dict()
    assert feed.describe()["samples"] == 9 and feed.describe()["steps_per_epoch"] == 4


def test_feed_refuses_the_state_of_other_data_or_settings():
    state = data.feed(numbered(9), 2, seed=1).state_dict()
    with pytest.raises(data.DataError, match=r"batch_size was 2, is 3; seed was 1, is 2"):
        data.feed(numbered(9), 3, seed=2).load_state_dict(state)
    with pytest.raises(data.DataError, match="fingerprint was"):
        data.feed(numbered(9) + 1, 2, seed=1).load_state_dict(state)
    with pytest.raises(data.DataError, match="position 99"):
        data.feed(numbered(9), 2, seed=1).load_state_dict({**state, "position": 99})


def test_batches_do_not_share_memory_and_are_float_in_range():
    feed = data.feed(numbered(8), 4)
    first = feed.next()
    kept = first.clone()
    feed.next()
    assert torch.equal(first, kept) and first.dtype == torch.float32 and first.shape == (4, 1, 1, 1)
    assert first.min() >= -1 and first.max() <= 1


def test_images_that_take_over_half_of_a_device_stay_on_the_host(monkeypatch, caplog):
    images = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    asked = []

    def free(device):
        asked.append(device)
        return limit

    monkeypatch.setattr(sys.modules["gan_fast.data.feed"], "free_memory", free)  # the package's feed is a function
    limit = 2 * images.nbytes
    assert home(images, torch.device("cuda", 0)) == torch.device("cuda", 0)
    limit -= 1
    with caplog.at_level("INFO", logger="gan_fast"):
        feed = data.feed(images, batch_size=4, device="cuda:0")  # would fail here if it went there
    assert feed.next().device.type == "cpu" and asked == [torch.device("cuda", 0)] * 2
    assert "cuda:0: the host keeps them" in caplog.text


def test_float_tensors_arrays_and_one_dimensional_samples():
    values = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 2, 3)
    batch = data.feed(values, 4).next()
    assert batch.dtype == torch.float32 and sorted(batch.flatten().tolist()) == pytest.approx(values.flatten().tolist())
    assert data.feed(np.zeros((4, 1, 2, 2), np.uint8), 2).next().unique().tolist() == [-1]
    assert data.feed(torch.zeros(4, 1, 6, 2)[:, :, ::2], 2).next().shape == (2, 1, 3, 2)


def test_batch_larger_than_the_data_set_names_both():
    for source in (numbered(5), Items(5, lambda i: torch.zeros(1, 2, 2))):
        with pytest.raises(data.DataError, match=r"batch_size=6 .* has 5 samples"):
            data.feed(source, 6)
    with pytest.raises(data.DataError, match="batch_size=0"):
        data.feed(numbered(5), 0)


def test_values_in_unit_range_are_warned_about():
    with pytest.warns(UserWarning, match=r"x \* 2 - 1"):
        data.feed(torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)), 4)
    with pytest.warns(UserWarning, match=r"x \* 2 - 1"):
        data.feed(Items(8, lambda i: torch.full((1, 2, 2), 0.9)), 4).next()


@pytest.mark.parametrize(
    "make",
    [
        lambda i: Image.new("L", (3, 2), i),
        lambda i: (Image.new("L", (3, 2), i), i),
        lambda i: np.full((2, 3), i, np.uint8),
        lambda i: (np.full((2, 3, 1), i, np.uint8), "label"),
        lambda i: torch.full((1, 2, 3), i, dtype=torch.uint8),
        lambda i: [torch.full((1, 2, 3), i / 127.5 - 1)],
    ],
)
def test_map_style_items_of_every_kind(make):
    feed = data.feed(Items(10, make), 4, seed=3)
    batch = feed.next()
    assert batch.shape == (4, 1, 2, 3) and feed.exact and feed.steps_per_epoch == 2
    assert numbers(batch[:, :1, :1, :1]) == permutation(10, 3, 0)[:4].tolist()
    state = feed.state_dict()
    expected = feed.next()
    again = data.feed(Items(10, make), 4, seed=3)
    again.load_state_dict(state)
    assert torch.equal(again.next(), expected)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda i: "text", TypeError, r"Items\[\d\] is a str"),
        (lambda i: torch.zeros(1, 2, 2 + i), data.DataError, "all samples must be alike"),
        (lambda i: torch.full((1, 2, 2), float("nan")), data.DataError, "a batch of Items: 16 of 16 values are NaN"),
        (lambda i: torch.zeros(1, 2, 2, dtype=torch.int32), data.DataError, "dtype torch.int32"),
        (lambda i: np.zeros(4, np.uint8), data.DataError, r"shape \(4,\)"),
        (lambda i: torch.zeros(2, 2, dtype=torch.uint8), data.DataError, r"expected \(C, H, W\)"),
    ],
)
def test_bad_items(make, error, words):
    with pytest.raises(error, match=words):
        data.feed(Items(9, make), 4).next()


def test_tensor_dataset_and_ready_feeds_and_folder(tmp_path, monkeypatch):
    feed = data.feed(TensorDataset(numbered(6), torch.zeros(6)), 2)
    assert isinstance(feed, data.MemoryFeed) and data.feed(feed) is feed
    (tmp_path / "p").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("L", (8, 8), 5).save(tmp_path / "p" / name)
    small = data.feed(tmp_path / "p", 2)
    monkeypatch.setattr("gan_fast.data.loader_feed._MEMORY_BYTES", 10)
    large = data.feed(str(tmp_path / "p"), 2)
    assert isinstance(small, data.MemoryFeed) and isinstance(large, data.MapFeed)
    assert torch.equal(small.next(), large.next())


def test_options_that_a_source_cannot_follow_are_refused():
    for source in (Items(9, lambda i: torch.zeros(1, 2, 2)), loader()):
        with pytest.raises(data.DataError, match=r"image_size=8, channels=None: a (Items|DataLoader)"):
            data.feed(source, 2, image_size=8)
    assert data.feed(numbered(9), 2, image_size=8, channels=3).next().shape == (2, 3, 8, 8)


def test_sources_of_no_known_kind():
    for source in (3, None, {"a": 1}, iter([1])):
        with pytest.raises(TypeError, match="expected a name"):
            data.feed(source, 1)


# ---- loaders ---------------------------------------------------------------------------------------------------------


def loader(count=10, batch=3, generator=None, **options):
    return DataLoader(
        TensorDataset(numbered(count), torch.zeros(count)), batch_size=batch, generator=generator, **options
    )


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("taken", [0, 1, 3, 4, 5, 9])
def test_known_loaders_resume_exactly(shuffle, taken):
    def make(seed):
        return data.feed(loader(shuffle=shuffle, generator=torch.Generator().manual_seed(seed)))

    whole = make(1)
    assert whole.exact and whole.steps_per_epoch == 4 and whole.batch_size == 3
    expected = [numbers(whole.next()) for _ in range(taken + 9)]
    begun = make(1)
    for _ in range(taken):
        begun.next()
    resumed = make(2)
    resumed.load_state_dict(begun.state_dict())
    assert [numbers(resumed.next()) for _ in range(9)] == expected[taken:]
    if shuffle:
        assert expected[:4] != expected[4:8]


class Stateful:
    """A loader that counts and can be put anywhere, as torchdata's does."""

    def __init__(self):
        self.at = 0

    def __iter__(self):
        while self.at < 4:
            self.at += 1
            yield torch.full((2, 1, 1, 1), self.at, dtype=torch.uint8)
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


@pytest.mark.parametrize("taken", [0, 2, 4, 6])
def test_stateful_loader_resumes_exactly(taken):
    feed = data.feed(Stateful())
    for _ in range(taken):
        feed.next()
    resumed = data.feed(Stateful())
    resumed.load_state_dict(feed.state_dict())
    assert feed.exact and [numbers(resumed.next()) for _ in range(6)] == [numbers(feed.next()) for _ in range(6)]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(numbered(6))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (lambda: loader(shuffle=True), "global generator"),
        (lambda: loader(num_workers=2), "2 workers"),
        (lambda: Stream(), "IterableDataset"),
        (lambda: DataLoader(Stream(), batch_size=2), "IterableDataset"),
        (lambda: loader(sampler=torch.utils.data.WeightedRandomSampler([1.0] * 10, 10)), "WeightedRandomSampler"),
    ],
)
def test_loaders_that_cannot_resume_say_so(source, why):
    with pytest.warns(UserWarning, match="will not see the same batches") as caught:
        feed = data.feed(source(), 2)
    assert not feed.exact and why in str(caught[0].message) and why in feed.inexact_reason


def test_iterable_dataset_runs_on_and_counts_epochs():
    with pytest.warns(UserWarning):
        feed = data.feed(Stream(), 2)
    assert [numbers(feed.next()) for _ in range(4)] == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert (feed.epoch, feed.position, feed.steps_per_epoch) == (1, 1, None)


def test_bad_loaders():
    with pytest.raises(data.DataError, match=r"gives no batch: batch_size=20 .* 10 samples"):
        data.feed(loader(batch=20, drop_last=True))
    with pytest.raises(data.DataError, match=r"of another loader: .*steps_per_epoch was 4, is 5"):
        data.feed(loader(batch=2)).load_state_dict(data.feed(loader()).state_dict())
    with pytest.raises(TypeError, match="batch of type dict"):
        data.feed(DataLoader([{"x": 1}, {"x": 2}])).next()
    with pytest.raises(data.DataError, match=r"a batch of DataLoader: 4 of 4 values lie outside"):
        data.feed(DataLoader([torch.full((1, 2, 2), 9.0)])).next()

    class Once(Stateful):
        def __iter__(self):
            return iter(())

    with pytest.raises(data.DataError, match="no batch in a whole pass"):
        data.feed(Once()).next()
