"""What the compiled convolutions do where memory or 64-bit numbers end: an exception of Python, and they go on."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from native import kernels

from gan_fast import functional

SMALL = (1, 4, 8, 8, 4, 8, 8, 3, 3, 1, 1, 1, 1, 1, 1, 1)
FIELDS = (
    *("batch", "in_channels", "in_h", "in_w", "out_channels", "out_h", "out_w", "kernel_h", "kernel_w"),
    *("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "groups"),
)

OUT_OF_MEMORY = """
import resource, sys
import torch
from gan_fast import backends

C = backends.extension()
threads = int(sys.argv[1])
size = 1000
# Two taps as far apart as the image is wide: each of the two tasks packs all of an image, 128 MB (24 channels are no
# whole blocks, so it is not read where it lies).
geometry = (2, 24, size, size, 1, 1, 1, 2, 2, 1, 1, 0, 0, size - 1, size - 1, 1)
x, weight = torch.ones(2, size, size, 24), torch.ones(1, 24, 2, 2)
small = (2, 24, 8, 8, 1, 7, 7, 2, 2, 1, 1, 0, 0, 1, 1, 1)
pixels, y = torch.ones(2, 8, 8, 24), torch.zeros(2, 7, 7, 1)


def conv(geometry, x, y):
    C.conv(0, geometry, x.data_ptr(), weight.data_ptr(), False, 0, y.data_ptr(), 0, 0.0, 0, 0, 0.0, threads)


conv(small, pixels, y)  # the threads are there before the limit is
with open("/proc/self/statm") as pages:
    used = int(pages.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), resource.RLIM_INFINITY))
try:
    conv(geometry, x, torch.zeros(2, 1, 1, 1))
except MemoryError:
    y.zero_()
    conv(small, pixels, y)
    if bool((y == 96).all()):
        print("fine")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space by /proc and setrlimit")
@pytest.mark.parametrize("threads", [1, 2])
def test_exhausted_memory_is_a_memory_error(threads: int) -> None:
    """In a parallel region too, where a C++ exception that gets out would end the process."""
    kernels()
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, str(threads)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride_h": 2**32, "stride_w": 2**32}, r"stride_h=4294967296: expected at most 1048576"),
        ({"dilation_w": 2**62}, r"dilation_w=4611686018427387904: expected at most"),
        ({"pad_h": -(2**62)}, r"pad_h=-4611686018427387904: expected at least -1099511627776"),
        ({"out_w": 2**61}, r"out_w=2305843009213693952: expected at most 1099511627776"),
        ({"stride_h": 2**20, "stride_w": 2**20}, r"stride=\(1048576, 1048576\), dilation=\(1, 1\): expected"),
        ({"dilation_h": 2**20, "dilation_w": 2**19}, r"dilation=\(1048576, 524288\): expected"),
        ({"stride_w": 0}, "stride_w=0: expected at least 1"),
        ({"groups": 3}, "groups=3: expected a divisor"),
    ],
)
def test_geometry_that_would_overflow_is_refused(change: dict[str, int], message: str) -> None:
    """Before anything is read or written: the pointers are null."""
    geometry = tuple(change.get(name, value) for name, value in zip(FIELDS, SMALL, strict=True))
    module = kernels()
    for function in (module.conv, module.conv_transpose):
        with pytest.raises(ValueError, match=message):
            function(0, geometry, 0, 0, False, 0, 0, 0, 0.0, 0, 0, 0.0, 1)
    for transposed in (False, True):
        with pytest.raises(ValueError, match=message):
            module.conv_weight_grad(0, geometry, transposed, 0, 0, 0, False, 0, 0, 0, 0.0, 1)


@pytest.mark.parametrize("op", ["conv", "conv_transpose"])
def test_no_input_channels_leave_the_bias(op: str) -> None:
    bias, y = torch.tensor([1.0, -2.0]), torch.full((1, 3, 3, 2), float("nan"))
    geometry = (1, 0, 3, 3, 2, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1)
    getattr(kernels(), op)(0, geometry, 0, 0, False, bias.data_ptr(), y.data_ptr(), 1, 0.0, 0, 0, 0.0, 1)
    assert torch.equal(y, bias.clamp(min=0).expand_as(y))


def test_far_neighbours_are_an_error_only_for_who_asked_for_the_kernel() -> None:
    kernels()
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)
    expected = torch.nn.functional.conv2d(x, weight, stride=2**32)
    assert torch.equal(functional.conv2d(x, weight, stride=2**32), expected)
    with pytest.raises(ValueError, match="stride_h=4294967296"):
        functional.conv2d(x, weight, stride=2**32, backend="cpu")
