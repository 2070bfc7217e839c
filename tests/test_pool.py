"""The block pool behind output tensors: reuse, bound, lifetime, threads, fork, shutdown."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import DTYPE_CODES, kernels
from torch import Tensor

from gan_fast import functional, use_backend

MIB = 1 << 20

#: Large blocks are mapped, cut and joined on Linux; elsewhere they have size classes as the small ones do.
of_mapped_blocks = pytest.mark.skipif(sys.platform != "linux", reason="blocks are mapped on Linux only")


@pytest.fixture
def pool() -> Iterator[ModuleType]:
    """The compiled module with an empty cache and a bound of 64 MiB."""
    module = kernels()
    module.empty_cache()
    before = module.pool_set_limit(64 * MIB)
    yield module
    module.pool_set_limit(before)
    module.empty_cache()


def contiguous_strides(shape: Sequence[int]) -> list[int]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return strides[::-1]


def empty(
    module: ModuleType, *shape: int, strides: Sequence[int] | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    capsule = module.pool_empty(shape, contiguous_strides(shape) if strides is None else strides, DTYPE_CODES[dtype])
    return torch.from_dlpack(capsule)


def live(module: ModuleType) -> int:
    return module.pool_stats()["live_blocks"]


# --------------------------------------------------------------------------------------------------- tensors


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(0, 6), max_size=8),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    order=st.randoms(use_true_random=False),
)
def test_tensors_have_the_shape_strides_and_dtype_asked_for(
    shape: list[int], dtype: torch.dtype, order: random.Random
) -> None:
    module = kernels()
    permutation = list(range(len(shape)))
    order.shuffle(permutation)
    strides, step = [0] * len(shape), 1
    for axis in permutation:
        strides[axis] = step
        step *= max(shape[axis], 1)
    x = empty(module, *shape, strides=strides, dtype=dtype)
    assert (list(x.shape), x.dtype, x.device.type) == (shape, dtype, "cpu")
    expected = torch.empty_strided(shape, strides, dtype=dtype)
    assert x.is_contiguous() == expected.is_contiguous()
    if x.numel():
        assert list(x.stride()) == strides
        assert x.data_ptr() % 64 == 0
    values = (torch.arange(x.numel()) % 251).reshape(shape).to(dtype)
    assert torch.equal(x.copy_(values), values)


def test_channels_last(pool: ModuleType) -> None:
    x = empty(pool, 2, 3, 4, 5, strides=[60, 1, 15, 3])
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("nbytes", [2 * MIB - 4, 2 * MIB, 2 * MIB + 4, 9 * MIB])
def test_large_blocks_start_on_huge_pages(pool: ModuleType, nbytes: int) -> None:
    x = empty(pool, nbytes // 4)
    x.fill_(1.0)
    assert x.sum(dtype=torch.float64) == nbytes // 4
    if nbytes >= 2 * MIB and sys.platform == "linux":
        assert x.data_ptr() % (2 * MIB) == 0


def test_autograd_and_in_place_work_on_pool_tensors(pool: ModuleType) -> None:
    x = empty(pool, 4, 4).fill_(2.0).requires_grad_()
    (x * x).sum().backward()
    assert torch.equal(x.grad, torch.full((4, 4), 4.0))


# ----------------------------------------------------------------------------------------------- reuse and bound


@pytest.mark.parametrize("n", [1, 1000, MIB, 3 * MIB])
def test_a_returned_block_is_handed_out_again(pool: ModuleType, n: int) -> None:
    x = empty(pool, n)
    address = x.data_ptr()
    del x
    before = pool.pool_stats()
    x = empty(pool, n)
    after = pool.pool_stats()
    assert x.data_ptr() == address
    assert (after["hits"], after["misses"]) == (before["hits"] + 1, before["misses"])
    assert empty(pool, n).data_ptr() != address, "a block in use must not be handed out"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(n=st.one_of(st.integers(1, 5000), st.integers(1, 3 * MIB)))
def test_blocks_waste_at_most_an_eighth(n: int) -> None:
    module = kernels()
    before = module.pool_stats()["live_bytes"]
    x = empty(module, n)
    taken = module.pool_stats()["live_bytes"] - before
    assert 4 * n <= taken <= max(4 * n * 9 / 8, 4 * n + 63)
    assert taken % 64 == 0
    x[-1] = 1.0


def test_the_cache_stays_within_its_bound_and_drops_the_longest_unused(pool: ModuleType) -> None:
    blocks = [empty(pool, MIB // 4 * k) for k in range(1, 9)]  # 1 to 8 MiB: eight classes
    addresses = [b.data_ptr() for b in blocks]
    pool.pool_set_limit(16 * MIB)
    while blocks:
        del blocks[0]
        assert pool.pool_stats()["cached_bytes"] <= 16 * MIB
    held = [empty(pool, MIB // 4 * k) for k in (8, 7)]  # 15 MiB: what was returned last
    assert [x.data_ptr() for x in held] == [addresses[7], addresses[6]]
    misses = pool.pool_stats()["misses"]
    first = empty(pool, MIB // 4)
    assert pool.pool_stats()["misses"] == misses + 1, "the first one returned must have been dropped"
    assert first.numel() == MIB // 4


@of_mapped_blocks
def test_large_blocks_are_cut_from_the_smallest_that_will_do_and_joined_again(pool: ModuleType) -> None:
    large, small = empty(pool, 8 * MIB), empty(pool, MIB)  # 32 MiB, 4 MiB
    start, other = large.data_ptr(), small.data_ptr()
    del large, small
    before = pool.pool_stats()
    pieces = [empty(pool, n) for n in (MIB, 3 * MIB, MIB // 2, MIB + 1)]
    assert [x.data_ptr() - start for x in pieces[1:]] == [0, 12 * MIB, 14 * MIB]
    assert pieces[0].data_ptr() == other, "the smallest that will do"
    after = pool.pool_stats()
    assert (after["misses"], after["hits"]) == (before["misses"], before["hits"] + 4)
    del pieces[2], pieces[1], pieces[1], pieces[0]  # the middle one first: joined on both sides
    assert (pool.pool_stats()["cached_blocks"], pool.pool_stats()["cached_bytes"]) == (2, before["cached_bytes"])
    assert empty(pool, 8 * MIB).data_ptr() == start
    assert pool.pool_stats()["misses"] == before["misses"]


@of_mapped_blocks
def test_what_waits_between_live_pieces_can_go_back_to_the_system(pool: ModuleType) -> None:
    large = empty(pool, 8 * MIB)
    del large
    left, middle, right = (empty(pool, 2 * MIB).fill_(k) for k in (1.0, 2.0, 3.0))
    del middle
    pool.empty_cache()
    assert pool.pool_stats()["cached_bytes"] == 0
    assert bool((left == 1.0).all()) and bool((right == 3.0).all())
    del left, right  # no longer neighbours
    assert (pool.pool_stats()["cached_blocks"], pool.pool_stats()["cached_bytes"]) == (2, 16 * MIB)


@of_mapped_blocks
def test_memory_that_was_never_needed_at_once_is_not_kept(pool: ModuleType) -> None:
    small = empty(pool, 1000)
    del small  # the longest unused, but no pages of its own
    halves = [empty(pool, 6 * MIB) for _ in range(2)]  # 24 MiB each
    del halves
    before = pool.pool_stats()
    whole = empty(pool, 12 * MIB)  # 48 MiB: none waits that is large enough
    after = pool.pool_stats()
    assert after["misses"] == before["misses"] + 1
    assert (after["live_bytes"], after["cached_blocks"]) == (before["live_bytes"] + 48 * MIB, 1)
    del whole
    halves = [empty(pool, 6 * MIB) for _ in range(2)]
    assert halves[1].data_ptr() - halves[0].data_ptr() == 24 * MIB, "cut from what the whole one left"
    assert pool.pool_stats()["misses"] == after["misses"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(4, 40), min_size=2, max_size=12), order=st.randoms(use_true_random=False))
def test_a_program_that_repeats_itself_soon_asks_the_system_for_nothing(sizes: list[int], order: random.Random) -> None:
    # A step takes blocks of so many quarters of a MiB and gives them back in some order; some live while others come.
    module = kernels()
    module.empty_cache()
    steps = [("take", i) for i in range(len(sizes))]
    for i in range(len(sizes)):
        steps.insert(order.randint(steps.index(("take", i)) + 1, len(steps)), ("give", i))
    live: dict[int, Tensor] = {}
    misses = [module.pool_stats()["misses"]]
    for _ in range(150):
        for what, i in steps:
            if what == "take":
                live[i] = empty(module, sizes[i] * MIB // 16)
            else:
                del live[i]
        misses.append(module.pool_stats()["misses"])
    assert misses[-1] == misses[-50]
    module.empty_cache()


def test_a_kernels_large_scratch_comes_from_the_pool_and_goes_back(pool: ModuleType) -> None:
    # 512 x 512 x 9 weights are packed: 9 MiB; the outputs of so small an image are PyTorch's.
    x, weight = torch.randn(1, 512, 4, 4), torch.randn(512, 512, 3, 3)
    with use_backend("cpu"):
        before = pool.pool_stats()
        y = functional.conv2d(x, weight, padding=1)
        once = pool.pool_stats()
        functional.conv2d(x, weight, padding=1)
        twice = pool.pool_stats()
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight, padding=1), rtol=1e-3, atol=1e-3)
    assert once["misses"] > before["misses"]
    assert (twice["misses"], twice["hits"] > once["hits"]) == (once["misses"], True)
    assert twice["live_blocks"] == before["live_blocks"]
    assert twice["cached_bytes"] >= 9 * MIB


def test_a_block_over_the_bound_is_not_kept(pool: ModuleType) -> None:
    kept = empty(pool, 10)
    del kept
    waiting = pool.pool_stats()["cached_bytes"]
    assert waiting > 0
    large = empty(pool, 17 * MIB)  # 68 MiB
    del large
    assert pool.pool_stats()["cached_bytes"] == waiting


def test_bound_zero_turns_reuse_off(pool: ModuleType) -> None:
    pool.pool_set_limit(0)
    hits = pool.pool_stats()["hits"]
    for _ in range(3):
        x = empty(pool, 1000)
        x.fill_(3.0)
        del x
    stats = pool.pool_stats()
    assert (stats["cached_bytes"], stats["cached_blocks"], stats["hits"]) == (0, 0, hits)


def test_empty_cache_gives_back_what_waits_and_nothing_else(pool: ModuleType) -> None:
    kept, dropped = empty(pool, 1000).fill_(5.0), empty(pool, 2 * MIB)
    del dropped
    assert pool.pool_stats()["cached_bytes"] >= 8 * MIB
    pool.empty_cache()
    stats = pool.pool_stats()
    assert (stats["cached_bytes"], stats["cached_blocks"]) == (0, 0)
    assert (kept == 5.0).all()


def test_poisoned_blocks_are_nan(pool: ModuleType) -> None:
    assert pool.pool_set_poison(True) is False
    try:
        for dtype in DTYPE_CODES:
            for _ in range(2):  # fresh, then recycled
                assert empty(pool, 77, dtype=dtype).isnan().all()
    finally:
        assert pool.pool_set_poison(False) is True


# ------------------------------------------------------------------------------------------------------ lifetime


def test_a_tensor_outlives_its_capsule_and_views_keep_the_block(pool: ModuleType) -> None:
    start = live(pool)
    capsule = pool.pool_empty([8, 8], [8, 1], 0)
    x = torch.from_dlpack(capsule)
    del capsule
    assert live(pool) == start + 1
    row = x.fill_(7.0)[3]
    array = x.numpy()
    del x
    assert live(pool) == start + 1
    other = empty(pool, 8, 8).fill_(1.0)
    assert (row == 7.0).all()
    del row
    assert (array == 7.0).all() and (other == 1.0).all()
    del array, other
    assert live(pool) == start


def test_an_unused_capsule_returns_its_block(pool: ModuleType) -> None:
    start = live(pool)
    capsule = pool.pool_empty([100], [1], 0)
    assert live(pool) == start + 1
    del capsule
    assert live(pool) == start


def test_a_capsule_is_consumed_once(pool: ModuleType) -> None:
    capsule = pool.pool_empty([100], [1], 0)
    x = torch.from_dlpack(capsule)
    with pytest.raises(RuntimeError, match="consumed only once"):
        torch.from_dlpack(capsule)
    del capsule
    assert x.fill_(1.0).sum() == 100


@pytest.mark.parametrize("sizes", [(10, 100, 1000, 70_000), (280_000, 300_000, 700_000, 1_500_000)])
def test_threads_never_share_a_block(pool: ModuleType, sizes: tuple[int, ...]) -> None:
    limit = 12 * sizes[-1]
    pool.pool_set_limit(limit)  # small: blocks are evicted all the time
    start = live(pool)
    wrong: list[str] = []

    def hammer(seed: int) -> None:
        rng = random.Random(seed)
        held: list[tuple[Tensor, float]] = []
        for step in range(300):
            value = float(1000 * seed + step)
            held.append((empty(pool, rng.choice(sizes)).fill_(value), value))
            if len(held) > 6:
                x, expected = held.pop(rng.randrange(len(held)))
                if not bool((x == expected).all()):
                    wrong.append(f"thread {seed}, step {step}")
            if step % 50 == 0:
                pool.empty_cache()

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    stats = pool.pool_stats()
    assert stats["live_blocks"] == start
    assert stats["cached_bytes"] <= limit


# -------------------------------------------------------------------------------------------- processes, environment

PROLOGUE = """
import os, signal, sys, threading
import torch
from gan_fast import backends
C = backends.extension()
def empty(n):
    return torch.from_dlpack(C.pool_empty([n], [1], 0))
