"""gan_fast::conv_transpose on the compiled kernel ``_C.conv_transpose`` (csrc/cpu/conv_transpose*)."""

from gan_fast.ops.convolution import make_cpu

conv_transpose = make_cpu("conv_transpose")
