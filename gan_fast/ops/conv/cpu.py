"""gan_fast::conv on the compiled kernel ``_C.conv`` (csrc/cpu/conv*)."""

from gan_fast.ops.convolution import make_cpu

conv = make_cpu("conv")