"""


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    kernels()
    command = [sys.executable, "-c", PROLOGUE + body]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_forked_child_goes_on_with_its_own_pool() -> None:
    done = run_script(
        """
kept, waiting = empty(1000).fill_(1.0), empty(2000)
del waiting
stop = threading.Event()
def churn():
    while not stop.is_set():
        empty(3000)
threads = [threading.Thread(target=churn) for _ in range(2)]
for t in threads: t.start()
for _ in range(20):  # the lock is held by a churning thread at some of these forks
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        before = C.pool_stats()["hits"]
        x = empty(2000).fill_(2.0)
        good = C.pool_stats()["hits"] == before + 1 and bool((kept == 1).all()) and bool((x == 2).all())
        kept.fill_(3.0)
        C.empty_cache()
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for t in threads: t.join()
assert bool((kept == 1).all())
print("fine")
"""
    )
    assert done.stdout == "fine\n", done.stderr


def test_tensors_alive_at_interpreter_shutdown_do_no_harm() -> None:
    done = run_script(
        """
import atexit
held = [empty(n) for n in (1, 1000, 2 << 20)]
sys.modules["__main__"].capsule = C.pool_empty([10], [1], 0)
cycle = [empty(10)]; cycle.append(cycle)
atexit.register(lambda: held.append(empty(50)))
threading.Thread(target=lambda: held.append(empty(60))).start()
print("end")
"""
    )
    assert (done.stdout, done.returncode) == ("end\n", 0), done.stderr


def test_the_environment_sets_the_bound_and_a_bad_value_is_named() -> None:
    done = run_script(
        """
