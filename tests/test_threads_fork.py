"""Compiled kernels among forks, Python threads, DataLoader workers and thread settings.

Each case runs in a process of its own: a fork, or a thread pool that is left behind, must not reach the other tests.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from native import kernels

PROLOGUE = '''
import os, signal, sys, threading
import torch
from gan_fast import backends

signal.alarm(100)  # a kernel that hangs in a forked child must not stay behind
C = backends.extension()
N = 300_007
x = torch.randn(N, generator=torch.Generator().manual_seed(0))
image = torch.randn(8, 12, 12, 16, generator=torch.Generator().manual_seed(1))  # NHWC
filters = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(2))
GEOMETRY = (8, 16, 12, 12, 32, 12, 12, 3, 3, 1, 1, 1, 1, 1, 1, 1)


def run(threads):
    """The bits of every kernel's result."""
    tanh, grad, loss = torch.empty(N), torch.empty(N), torch.empty(1)
    conv, filter_grad = torch.empty(8, 12, 12, 32), torch.empty_like(filters)
    C.bias_act(0, N, 1, 1, x.data_ptr(), 0, tanh.data_ptr(), 3, 0.0, threads)
    C.bce_with_logits(0, N, x.data_ptr(), 0, 1.0, 0, 0, 1, loss.data_ptr(), grad.data_ptr(), threads)
    C.conv(0, GEOMETRY, image.data_ptr(), filters.data_ptr(), False, 0, conv.data_ptr(), 0, 0.0, 0, 0, 0.0, threads)
    C.conv_weight_grad(
        0, GEOMETRY, False, image.data_ptr(), conv.data_ptr(), filter_grad.data_ptr(), False, 0, 0, 0, 0.0, threads
    )
    return [t.numpy().tobytes() for t in (tanh, grad, loss, conv, filter_grad)]


def tasks():
    return len(os.listdir("/proc/self/task"))
'''

linux = pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")


def run_script(body: str) -> None:
    kernels()
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + body], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


def test_forked_children_compute_after_parallel_regions_of_the_parent() -> None:
    run_script(
        """
expected = run(2)  # OpenMP's threads exist from here on; they do not survive a fork
torch.set_num_threads(2)
torch.tanh(x)
for generation in range(2):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        if run(2) != expected:
            os._exit(1)
        if os.path.isdir("/proc/self/task") and tasks() != 1:
            os._exit(2)  # a child runs its kernels on the calling thread
        grandchild = os.fork()
        if grandchild == 0:
            signal.alarm(60)
            os._exit(0 if run(2) == expected else 3)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, code
assert run(2) == expected  # and the parent goes on
print("fine")
"""
    )


def test_four_python_threads_at_once() -> None:
    run_script(
        """
expected = run(1)
results = [[] for _ in range(4)]
barrier = threading.Barrier(4)

def work(k):
    barrier.wait()
    for _ in range(5):
        results[k].append(run(1 + k % 3) == expected)

threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
for t in threads: t.start()
for t in threads: t.join()
assert results == [[True] * 5] * 4, results
print("fine")
"""
    )


def test_data_loader_workers_call_kernels() -> None:
    run_script(
        """
expected = run(2)

class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is None:
            raise AssertionError("expected to run in a worker")
        return index, run(2) == expected

loader = torch.utils.data.DataLoader(
    Items(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60
)
seen = [(int(i), bool(same)) for indices, sames in loader for i, same in zip(indices, sames)]
assert sorted(seen) == [(i, True) for i in range(6)], seen
assert run(2) == expected
print("fine")
"""
    )


@linux
def test_thread_settings_are_respected_and_the_pool_is_torchs() -> None:
    run_script(
        """
from gan_fast import functional

def layer():
    with backends.use_backend("cpu"):
        functional.conv2d(image.permute(0, 3, 1, 2), filters, padding=1, activation="tanh")

torch.set_num_threads(1)
torch.tanh(x)
alone = tasks()
layer()
run(1)
assert tasks() == alone, "one thread was asked for"

torch.set_num_threads(3)
y = torch.empty(N)
C.bias_act(0, N, 1, 1, x.data_ptr(), 0, y.data_ptr(), 3, 0.0, torch.get_num_threads())  # ten pieces of work
assert tasks() == alone + 2, (alone, tasks())
torch.tanh(x.repeat(20))  # torch's own parallel loop: takes the same threads, hence starts none
assert tasks() == alone + 2, ("two OpenMP pools in one process", alone, tasks())
layer()
assert tasks() <= alone + 2, (alone, tasks())
print("fine")
"""
    )


@linux
def test_omp_num_threads_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_script(
        """
from gan_fast import functional

assert torch.get_num_threads() == 1
before = tasks()
with backends.use_backend("cpu"):
    functional.conv2d(image.permute(0, 3, 1, 2), filters, padding=1, activation="tanh")
    functional.bias_act(x.view(1, 1, -1), None, activation="sigmoid")
assert tasks() == before
print("fine")
"""
    )