for bad in ("-1", "many", "1.5", "12x", "99999999999999999999"):
    os.environ["GAN_FAST_POOL_MB"] = bad
    try:
        empty(10)
    except ValueError as error:
        assert f"GAN_FAST_POOL_MB='{bad}': expected a whole number of MiB" in str(error), error
    else:
        raise AssertionError(bad)
os.environ["GAN_FAST_POOL_MB"] = "3"  # read at the first use that succeeds, kept from then on
empty(10)
os.environ["GAN_FAST_POOL_MB"] = "4"
assert C.pool_stats()["limit_bytes"] == 3 << 20
print("fine")
"""
    )
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([2, -1], [1, 1], 0), r"shape\[1\]=-1: expected a size >= 0"),
        (([2, 2], [1, -2], 0), r"strides\[1\]=-2: expected a stride >= 0"),
        (([2, 2], [1], 0), "strides of length 1: expected one for each of the 2"),
        (([2], [1], 3), r"dtype=3: expected 0 \(float32\), 1 \(float64\) or 2 \(bfloat16\)"),
        (([1] * 9, [1] * 9, 0), "rank=9: expected 0 to 8"),
        (([2**62] * 8, [2**62] * 8, 0), r"2\^46 bytes or more"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[list[int], list[int], int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels().pool_empty(*arguments)


def test_more_than_the_machine_has_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        kernels().pool_empty([2**43], [1], 0)  # 32 TiB
